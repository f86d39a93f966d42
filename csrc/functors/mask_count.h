// mask_count: ones of a bit mask, per tile of 256 words (8,192 entries).
// Lists: counts[int64] mutated; the words are a computed input. Padding bits are 0.
// Twins: sparse_kernels/reference/mask_count.py, sparse_kernels/triton/mask_count.py.
#pragma once

#include "mask_pack.h"

namespace sk {

struct MaskCount : CopyGenerated<int64_t> {
  static constexpr int kWords = 256;  // of a tile

  const void* const* inputs;  // [tensors] words
  const int64_t* numels;      // [tensors] words

  SK_HD int64_t value(int64_t tensor, int64_t tile) const {
    const int64_t first = tile * kWords, left = numels[tensor] - first;
    const auto* words = static_cast<const uint32_t*>(inputs[tensor]) + first;
    const int count = int(left < kWords ? left : kWords);
    int32_t ones = 0;
    for (int w = 0; w < count; ++w) ones += popcount(words[w]);
    return ones;
  }
};

}  // namespace sk
