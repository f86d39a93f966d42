// Bit masks: bit i (least significant first) of word w is element 32 w + i; padding bits are 0.
//
// Entries with bit 1 can be packed: entry e of a tensor stands at
//   ranks[e / kRankTile] + (ones of the mask between the tile's first entry and e)
// of one flat tensor that all tensors of a call share.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"
#include "math.h"

namespace sk {

SK_HD int64_t words_of(int64_t numel) { return (numel + 31) / 32; }
SK_HD int64_t tiles_of(int64_t numel) { return (numel + kRankTile - 1) / kRankTile; }

SK_HD bool mask_bit(const uint32_t* words, int64_t i) { return (words[i >> 5] >> (i & 31)) & 1u; }

// The bits of a word of which the first `left` elements exist.
SK_HD uint32_t existing_bits(uint32_t word, int64_t left) {
  return left >= 32 ? word : word & ((1u << left) - 1u);
}

// Ones among the first n elements; words[0] holds the first of them.
SK_HD int64_t count_ones(const uint32_t* words, int64_t n) {
  int64_t ones = 0, w = 0;
#if !defined(__CUDA_ARCH__)
  for (; w + 2 <= n / 32; w += 2) {  // the instruction counts 64 bits as fast as 32
    uint64_t pair;
    std::memcpy(&pair, words + w, sizeof(pair));
    ones += __builtin_popcountll(pair);
  }
#endif
  for (; w < n / 32; ++w) ones += popcount(words[w]);
  return n % 32 ? ones + popcount(existing_bits(words[n / 32], n % 32)) : ones;
}

// Whether `ones` entries from `place` on lie inside a packed tensor: false only where the ranks do
// not belong to the mask, or the tensor is too small.
SK_HD bool places_exist(int64_t place, int64_t ones, int64_t capacity) {
  return place >= 0 && place <= capacity - ones;
}

}  // namespace sk
