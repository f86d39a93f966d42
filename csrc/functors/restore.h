// restore: param <- backup, the bits as they are.
// Lists: params[T] mutated, backup[T] const; T is an unsigned integer of the element's size.
// Twins: sparse_kernels/reference/restore.py, sparse_kernels/triton/restore.py.
#pragma once

#include "streams.h"

namespace sk {

template <class T>
struct Restore {
  using Math = T;
  using Lists = StreamList<Out<T>, In<T>>;
  static constexpr Reduce kReduce = Reduce::kNone;
  static constexpr bool kGenerated = false;

  struct Functor : AlwaysEnabled {
    SK_HD void operator()(T& param, T backup) const { param = backup; }
  };
  SK_HD Functor bind(int64_t) const { return {}; }
};

}  // namespace sk
