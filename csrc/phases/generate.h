// Computed inputs: sums of random directions, and the words of a mask.
// The order of the fma is that of csrc/cpu/generate.h, so the bits are the same.
#pragma once

#include <cstdint>

#include "../core/normal.h"
#include "../core/philox.h"
#include "registers.h"
#include "table.h"

namespace sk::phases {

// s[u][i] <- fma(c, z, s[u][i]) for U groups of V elements; group u starts at number `first` +
// u * stride of the stream, which is a call's first one.
template <int kRounds, bool kFast, int V, int U, class Math>
SK_HD void add_whole_calls(Math c, const RoundKeys& keys, uint32_t uid, uint32_t direction,
                           int64_t first, int64_t stride, Math (*s)[V]) {
  SK_UNROLLED
  for (int u = 0; u < U; ++u) {
    const uint64_t call = uint64_t(first + u * stride) / kNormalsPerBlock;
    SK_UNROLLED
    for (int i = 0; i < V; i += kNormalsPerBlock) {
      float z[kNormalsPerBlock];
      normals_of<kFast>(
          philox<kRounds>(call + uint64_t(i / kNormalsPerBlock), uid, direction, keys), z);
      SK_UNROLLED
      for (int j = 0; j < kNormalsPerBlock; ++j) s[u][i + j] = fma(c, Math(z[j]), s[u][i + j]);
    }
  }
}

// The same from any number on: V / 4 + 1 calls per group, one after the other. The code is there
// once, and all elements are tried for every call, since an index would put s into memory.
template <bool kFast, int V, int U, class Math>
SK_HD void add_split_calls(Math c, int rounds, const RoundKeys& keys, uint32_t uid,
                           uint32_t direction, int64_t first, int64_t stride, Math (*s)[V]) {
  constexpr int kCalls = V / kNormalsPerBlock + 1;
  const int before = int(first % kNormalsPerBlock);  // numbers of the first call
  SK_UNROLL(1)
  for (int n = 0; n < U * kCalls; ++n) {
    const int group = n / kCalls, mine = n % kCalls;
    const uint64_t call = uint64_t(first + group * stride) / kNormalsPerBlock + uint64_t(mine);
    float z[kNormalsPerBlock], x[kNormalsPerBlock];
    normals_of<kFast>(rounds == 7 ? philox<7>(call, uid, direction, keys)
                                  : philox<10>(call, uid, direction, keys),
                      z);
    // x[i] = z[(i + before) % 4], by 2 and by 1
    SK_UNROLLED
    for (int i = 0; i < 4; ++i) x[i] = before & 2 ? z[(i + 2) % 4] : z[i];
    SK_UNROLLED
    for (int i = 0; i < 4; ++i) z[i] = before & 1 ? x[(i + 1) % 4] : x[i];
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      SK_UNROLLED
      for (int i = 0; i < V; ++i) {
        const bool here = u == group && (i + before) / kNormalsPerBlock == mine;
        if (here) s[u][i] = fma(c, Math(z[i % 4]), s[u][i]);
      }
    }
  }
}

// s[u][i] <- fma(coef[k], z_k, s[u][i]), k ascending, for U groups of V elements; group u starts at
// number `first` + u * stride of the stream, V and stride multiples of 4. kRounds: 0 where first is
// none.
template <int kRounds, bool kFast, int V, int U, class Math>
SK_HD void add_normals(const Directions<Math>& stream, uint64_t key, uint32_t uid, int64_t first,
                       int64_t stride, Math (*s)[V]) {
  SK_UNROLL(1)
  for (int k = 0; k < stream.q; ++k) {
    const Math c = stream.coef[k];
    const uint32_t direction = stream.direction(k);
    // computed per direction: 20 round keys kept in registers would spill
    const RoundKeys keys = round_keys(opaque(key));
    if constexpr (kRounds == 0) {
      add_split_calls<kFast, V, U>(c, stream.rounds, keys, uid, direction, first, stride, s);
    } else {
      add_whole_calls<kRounds, kFast, V, U>(c, keys, uid, direction, first, stride, s);
    }
  }
}

// f.operator()<kRounds>(), as above, for groups that start at `first` and multiples of 4 from it.
template <class Math, class F>
SK_HD void dispatch_rounds(const Directions<Math>& stream, int64_t first, const F& f) {
  if (first % kNormalsPerBlock != 0) {
    f.template operator()<0>();
  } else if (stream.rounds == 7) {
    f.template operator()<7>();
  } else {
    f.template operator()<10>();
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

// The signs of 128 elements from number `first` of the stream on.
template <class Math>
SK_HD Words sign_words(const Directions<Math>& stream, const RoundKeys& keys, uint32_t uid,
                       uint32_t direction, int64_t first) {
  const uint64_t call = uint64_t(first) / kSignsPerBlock;
  const auto offset = uint32_t(first) % kSignsPerBlock;
  const Words w = stream.rounds == 7 ? philox<7>(call, uid, direction, keys)
                                     : philox<10>(call, uid, direction, keys);
  if (offset == 0) return w;
  const Words next = stream.rounds == 7 ? philox<7>(call + 1, uid, direction, keys)
                                        : philox<10>(call + 1, uid, direction, keys);
  return shifted_signs(w, next, offset);
}

// One call per thread: signs of direction `k` + thread / (calls per direction), elements from
// `tile`
template <class Math, class Memory, class Block>
SK_HD void draw_signs(const Memory& memory, const Directions<Math>& stream, uint64_t key,
                      const Block& block, const SignTiling& tiling, int tile, int k, int thread,
                      uint32_t* words) {
  const int calls = tiling.elements() / kSignsPerBlock;
  const int mine = k + thread / calls;
  const int element = tile + thread % calls * kSignsPerBlock;
  if (mine >= stream.q || element >= block.size) return;
  const Words w = sign_words(stream, round_keys(opaque(key)), block.uid(), stream.direction(mine),
                             block.first() + block.begin + element);
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

}  // namespace sk::phases
