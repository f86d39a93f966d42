// The n best of groups of m on the CPU, a group per vector lane: member c of group g has its key at
// keys[c * lanes + g]. No order of evaluation changes which entries these are (functors/mask_nm.h).
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../core/macros.h"
#include "../core/simd_store.h"
#include "block.h"

namespace sk::cpu {

constexpr int kWide = 32;            // lanes that are sorted at a time
constexpr int64_t kMostWide = 4096;  // members of larger groups are sorted one group at a time

// Memory that is kept from chunk to chunk, on whole cache lines.
template <class T>
class Lines {
  struct alignas(kStreamAlign) Line {
    T x[kStreamAlign / sizeof(T)];
  };
  std::vector<Line> lines_;

 public:
  T* room(int64_t n) {
    constexpr int64_t kOf = int64_t(kStreamAlign / sizeof(T));
    if (int64_t(lines_.size()) * kOf < n) lines_.resize(size_t(n / kOf + 1));
    return lines_.data()->x;
  }
};

// out[g] = bits of the n best of small groups, all pairs of members in registers; member c of group
// g is keys[c * lanes + g], or kM * g + c where the groups stand in a line. The arrays inside the
// loop may not be handed to a function: g++ would keep them in memory.
template <int kM, bool kAcross, class Key>
SK_HD void rank_members(const Key* keys, int64_t lanes, int64_t groups, int32_t n, uint32_t* out) {
#pragma omp simd
  for (int64_t g = 0; g < groups; ++g) {
    Key key[kM];
    int32_t beaten[kM];  // members that rank above: of two equal ones, the earlier
#pragma GCC unroll 16
    for (int c = 0; c < kM; ++c) {
      key[c] = keys[kAcross ? c * lanes + g : kM * g + c];
      beaten[c] = kM - 1 - c;
    }
#pragma GCC unroll 16
    for (int c = 0; c < kM; ++c) {
#pragma GCC unroll 16
      for (int later = 1; later < kM; ++later) {
        if (later <= c) continue;
        const int32_t wins = key[c] >= key[later];
        beaten[later] += wins;
        beaten[c] -= wins;
      }
    }
    uint32_t bits = 0;
#pragma GCC unroll 16
    for (int c = 0; c < kM; ++c) bits |= uint32_t(beaten[c] < n) << c;
    out[g] = bits;
  }
}

// kept[c * lanes + g] = whether member c is among the n best of group g
template <class Key>
using KeepBest = void (*)(const Key* keys, int lanes, int groups, int64_t n, uint8_t* kept);

template <class Key, int kM>
SK_CLONES void keep_best_of(const Key* keys, int lanes, int groups, int64_t n, uint8_t* kept) {
  alignas(kStreamAlign) uint32_t bits[kBlock];
  rank_members<kM, true>(keys, lanes, groups, int32_t(n), bits);
  for (int c = 0; c < kM; ++c, kept += lanes) {
#pragma omp simd
    for (int g = 0; g < groups; ++g) kept[g] = (bits[g] >> c) & 1;
  }
}

// Sorts kLanes groups at once, largest first: Batcher's merge exchange (Knuth 5.2.2, algorithm M).
template <int kLanes, class Key>
SK_HD void sort_lanes(Key* keys, int64_t m) {
  int64_t top = 1;
  while (2 * top < m) top *= 2;
  for (int64_t p = top; p > 0; p /= 2) {
    for (int64_t q = top, r = 0, d = p;; d = q - p, q /= 2, r = p) {
      for (int64_t c = 0; c + d < m; ++c) {
        if ((c & p) != r) continue;
        Key *a = keys + c * kLanes, *b = a + d * kLanes;
#pragma omp simd
        for (int i = 0; i < kLanes; ++i) {
          const Key x = a[i], y = b[i];
          a[i] = x > y ? x : y;
          b[i] = x > y ? y : x;
        }
      }
      if (q == p) break;
    }
  }
}

// Of groups of any size, by the key of the n-th best; `sorted` has room for m * kLanes keys.
template <class Key, int kLanes>
SK_CLONES void keep_best_of_many(const Key* keys, int64_t m, int lanes, int groups, int64_t n,
                                 Key* sorted, uint8_t* kept) {
  const int64_t last = std::max<int64_t>(std::min(n, m), 1) - 1;
  for (int first = 0; first < groups; first += kLanes, keys += kLanes, kept += kLanes) {
    for (int64_t c = 0; c < m; ++c) {
      std::copy(keys + c * lanes, keys + c * lanes + kLanes, sorted + c * kLanes);
    }
    sort_lanes<kLanes>(sorted, m);
    const Key* worst = sorted + last * kLanes;
    using Count = std::conditional_t<kLanes == 1, int64_t, int32_t>;
    Count room[kLanes];  // for members that are equal to the worst: the first of them
    for (int i = 0; i < kLanes; ++i) room[i] = Count(n);
    for (int64_t c = 0; c < last; ++c) {
#pragma omp simd
      for (int i = 0; i < kLanes; ++i) room[i] -= sorted[c * kLanes + i] > worst[i];
    }
    for (int64_t c = 0; c < m; ++c) {
#pragma omp simd
      for (int i = 0; i < kLanes; ++i) {
        const Key own = keys[c * lanes + i];
        const Count equal = (own == worst[i]) & (room[i] > 0);
        room[i] -= equal;
        kept[c * lanes + i] = uint8_t(equal | (own > worst[i]));
      }
    }
  }
}

// Words of groups that fill them: groups of kM entries side by side, kM a power of two.
template <class Key>
using LineWords = void (*)(const Key* keys, int words, int64_t n, uint32_t* out);

template <class Key, int kM>
SK_CLONES void line_words(const Key* keys, int words, int64_t n, uint32_t* out) {
  constexpr int kGroups = kBlock / kM, kPerByte = kM < 8 ? 8 / kM : 1;
  using Bits = std::conditional_t<kM == 16, uint16_t, uint8_t>;
  alignas(kStreamAlign) uint32_t groups[kGroups];
  rank_members<kM, false>(keys, 0, kGroups, int32_t(n), groups);
  alignas(kStreamAlign) Bits joined[kGroups / kPerByte];
#pragma omp simd
  for (int j = 0; j < kGroups / kPerByte; ++j) {
    uint32_t bits = 0;
#pragma GCC unroll 4
    for (int k = 0; k < kPerByte; ++k) bits |= groups[kPerByte * j + k] << (kM * k);
    joined[j] = Bits(bits);
  }
  static_assert(std::endian::native == std::endian::little);
  std::memcpy(out, joined, size_t(words) * sizeof(uint32_t));
}

}  // namespace sk::cpu
