// compaction: the entries of a support, and moving them in and out of contiguous memory.
//   live_mask: bit i of word w = shrink(dual, lam) != 0 for dual 32 w + i: |dual| > lam, or dual >
//     lam where nonnegative; NaN is live
//   mask_index: the p-th one of a mask is written to place ranks[tile] - ranks[0] + (ones of the
//     tile before it), where there is such a place
//   gather_entries, scatter_entries: value run k + j <-> element run index[k] + j, raw bits
// Lists: words[uint32], index[int32] or values mutated; duals, words, tensors const. scatter:
// tensors mutated. Units: lam >= 0.
// Twins: sparse_kernels/reference/compaction.py, sparse_kernels/triton/compaction.py.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "bregman_step.h"
#include "mask_pack.h"

namespace sk {

template <class T>
struct LiveMask {
  using Math = uint32_t;
  using Lists = StreamList<Out<uint32_t>>;
  static constexpr Reduce kReduce = Reduce::kNone;
  static constexpr bool kGenerated = true;

  struct Functor : AlwaysEnabled {
    T lower, lam;  // what lies between is zero

    SK_HD bool live(T dual) const { return shrink(dual, lower, lam) != T(0); }
    SK_HD void operator()(uint32_t word, uint32_t& out) const { out = word; }
  };

  Functor functor;
  SK_HD Functor bind(int64_t) const { return functor; }
};

template <class T>
LiveMask<T> live_mask(double lam, bool nonnegative) {
  LiveMask<T> op;
  op.functor.lam = T(lam);
  op.functor.lower = nonnegative ? -std::numeric_limits<T>::infinity() : -T(lam);
  return op;
}

}  // namespace sk
