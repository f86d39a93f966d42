// What the block programs need to know of an op beyond functors/streams.h.
#pragma once

#include "../functors/bregman_step.h"
#include "../functors/mask_apply.h"
#include "../functors/mask_count.h"
#include "../functors/mask_pack.h"
#include "../functors/masked_perturb.h"
#include "../functors/norm.h"
#include "../functors/restore.h"
#include "../functors/restore_adamw.h"
#include "../functors/restore_sgd.h"
#include "../functors/zo_combine.h"

namespace sk::phases {

// zo_combine or zo_norm2 with s as its computed input
template <class Base, bool kSignsOp>
struct Drawn : Base {
  static constexpr bool kSigns = kSignsOp;
};

// An op whose backup is packed by the mask, into one tensor for the whole list.
template <class Base>
struct Packed : Base {};

struct DefaultTraits {
  static constexpr bool kPacked = false;  // its backup is packed
  static constexpr bool kRandom = false;  // computed input: a sum of random directions
  static constexpr bool kSigns = false;   // of signs, else normals
  static constexpr bool kInput = false;   // computed input: from another list
  static constexpr int kInputBytes = 0;   // of an element of that list
};

template <class Op>
struct Traits : DefaultTraits {};

template <class Base>
struct Traits<Packed<Base>> : Traits<Base> {
  static constexpr bool kPacked = true;
};
template <class T, bool kSource, bool kSumsq, bool kSignsOp>
struct Traits<Drawn<ZoCombine<T, kSource, kSumsq>, kSignsOp>> : DefaultTraits {
  static constexpr bool kRandom = true;
  static constexpr bool kSigns = kSignsOp;
};
template <class T, bool kSignsOp>
struct Traits<Drawn<ZoNorm2<T>, kSignsOp>> : DefaultTraits {
  static constexpr bool kRandom = true;
  static constexpr bool kSigns = kSignsOp;
};
template <>
struct Traits<MaskPack> : DefaultTraits {
  static constexpr bool kInput = true;
  static constexpr int kInputBytes = 1;
};
template <>
struct Traits<MaskUnpack> : DefaultTraits {
  static constexpr bool kInput = true;
  static constexpr int kInputBytes = 4;
};
template <>
struct Traits<MaskCount> : DefaultTraits {
  static constexpr bool kInput = true;
  static constexpr int kInputBytes = 4;
};

}  // namespace sk::phases
