// restore: param <- backup, the bits as they are: a step from the backup that is never taken.
// Lists: params[T] mutated; T is an unsigned integer of the element's size.
// Twins: sparse_kernels/reference/restore.py, sparse_kernels/triton/restore.py.
#pragma once

#include "streams.h"

namespace sk {

template <class T>
struct Restore {
  using Math = T;
  using Lists = StreamList<InOut<T>>;
  static constexpr Reduce kReduce = Reduce::kNone;
  static constexpr bool kGenerated = false;
  static constexpr Backup kBackup = Backup::kRestores;

  struct Functor {
    SK_HD bool enabled() const { return false; }
    SK_HD void operator()(T&) const {}
  };
  SK_HD Functor bind(int64_t) const { return {}; }
};

}  // namespace sk
