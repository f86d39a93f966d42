// What the block programs need to know of an op beyond functors/streams.h.
#pragma once

#include <type_traits>

#include "../functors/bregman_step.h"
#include "../functors/mask_apply.h"
#include "../functors/mask_pack.h"
#include "../functors/masked_perturb.h"
#include "../functors/norm.h"
#include "../functors/restore.h"
#include "../functors/restore_adamw.h"
#include "../functors/restore_sgd.h"
#include "../functors/zo_combine.h"

namespace sk::phases {

// What random directions are made of; Fast may take the hardware's approximate functions.
struct Normals {};
struct FastNormals {};
struct Signs {};

// f.operator()<Numbers>()
template <class Math, class F>
auto dispatch_numbers(const Directions<Math>& stream, const F& f) {
  if (stream.signs) return f.template operator()<Signs>();
  if (stream.fast) return f.template operator()<FastNormals>();
  return f.template operator()<Normals>();
}

// zo_combine or zo_norm2 with s, a sum of Numbers, as its computed input
template <class Base, class Numbers>
struct Drawn : Base {};

// An op whose backup is packed by the mask, into one tensor for the whole list.
template <class Base>
struct Packed : Base {};
template <class Base>
Packed<Base> packed(const Base& op) {
  return {op};
}

struct DefaultTraits {
  static constexpr bool kPacked = false;  // its backup is packed
  static constexpr bool kRandom = false;  // computed input: a sum of random directions
  static constexpr bool kSigns = false;   // of signs, else normals
  static constexpr bool kFast = false;    // of fast normals
  static constexpr bool kInput = false;   // computed input: from another list
  static constexpr bool kBits = false;    // which are the bits of its words
  static constexpr int kInputBytes = 0;   // of an element of that list
};

template <class Op>
struct Traits : DefaultTraits {};

template <class Base>
struct Traits<Packed<Base>> : Traits<Base> {
  static constexpr bool kPacked = true;
};
template <class Numbers>
struct RandomTraits : DefaultTraits {
  static constexpr bool kRandom = true;
  static constexpr bool kSigns = std::is_same_v<Numbers, Signs>;
  static constexpr bool kFast = std::is_same_v<Numbers, FastNormals>;
};
template <class Base, class Numbers>
struct Traits<Drawn<Base, Numbers>> : RandomTraits<Numbers> {};
template <>
struct Traits<MaskPack> : DefaultTraits {
  static constexpr bool kInput = true;
  static constexpr int kInputBytes = 1;
};
template <>
struct Traits<MaskUnpack> : DefaultTraits {
  static constexpr bool kInput = true;
  static constexpr bool kBits = true;
  static constexpr int kInputBytes = 4;
};

}  // namespace sk::phases
