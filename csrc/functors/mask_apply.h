// mask_apply: +0.0 where the mask bit is 0.
// Lists: tensors[T] mutated; T is an unsigned integer of the element's size.
// Twins: sparse_kernels/reference/mask_apply.py, sparse_kernels/triton/mask_apply.py.
#pragma once

#include "streams.h"

namespace sk {

template <class T>
struct MaskApply {
  using Math = T;
  using Lists = StreamList<Out<T>>;
  static constexpr Reduce kReduce = Reduce::kNone;
  static constexpr bool kGenerated = false;
  static constexpr bool kInverted = true;

  struct Functor : AlwaysEnabled {
    SK_HD void operator()(T& x) const { x = T(0); }
  };
  SK_HD Functor bind(int64_t) const { return {}; }
};

}  // namespace sk
