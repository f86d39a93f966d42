// How an elementwise op describes itself to for_each, on the CPU and in CUDA kernels alike.
//
// An op is a struct with
//   using Math     the type of the arithmetic (opmath of the parameters)
//   using Lists    StreamList of the tensors it walks, in the order of the functor's arguments;
//                  stream 0 is the one a backup is taken of
//   kReduce        what the functor returns: nothing, a value to sum, or a 0/1 to count
//   kGenerated     whether a computed input (random numbers, mask words) comes first
//   kInverted      optional: it walks the entries whose mask bit is 0, not those whose bit is 1
//   bind(t)        the functor for tensor t of the list: scalars only, no pointers, no indices.
//                  Its enabled() says whether the op writes at all (a norm may not be finite).
// Loads, stores, tails, mask bits and threads belong to for_each.
#pragma once

#include <cstddef>
#include <tuple>

#include "../core/types.h"

namespace sk {

enum class Role { kIn, kOut, kInOut };
enum class Reduce { kNone, kSum, kCount };

template <class T, Role kRole>
struct Stream {
  using Storage = T;
  using Value = opmath_t<T>;
  static constexpr Role role = kRole;
};

template <class T>
using In = Stream<T, Role::kIn>;
template <class T>
using Out = Stream<T, Role::kOut>;
template <class T>
using InOut = Stream<T, Role::kInOut>;

template <class... S>
struct StreamList {
  static constexpr size_t size = sizeof...(S);
  template <size_t I>
  using At = std::tuple_element_t<I, std::tuple<S...>>;
};

// what a mask word is xor-ed with before the op sees it
template <class Op>
constexpr uint32_t mask_flip() {
  if constexpr (requires { Op::kInverted; }) {
    return Op::kInverted ? ~0u : 0u;
  } else {
    return 0u;
  }
}

struct AlwaysEnabled {
  SK_HD bool enabled() const { return true; }
};

}  // namespace sk
