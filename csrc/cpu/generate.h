// Random numbers for one block on the CPU: the computed input of zo_combine and zo_norm2.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/normal.h"
#include "../core/philox.h"
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
                               int64_t tile, uint32_t* words) {
  const uint64_t block = uint64_t(tile) * (kTile / kSignsPerBlock);
#pragma omp simd
  for (int j = 0; j < kTile / kSignsPerBlock; ++j) {
    const Words w = philox<kRounds, uint64_t>(block + uint64_t(j), uid, direction, keys);
    words[4 * j] = w.x[0];
    words[4 * j + 1] = w.x[1];
    words[4 * j + 2] = w.x[2];
    words[4 * j + 3] = w.x[3];
  }
}

// Sign words of the tile that holds element `first`, for all q directions: words[k * kTileWords +
// i].
template <class Math, class S>
void draw_tile(const Directions<Math>& stream, const RoundKeys& keys, uint32_t uid, int64_t first,
               S& scratch) {
  const int64_t tile = first / kTile;
  if (scratch.tile == tile) return;
  scratch.tile = tile;
  scratch.words.resize(size_t(stream.q) * kTileWords);
  for (int k = 0; k < stream.q; ++k) {
    uint32_t* words = scratch.words.data() + size_t(k) * kTileWords;
    if (stream.rounds == 7) {
      fill_sign_words<7>(keys, uid, stream.direction(k), tile, words);
    } else {
      fill_sign_words<10>(keys, uid, stream.direction(k), tile, words);
    }
  }
}

// Direction k of one block: normals, or nothing where signs come from the tile's words.
template <class Math>
void draw_normals(const Directions<Math>& stream, const RoundKeys& keys, uint32_t uid, int k,
                  int64_t first, int n, float* z) {
  if (stream.rounds == 7) {
    fill_normals<7>(keys, uid, stream.direction(k), first, n, z);
  } else {
    fill_normals<10>(keys, uid, stream.direction(k), first, n, z);
  }
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
  SK_HD void generate(int64_t, uint32_t uid, int64_t first, int n, typename Base::Math* s,
                      S& scratch) const {
    using Math = typename Base::Math;
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) s[i] = Math(0);
    if (this->stream.signs) draw_tile(this->stream, keys, uid, first, scratch);
    for (int k = 0; k < this->stream.q; ++k) {
      const Math c = this->stream.coef[k];
      if (this->stream.signs) {
        const uint32_t* words = scratch.words.data() + size_t(k) * kTileWords;
        add_signs(c, words + (first % kTile) / 32, n, s);
      } else {
        float* z = scratch.noise;
        draw_normals(this->stream, keys, uid, k, first, n, z);
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
