// Philox words of many consecutive calls. A lane of 64 bits holds one word of one call, so that the
// products need neither widening nor shuffles. g++ 12 multiplies 64-bit lanes with the slow full
// product (AVX-512) or splits it into 32-bit parts (AVX2), hence intrinsics.
#pragma once

#include <cstdint>

#include "philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sk {

constexpr int kPhiloxGroup = 32;  // calls drawn together: four vectors hide the latency of a round

// Calls block, block + 1, ...: words 0 and 1 of call j to a[2j] and b[2j], words 2 and 3 to
// a[2j + 1] and b[2j + 1]. `calls` is a multiple of kPhiloxGroup.
using PhiloxPairs = void (*)(const RoundKeys& keys, uint64_t block, uint32_t uid,
                             uint32_t direction, int calls, uint32_t* a, uint32_t* b);

template <int kRounds>
void philox_pairs_by_call(const RoundKeys& keys, uint64_t block, uint32_t uid, uint32_t direction,
                          int calls, uint32_t* a, uint32_t* b) {
  for (int j = 0; j < calls; ++j) {
    const Words w = philox<kRounds>(block + uint64_t(j), uid, direction, keys);
    a[2 * j] = w.x[0];
    b[2 * j] = w.x[1];
    a[2 * j + 1] = w.x[2];
    b[2 * j + 1] = w.x[3];
  }
}

#if defined(__x86_64__)
// Only the low half of a lane is ever read: products ignore the upper one.
template <int kRounds>
__attribute__((target("avx512f"))) void philox_pairs_512(const RoundKeys& keys, uint64_t block,
                                                         uint32_t uid, uint32_t direction,
                                                         int calls, uint32_t* a, uint32_t* b) {
  using Lanes = uint64_t __attribute__((vector_size(64)));
  constexpr int kWide = 8, kVectors = 4;
  const Lanes zero{}, lane{0, 1, 2, 3, 4, 5, 6, 7};
  const __m512i m0 = __m512i(zero + 0xd2511f53u), m1 = __m512i(zero + 0xcd9e8d57u);
  for (int j = 0; j < calls; j += kWide * kVectors, a += 64, b += 64) {
    Lanes c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      c0[v] = lane + (block + uint64_t(j + kWide * v));
      c1[v] = c0[v] >> 32;
      c2[v] = zero + uid;
      c3[v] = zero + direction;
    }
#pragma GCC unroll 10
    for (int r = 0; r < kRounds; ++r) {
      const Lanes k0 = Lanes(_mm512_set1_epi32(int(keys.k0[r])));
      const Lanes k1 = Lanes(_mm512_set1_epi32(int(keys.k1[r])));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Lanes p0 = Lanes(_mm512_maskz_mul_epu32(0xff, __m512i(c0[v]), m0));
        const Lanes p1 = Lanes(_mm512_maskz_mul_epu32(0xff, __m512i(c2[v]), m1));
        c0[v] = (p1 >> 32) ^ c1[v] ^ k0;
        c2[v] = (p0 >> 32) ^ c3[v] ^ k1;
        c1[v] = p1;
        c3[v] = p0;
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const auto pack = _MM_PERM_CCAA;  // low halves of the second operand to odd places
      const __m512i x02 = _mm512_mask_shuffle_epi32(__m512i(c0[v]), 0xaaaa, __m512i(c2[v]), pack);
      const __m512i x13 = _mm512_mask_shuffle_epi32(__m512i(c1[v]), 0xaaaa, __m512i(c3[v]), pack);
      _mm512_storeu_si512(a + 2 * kWide * v, x02);
      _mm512_storeu_si512(b + 2 * kWide * v, x13);
    }
  }
}

template <int kRounds>
__attribute__((target("avx2"))) void philox_pairs_256(const RoundKeys& keys, uint64_t block,
                                                      uint32_t uid, uint32_t direction, int calls,
                                                      uint32_t* a, uint32_t* b) {
  using Lanes = uint64_t __attribute__((vector_size(32)));
  constexpr int kWide = 4, kVectors = 4;
  const Lanes zero{}, lane{0, 1, 2, 3};
  const __m256i m0 = __m256i(zero + 0xd2511f53u), m1 = __m256i(zero + 0xcd9e8d57u);
  for (int j = 0; j < calls; j += kWide * kVectors, a += 32, b += 32) {
    Lanes c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      c0[v] = lane + (block + uint64_t(j + kWide * v));
      c1[v] = c0[v] >> 32;
      c2[v] = zero + uid;
      c3[v] = zero + direction;
    }
#pragma GCC unroll 10
    for (int r = 0; r < kRounds; ++r) {
      const Lanes k0 = Lanes(_mm256_set1_epi32(int(keys.k0[r])));
      const Lanes k1 = Lanes(_mm256_set1_epi32(int(keys.k1[r])));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Lanes p0 = Lanes(_mm256_mul_epu32(__m256i(c0[v]), m0));
        const Lanes p1 = Lanes(_mm256_mul_epu32(__m256i(c2[v]), m1));
        c0[v] = (p1 >> 32) ^ c1[v] ^ k0;
        c2[v] = (p0 >> 32) ^ c3[v] ^ k1;
        c1[v] = p1;
        c3[v] = p0;
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const __m256i x02 = _mm256_blend_epi32(__m256i(c0[v]), __m256i(c2[v] << 32), 0xaa);
      const __m256i x13 = _mm256_blend_epi32(__m256i(c1[v]), __m256i(c3[v] << 32), 0xaa);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(a + 2 * kWide * v), x02);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(b + 2 * kWide * v), x13);
    }
  }
}
#endif

template <int kRounds>
PhiloxPairs pick_philox_pairs() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return philox_pairs_512<kRounds>;
  if (__builtin_cpu_supports("avx2")) return philox_pairs_256<kRounds>;
#endif
  return philox_pairs_by_call<kRounds>;
}

template <int kRounds>
void philox_pairs(const RoundKeys& keys, uint64_t block, uint32_t uid, uint32_t direction,
                  int calls, uint32_t* a, uint32_t* b) {
  static const PhiloxPairs pairs = pick_philox_pairs<kRounds>();
  pairs(keys, block, uid, direction, calls, a, b);
}

// The same calls, word i of call j to words[4j + i].
template <int kRounds>
SK_CLONES void philox_words(const RoundKeys& keys, uint64_t block, uint32_t uid, uint32_t direction,
                            int calls, uint32_t* words) {
  alignas(64) uint32_t a[2 * kPhiloxGroup], b[2 * kPhiloxGroup];
  for (int first = 0; first < calls; first += kPhiloxGroup, words += 4 * kPhiloxGroup) {
    philox_pairs<kRounds>(keys, block + uint64_t(first), uid, direction, kPhiloxGroup, a, b);
#pragma omp simd
    for (int j = 0; j < 2 * kPhiloxGroup; ++j) {
      words[2 * j] = a[j];
      words[2 * j + 1] = b[j];
    }
  }
}

}  // namespace sk
