// Random numbers for one block on the CPU: the computed input of zo_combine and zo_norm2.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../core/normal.h"
#include "../core/philox.h"
#include "../core/segment.h"
#include "../functors/zo_combine.h"
#include "block.h"

namespace sk::cpu {

// Sign words are drawn for a tile of 32 Philox calls at a time, so that the calls vectorise.
constexpr int kTile = 32 * kSignsPerBlock;  // elements
constexpr int kTileWords = kTile / 32;

// normals [first, first + n) for n <= kBlock, first a multiple of 4; writes up to a multiple of 4
template <int kRounds>
SK_CLONES void fill_normals(const RoundKeys& keys, uint32_t uid, uint32_t direction, int64_t first,
                            int n, float* z) {
  constexpr int kCalls = kBlock / kNormalsPerBlock;
  const uint64_t block = uint64_t(first) / kNormalsPerBlock;
  const int calls = (n + kNormalsPerBlock - 1) / kNormalsPerBlock;
  // three plain loops over arrays: each vectorises at its own lane width
  alignas(kStreamAlign) uint32_t a[2 * kCalls], b[2 * kCalls];
  alignas(kStreamAlign) float even[2 * kCalls], odd[2 * kCalls];
#pragma omp simd
  for (int j = 0; j < kCalls; ++j) {
    const Words w = philox<kRounds, uint64_t>(block + uint64_t(j), uid, direction, keys);
    a[j] = w.x[0];
    b[j] = w.x[1];
    a[kCalls + j] = w.x[2];
    b[kCalls + j] = w.x[3];
  }
#pragma omp simd
  for (int j = 0; j < 2 * kCalls; ++j) {
    const NormalPair pair = box_muller(a[j], b[j]);
    even[j] = pair.even;
    odd[j] = pair.odd;
  }
#pragma omp simd
  for (int j = 0; j < calls; ++j) {
    z[4 * j] = even[j];
    z[4 * j + 1] = odd[j];
    z[4 * j + 2] = even[kCalls + j];
    z[4 * j + 3] = odd[kCalls + j];
  }
}

template <int kRounds>
SK_CLONES void fill_sign_words(const RoundKeys& keys, uint32_t uid, uint32_t direction,
                               uint64_t block, uint32_t* words) {
#pragma omp simd
  for (int j = 0; j < kTile / kSignsPerBlock; ++j) {
    const Words w = philox<kRounds, uint64_t>(block + uint64_t(j), uid, direction, keys);
    words[4 * j] = w.x[0];
    words[4 * j + 1] = w.x[1];
    words[4 * j + 2] = w.x[2];
    words[4 * j + 3] = w.x[3];
  }
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

template <class Math>
SK_HD void add_signs(Math c, const uint32_t* words, int n, Math* s) {
  for (int w = 0; w * 32 < n; ++w) {
    const uint32_t word = words[w];
#pragma omp simd
    for (int i = 0; i < 32; ++i) {
      // c z + s with z = +1 or -1 is one exact product and one rounding, with or without fma
      s[32 * w + i] = s[32 * w + i] + ((word >> i) & 1u ? -c : c);
    }
  }
}

// zo_combine or zo_norm2 with s as its computed input
template <class Base>
struct Drawn : Base {
  RoundKeys keys;

  template <class S>
  SK_HD void generate(int64_t, const Segment& segment, int64_t first, int n, typename Base::Math* s,
                      S& scratch) const {
    using Math = typename Base::Math;
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) s[i] = Math(0);
    if (this->stream.signs) draw_tile(this->stream, keys, segment, first, scratch);
    for (int k = 0; k < this->stream.q; ++k) {
      const Math c = this->stream.coef[k];
      if (this->stream.signs) {
        const uint32_t* words = scratch.words.data() + size_t(k) * kTileWords;
        add_signs(c, words + (first % kTile) / 32, n, s);
      } else {
        const float* z = draw_normals(this->stream, keys, segment, k, first, n, scratch.noise);
#pragma omp simd
        for (int i = 0; i < kBlock; ++i) s[i] = fma(c, Math(z[i]), s[i]);
      }
    }
  }
};

template <class Base>
Drawn<Base> drawn(Base base) {
  Drawn<Base> op{base, {}};
  op.keys = round_keys(uint64_t(*base.stream.key));
  return op;
}

}  // namespace sk::cpu
