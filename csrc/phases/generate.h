// Computed inputs: sums of random directions, and the words or bytes of a mask.
// The order of the fma is that of csrc/cpu/generate.h, so the bits are the same.
#pragma once

#include <cstdint>

#include "../core/normal.h"
#include "../core/philox.h"
#include "registers.h"
#include "table.h"

namespace sk::phases {

// s[u][i] <- fma(coef[k], z_k, s[u][i]), k ascending, for U groups of V elements; group u starts at
// element `first` + u * stride of the tensor, a multiple of V, V a multiple of 4.
template <int kRounds, int V, int U, class Math>
SK_HD void add_normals(const Directions<Math>& stream, uint64_t key, uint32_t uid, int64_t first,
                       int64_t stride, Math (*s)[V]) {
  SK_UNROLL(1)
  for (int k = 0; k < stream.q; ++k) {
    const Math c = stream.coef[k];
    const uint32_t direction = stream.direction(k);
    // computed per direction: 20 round keys kept in registers would spill
    const RoundKeys keys = round_keys(opaque(key));
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      const uint64_t call = uint64_t(first + u * stride) / kNormalsPerBlock;
      SK_UNROLLED
      for (int i = 0; i < V; i += kNormalsPerBlock) {
        const Words w =
            philox<kRounds>(call + uint64_t(i / kNormalsPerBlock), uid, direction, keys);
        const NormalPair low = box_muller(w.x[0], w.x[1]);
        const NormalPair high = box_muller(w.x[2], w.x[3]);
        s[u][i] = fma(c, Math(low.even), s[u][i]);
        s[u][i + 1] = fma(c, Math(low.odd), s[u][i + 1]);
        s[u][i + 2] = fma(c, Math(high.even), s[u][i + 2]);
        s[u][i + 3] = fma(c, Math(high.odd), s[u][i + 3]);
      }
    }
  }
}

// How the sign words of a chunk share 2,048 words of shared memory: one Philox call per thread is
// 65,536 signs, of one direction over the whole chunk or of D directions over a D-th of it.
struct SignTiling {
  int shift;  // log2 of D, the directions drawn together

  SK_HD SignTiling(int q, int most) : shift(0) {
    while ((1 << shift) < q && (1 << shift) < most) ++shift;
  }
  SK_HD int directions() const { return 1 << shift; }
  SK_HD int elements() const { return int(kChunkSize) >> shift; }
  SK_HD int words() const { return elements() / 32; }  // of one direction
};

constexpr int kSignWords = kChunkSize / 32;

// One call per thread: signs of direction `k` + thread / (calls per direction), elements from
// `tile`
template <class Math, class Memory>
SK_HD void draw_signs(const Memory& memory, const Directions<Math>& stream, uint64_t key,
                      uint32_t uid, int64_t begin, int size, const SignTiling& tiling, int tile,
                      int k, int thread, uint32_t* words) {
  const int calls = tiling.elements() / kSignsPerBlock;
  const int mine = k + thread / calls;
  const int element = tile + thread % calls * kSignsPerBlock;
  if (mine >= stream.q || element >= size) return;
  const uint64_t call = uint64_t(begin + element) / kSignsPerBlock;
  const uint32_t direction = stream.direction(mine);
  const RoundKeys keys = round_keys(opaque(key));
  const Words w = stream.rounds == 7 ? philox<7>(call, uid, direction, keys)
                                     : philox<10>(call, uid, direction, keys);
  Packet<16> packet;
  SK_UNROLLED
  for (int i = 0; i < 4; ++i) packet.words[i] = w.x[i];
  memory.store(reinterpret_cast<Packet<16>*>(words + 4 * thread), packet);
}

// Adds the directions of one drawing to U groups of V elements; `at` counts from the tile's start.
template <int V, int U, class Math, class Memory>
SK_HD void add_signs(const Memory& memory, const Directions<Math>& stream, const SignTiling& tiling,
                     int k, const uint32_t* words, int at, int stride, Math (*s)[V]) {
  const int drawn = stream.q - k < tiling.directions() ? stream.q - k : tiling.directions();
  for (int d = 0; d < drawn; ++d) {
    const Math c = stream.coef[k + d];
    const uint32_t* mine = words + d * tiling.words();
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      const uint32_t signs = memory.load(mine + (at >> 5) + u * (stride / 32)) >> (at & 31);
      SK_UNROLLED
      for (int i = 0; i < V; ++i) s[u][i] = s[u][i] + ((signs >> i) & 1u ? -c : c);
    }
  }
}

// Word `index` of a mask from the bool bytes of its tensor.
template <class Functor, class Memory, class Block>
SK_HD uint32_t computed(const MaskPack&, const Functor&, const Memory& memory, const Block& block,
                        int64_t index) {
  const char* p = block.input() + 32 * index;
  const int64_t left = block.input_numel() - 32 * index;
  uint8_t x[32];
  if (left >= 32 && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
    load_vector<uint8_t, 32>(memory, p, x);
  } else {
    load_elements<uint8_t, 32>(memory, p, left >= 32 ? 0xffffffffu : (1u << left) - 1u, x);
  }
  return MaskPack::word(x, 32, 0);
}

template <class Functor, class Memory, class Block>
SK_HD uint8_t computed(const MaskUnpack&, const Functor&, const Memory& memory, const Block& block,
                       int64_t index) {
  const auto* words = reinterpret_cast<const uint32_t*>(block.input());
  const uint32_t word = memory.load(words + index / 32);
  return mask_bit(&word, index % 32);
}

// Ones of tile `index`, by 16-byte accesses where they are aligned.
template <class Functor, class Memory, class Block>
SK_HD int64_t computed(const MaskCount&, const Functor&, const Memory& memory, const Block& block,
                       int64_t index) {
  const char* p = block.input() + index * MaskCount::kWords * 4;
  const int64_t left = block.input_numel() - index * MaskCount::kWords;
  const int count = int(left < MaskCount::kWords ? left : MaskCount::kWords);
  const bool aligned = reinterpret_cast<uintptr_t>(p) % 16 == 0;
  int64_t ones = 0;
  int w = 0;
  if (aligned) {
    SK_UNROLL(4)
    for (; w + 4 <= count; w += 4) {
      uint32_t words[4];
      load_vector<uint32_t, 4>(memory, p + 4 * w, words);
      SK_UNROLLED
      for (int i = 0; i < 4; ++i) ones += popcount(words[i]);
    }
  }
  for (; w < count; ++w) ones += popcount(memory.load(reinterpret_cast<const uint32_t*>(p) + w));
  return ones;
}

}  // namespace sk::phases
