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

// Loops over a block have a constant length: what is not there is no candidate.
template <class Keys>
struct RankedBlock {
  using Key = typename Keys::Key;
  static constexpr int kWords = kBlock / 32;

  int words;              // mask words of the block that exist
  uint32_t here[kWords];  // bits of the candidates
  alignas(kStreamAlign) Key keys[kBlock];

  // Reads elements [first, end) or the first kBlock of them; false, and no keys, where none of them
  // is a candidate.
  SK_HD bool open(const Source<Keys>& source, const Segment& segment, int64_t first, int64_t end) {
    const uint32_t* mask = segment.mask ? segment.mask + first / 32 : nullptr;
    if (end - first >= kBlock) return read(source, segment, first, mask, kBlock, kWords);
    const int n = int(end - first);
    std::fill(here, here + kWords, 0u);
    std::fill(keys + n, keys + kBlock, Key(0));
    return read(source, segment, first, mask, n, int(words_of(n)));
  }

  // bits of the candidates with a key in [low, low + span]
  SK_HD void between(BitsBetween<Key> compare, Key low, Key span, uint32_t* bits) const {
    compare(keys, kWords, low, span, bits);
    for (int w = 0; w < kWords; ++w) bits[w] &= here[w];
  }

 private:
  SK_HD bool read(const Source<Keys>& source, const Segment& segment, int64_t first,
                  const uint32_t* mask, int n, int count) {
    words = count;
    const uint32_t flip = source.inverted ? ~0u : 0u;
    for (int w = 0; w < count; ++w) here[w] = mask ? mask[w] ^ flip : ~0u;
    if (n % 32) here[count - 1] = existing_bits(here[count - 1], n % 32);
    if (mask && !any_bit(here, kBlock)) return false;
    fill_keys(source, segment, first, n, keys);
    return true;
  }
};

}  // namespace sk::cpu
