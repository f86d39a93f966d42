// Random numbers for one block on the CPU: the computed input of zo_combine and zo_norm2.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../core/normal.h"
#include "../core/philox.h"
#include "../core/segment.h"
#include "../core/simd_philox.h"
#include "../functors/zo_combine.h"
#include "block.h"

namespace sk::cpu {

// Sign words are drawn for a tile at a time, so that the calls vectorise.
constexpr int kTile = kPhiloxGroup * kSignsPerBlock;  // elements
constexpr int kTileWords = kTile / 32;

// take(i, normal i, normal i + 1) for the kBlock normals from `first` on, a multiple of 4
template <int kRounds, class Take>
SK_CLONES void each_normal_pair(const RoundKeys& keys, uint32_t uid, uint32_t direction,
                                int64_t first, const Take& take) {
  constexpr int kCalls = kBlock / kNormalsPerBlock;
  alignas(kStreamAlign) uint32_t a[2 * kCalls], b[2 * kCalls];
  philox_pairs<kRounds>(keys, uint64_t(first) / kNormalsPerBlock, uid, direction, kCalls, a, b);
#pragma omp simd
  for (int j = 0; j < 2 * kCalls; ++j) {
    const NormalPair pair = box_muller(a[j], b[j]);
    take(2 * j, pair.even, pair.odd);
  }
}

struct KeepNormals {
  float* z;
  SK_HD void operator()(int i, float even, float odd) const {
    z[i] = even;
    z[i + 1] = odd;
  }
};

// s <- fma(c, z, s), with 0 for s where kFirst: clearing s took a third of a step with signs
template <class Math, bool kFirst>
struct AddNormals {
  Math c;
  Math* s;
  SK_HD void operator()(int i, float even, float odd) const {
    s[i] = fma(c, Math(even), kFirst ? Math(0) : s[i]);
    s[i + 1] = fma(c, Math(odd), kFirst ? Math(0) : s[i + 1]);
  }
};

// normals [first, first + kBlock), first a multiple of 4
template <int kRounds>
void fill_normals(const RoundKeys& keys, uint32_t uid, uint32_t direction, int64_t first, int,
                  float* z) {
  each_normal_pair<kRounds>(keys, uid, direction, first, KeepNormals{z});
}

template <int kRounds>
void fill_sign_words(const RoundKeys& keys, uint32_t uid, uint32_t direction, uint64_t block,
                     uint32_t* words) {
  philox_words<kRounds>(keys, block, uid, direction, kTile / kSignsPerBlock, words);
}

// Moves a tile's signs down by `offset` of the first call's; the tile ends inside one more call.
template <int kRounds>
void shift_sign_words(const RoundKeys& keys, uint32_t uid, uint32_t direction, uint64_t block,
                      uint32_t offset, uint32_t* words) {
  constexpr int kWords = kSignsPerBlock / 32;
  for (int i = 0; i < kTileWords; i += kWords) {
    Words call, next;
    std::memcpy(&call, words + i, sizeof(call));
    if (i + kWords < kTileWords) {
      std::memcpy(&next, words + i + kWords, sizeof(next));
    } else {
      next = philox<kRounds>(block + kTile / kSignsPerBlock, uid, direction, keys);
    }
    const Words moved = shifted_signs(call, next, offset);
    std::memcpy(words + i, &moved, sizeof(moved));
  }
}

// Sign words of the tile that holds the segment's element `first`, for all q directions: words[k *
// kTileWords + i].
template <class Math, class S>
void draw_tile(const Directions<Math>& stream, const RoundKeys& keys, const Segment& segment,
               int64_t first, S& scratch) {
  const int64_t tile = first / kTile;
  if (scratch.tile == tile) return;
  scratch.tile = tile;
  scratch.words.resize(size_t(stream.q) * kTileWords);
  const uint64_t start = uint64_t(segment.first) + uint64_t(tile) * kTile;
  const uint64_t block = start / kSignsPerBlock;
  const auto offset = uint32_t(start % kSignsPerBlock);
  const auto draw = [&]<int kRounds>(uint32_t direction, uint32_t* words) {
    fill_sign_words<kRounds>(keys, segment.uid, direction, block, words);
    if (offset) {
      shift_sign_words<kRounds>(keys, segment.uid, direction, block, offset, words);
    }
  };
  for (int k = 0; k < stream.q; ++k) {
    uint32_t* words = scratch.words.data() + size_t(k) * kTileWords;
    if (stream.rounds == 7) {
      draw.template operator()<7>(stream.direction(k), words);
    } else {
      draw.template operator()<10>(stream.direction(k), words);
    }
  }
}

// Direction k of one block of a segment, n normals from element `first` on: drawn into z[kNoise],
// from the first whole call on. Returns where element `first` stands.
template <class Math>
const float* draw_normals(const Directions<Math>& stream, const RoundKeys& keys,
                          const Segment& segment, int k, int64_t first, int n, float* z) {
  const int64_t start = segment.first + first;
  const int before = int(start % kNormalsPerBlock);
  const auto draw = [&]<int kRounds>(uint32_t direction) {
    fill_normals<kRounds>(keys, segment.uid, direction, start - before, n, z);
    if (before) {  // the call in which the block ends
      const uint64_t last = uint64_t(start + n - 1) / kNormalsPerBlock;
      const int64_t at = int64_t(last) * kNormalsPerBlock - (start - before);
      normals_of(philox<kRounds>(last, segment.uid, direction, keys), z + at);
    }
  };
  if (stream.rounds == 7) {
    draw.template operator()<7>(stream.direction(k));
  } else {
    draw.template operator()<10>(stream.direction(k));
  }
  return z + before;
}

// s <- fma(coef[k], z_k, s) for one block
template <bool kFirst, class Math>
void add_normals(const Directions<Math>& stream, const RoundKeys& keys, const Segment& segment,
                 int k, int64_t first, int n, Math* s) {
  const AddNormals<Math, kFirst> add{stream.coef[k], s};
  if (segment.first % kNormalsPerBlock) {  // a shard that starts inside a call
    alignas(kStreamAlign) float noise[kNoise];
    const float* z = draw_normals(stream, keys, segment, k, first, n, noise);
    for (int i = 0; i < kBlock; i += 2) add(i, z[i], z[i + 1]);
    return;
  }
  const int64_t start = segment.first + first;
  if (stream.rounds == 7) {
    each_normal_pair<7>(keys, segment.uid, stream.direction(k), start, add);
  } else {
    each_normal_pair<10>(keys, segment.uid, stream.direction(k), start, add);
  }
}

// s <- s + sum of coef[k] z_k over kCount directions, z_k = +1 or -1 by the bits of words[k *
// kTileWords] and on; with 0 for s where kFirst.
template <bool kFirst, int kCount, class Math>
SK_HD void add_signs(const Math* coef, const uint32_t* words, int n, Math* s) {
  for (int w = 0; w * 32 < n; ++w) {
#pragma omp simd
    for (int i = 0; i < 32; ++i) {
      Math sum = kFirst ? Math(0) : s[32 * w + i];
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) {
        // c z + s with z = +1 or -1 is one exact product and one rounding, with or without fma
        sum = sum + flip_sign(coef[k], words[k * kTileWords + w] << (31 - i));
      }
      s[32 * w + i] = sum;
    }
  }
}

// The same for all q directions, four at a time, so that s is walked a fourth as often.
template <class Math>
SK_HD void sum_signs(const Math* coef, int q, const uint32_t* words, int n, Math* s) {
  const int head = (q - 1) % 4 + 1;
  switch (head) {
    case 1:
      add_signs<true, 1>(coef, words, n, s);
      break;
    case 2:
      add_signs<true, 2>(coef, words, n, s);
      break;
    case 3:
      add_signs<true, 3>(coef, words, n, s);
      break;
    default:
      add_signs<true, 4>(coef, words, n, s);
  }
  for (int k = head; k < q; k += 4)
    add_signs<false, 4>(coef + k, words + size_t(k) * kTileWords, n, s);
}

// zo_combine or zo_norm2 with s as its computed input
template <class Base>
struct Drawn : Base {
  RoundKeys keys;

  template <class S>
  SK_HD void generate(int64_t, const Segment& segment, int64_t first, int n, typename Base::Math* s,
                      S& scratch) const {
    if (!this->stream.signs) {
      add_normals<true>(this->stream, keys, segment, 0, first, n, s);
      for (int k = 1; k < this->stream.q; ++k)
        add_normals<false>(this->stream, keys, segment, k, first, n, s);
      return;
    }
    draw_tile(this->stream, keys, segment, first, scratch);
    const uint32_t* words = scratch.words.data() + (first % kTile) / 32;
    sum_signs(this->stream.coef, this->stream.q, words, n, s);
  }
};

template <class Base>
Drawn<Base> drawn(Base base) {
  Drawn<Base> op{base, {}};
  op.keys = round_keys(uint64_t(*base.stream.key));
  return op;
}

}  // namespace sk::cpu
