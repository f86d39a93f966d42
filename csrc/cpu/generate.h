// Random numbers for one block on the CPU: the computed input of zo_combine and zo_norm2.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/normal.h"
#include "../core/philox.h"
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
void fill_sign_words(const RoundKeys& keys, uint32_t uid, uint32_t direction, int64_t tile,
                     uint32_t* words) {
  constexpr int kCalls = kTile / kSignsPerBlock;
  philox_words<kRounds>(keys, uint64_t(tile) * kCalls, uid, direction, kCalls, words);
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

// s <- fma(coef[k], z_k, s) for one block
template <bool kFirst, class Math>
void add_normals(const Directions<Math>& stream, const RoundKeys& keys, uint32_t uid, int k,
                 int64_t first, Math* s) {
  const AddNormals<Math, kFirst> add{stream.coef[k], s};
  if (stream.rounds == 7) {
    each_normal_pair<7>(keys, uid, stream.direction(k), first, add);
  } else {
    each_normal_pair<10>(keys, uid, stream.direction(k), first, add);
  }
}

template <bool kFirst, class Math>
SK_HD void add_signs(Math c, const uint32_t* words, int n, Math* s) {
  for (int w = 0; w * 32 < n; ++w) {
    const uint32_t word = words[w];
#pragma omp simd
    for (int i = 0; i < 32; ++i) {
      // c z + s with z = +1 or -1 is one exact product and one rounding, with or without fma
      s[32 * w + i] = (kFirst ? Math(0) : s[32 * w + i]) + flip_sign(c, word << (31 - i));
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
    if (!this->stream.signs) {
      add_normals<true>(this->stream, keys, uid, 0, first, s);
      for (int k = 1; k < this->stream.q; ++k)
        add_normals<false>(this->stream, keys, uid, k, first, s);
      return;
    }
    draw_tile(this->stream, keys, uid, first, scratch);
    const uint32_t* words = scratch.words.data() + (first % kTile) / 32;
    add_signs<true>(this->stream.coef[0], words, n, s);
    for (int k = 1; k < this->stream.q; ++k)
      add_signs<false>(this->stream.coef[k], words + size_t(k) * kTileWords, n, s);
  }
};

template <class Base>
Drawn<Base> drawn(Base base) {
  Drawn<Base> op{base, {}};
  op.keys = round_keys(uint64_t(*base.stream.key));
  return op;
}

}  // namespace sk::cpu
