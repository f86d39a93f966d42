// Blocks of a selection on the CPU: which elements are candidates, and their keys.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../core/mask.h"
#include "../core/segment.h"
#include "../core/simd_bits.h"
#include "../core/simd_philox.h"
#include "../functors/ranked.h"
#include "block.h"

namespace sk::cpu {

// What a selection reads, apart from the lists.
template <class Keys>
struct Source {
  Keys keys;
  bool inverted;  // candidates are the entries with mask bit 0
  RoundKeys rounds{};

  explicit Source(const Keys& k, bool inverted_mask = false) : keys(k), inverted(inverted_mask) {
    if constexpr (Keys::kRandom) rounds = round_keys(uint64_t(*k.key));
  }
};

// out[0 .. n) <- keys of elements [first, first + n) of a tensor, n <= kBlock
template <class T>
SK_HD void fill_keys(const Source<ScoreKeys<T>>& source, const Segment& segment, int64_t first,
                     int n, typename ScoreKeys<T>::Key* out) {
  const ScoreKeys<T> keys = source.keys;
  const T* scores = static_cast<const T*>(segment.data[0]) + first;
#pragma omp simd
  for (int i = 0; i < n; ++i) out[i] = keys(scores[i]);
}

SK_HD void fill_keys(const Source<RandomKeys>& source, const Segment& segment, int64_t first, int n,
                     uint32_t* out) {
  // a block may begin and end within a call's four words
  alignas(kStreamAlign) uint32_t words[kBlock + 4 * kPhiloxGroup];
  const uint64_t global = uint64_t(segment.first + first);
  const int calls = (n + int(global % 4) + 3) / 4;
  philox_words<10>(source.rounds, global / 4, 0, 0, calls, words);
  std::copy(words + global % 4, words + global % 4 + n, out);
}

template <class Keys>
struct RankedBlock {
  using Key = typename Keys::Key;

  int words;                   // mask words of the block
  uint32_t here[kBlock / 32];  // bits of the candidates
  alignas(kStreamAlign) Key keys[kBlock];

  // Reads elements [first, end) or the first kBlock of them; false, and no keys, where none of them
  // is a candidate.
  SK_HD bool open(const Source<Keys>& source, const Segment& segment, int64_t first, int64_t end) {
    const int n = int(std::min<int64_t>(kBlock, end - first));
    words = int(words_of(n));
    const uint32_t flip = source.inverted ? ~0u : 0u;
    for (int w = 0; w < words; ++w)
      here[w] = segment.mask ? segment.mask[first / 32 + w] ^ flip : ~0u;
    here[words - 1] = existing_bits(here[words - 1], n - 32 * (words - 1));
    if (!any_bit(here, n)) return false;
    fill_keys(source, segment, first, n, keys);
    std::fill(keys + n, keys + 32 * words, Key(0));
    return true;
  }

  // bits of the candidates with a key in [low, low + span]
  SK_HD void between(Key low, Key span, uint32_t* bits) const {
    static const BitsBetween<Key> bits_between = pick_bits_between<Key>();
    bits_between(keys, words, low, span, bits);
    for (int w = 0; w < words; ++w) bits[w] &= here[w];
  }
};

}  // namespace sk::cpu
