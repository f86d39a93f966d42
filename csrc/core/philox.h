// Philox-4x32 words: the random stream, version 1 (docs/random-stream.md).
//   counter = (low32(block), high32(block), uid, direction), key = (low32(K), high32(K))
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.
// Twins: core/simd_philox.h, sparse_kernels/reference/philox.py, sparse_kernels/triton/philox.py.
#pragma once

#include <cstdint>

#include "macros.h"

namespace sk {

constexpr int kNormalsPerBlock = 4;              // one call serves four elements
constexpr int kSignsPerBlock = 128;              // one call serves 128 elements
constexpr uint32_t kKdfDirection = 0xffffffffu;  // reserved for step keys

struct Words {
  uint32_t x[4];
};

// The key schedule depends on the key alone, so it is computed once per call.
struct RoundKeys {
  uint32_t k0[10];
  uint32_t k1[10];
};

SK_HD RoundKeys round_keys(uint64_t key) {
  RoundKeys keys{};
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int r = 0; r < 10; ++r) {
    keys.k0[r] = k0;
    keys.k1[r] = k1;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return keys;
}

template <int kRounds>
SK_HD Words philox(uint64_t block, uint32_t uid, uint32_t direction, const RoundKeys& keys) {
  uint32_t c0 = uint32_t(block), c1 = uint32_t(block >> 32), c2 = uid, c3 = direction;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int r = 0; r < kRounds; ++r) {
    // a 64-bit product, so that the compiler emits one wide multiply
    const uint64_t p0 = uint64_t(0xd2511f53u) * c0;
    const uint64_t p1 = uint64_t(0xcd9e8d57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ keys.k0[r];
    c2 = uint32_t(p0 >> 32) ^ c3 ^ keys.k1[r];
    c1 = uint32_t(p1);
    c3 = uint32_t(p0);
  }
  return {{c0, c1, c2, c3}};
}

// Step key K(seed, t, stream): words 0 and 1 of Philox-10 under the key `seed`.
SK_HD uint64_t derive_key(uint64_t seed, uint64_t t, uint32_t stream) {
  const Words w = philox<10>(t, stream, kKdfDirection, round_keys(seed));
  return uint64_t(w.x[0]) | uint64_t(w.x[1]) << 32;
}

// Signs that do not begin with a call: bits [offset, offset + 128) of two calls in a row.
SK_HD Words shifted_signs(const Words& call, const Words& next, uint32_t offset) {
  uint32_t x[8] = {call.x[0], call.x[1], call.x[2], call.x[3],
                   next.x[0], next.x[1], next.x[2], next.x[3]};
  // by 2 words, by 1, by bits: an index of its own would put x into memory
  SK_UNROLLED
  for (int i = 0; i < 6; ++i) x[i] = offset & 64u ? x[i + 2] : x[i];
  SK_UNROLLED
  for (int i = 0; i < 5; ++i) x[i] = offset & 32u ? x[i + 1] : x[i];
  Words w;
  SK_UNROLLED
  for (int i = 0; i < 4; ++i) {
    w.x[i] = uint32_t((uint64_t(x[i + 1]) << 32 | x[i]) >> (offset & 31u));
  }
  return w;
}

}  // namespace sk
