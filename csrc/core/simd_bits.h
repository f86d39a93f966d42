// Comparisons to mask words. g++ turns none of them into bits by the instructions made for it: it
// leaves a byte or a word an element, and joins the bits of words one by one.
#pragma once

#include <cstdint>

#include "macros.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sk {

// Bit i of the word: whether bytes[i] is not 0, of 32 bytes.
SK_HD uint32_t bits_of_bytes(const uint8_t* bytes) {
#if defined(__x86_64__)  // SSE2 is in every clone
  const __m128i zero = _mm_setzero_si128();
  const auto* half = reinterpret_cast<const __m128i*>(bytes);
  const int low = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128(half), zero));
  const int high = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128(half + 1), zero));
  return ~(uint32_t(low) | uint32_t(high) << 16);
#else
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= uint32_t(bytes[i] != 0) << i;
  return bits;
#endif
}

// Bits of the keys in [low, low + span], of 32 keys a word.
template <class Key>
using BitsBetween = void (*)(const Key* keys, int words, Key low, Key span, uint32_t* out);

template <class Key>
SK_CLONES void bits_between_by_bytes(const Key* keys, int words, Key low, Key span, uint32_t* out) {
  for (int w = 0; w < words; ++w, keys += 32) {
    uint8_t between[32];
#pragma omp simd
    for (int i = 0; i < 32; ++i) between[i] = Key(keys[i] - low) <= span;
    out[w] = bits_of_bytes(between);
  }
}

#if defined(__x86_64__)
template <class Key>
__attribute__((target("avx512f"))) void bits_between_512(const Key* keys, int words, Key low,
                                                         Key span, uint32_t* out) {
  for (int w = 0; w < words; ++w, keys += 32) {
    if constexpr (sizeof(Key) == 4) {
      const __m512i from = _mm512_set1_epi32(int(low)), most = _mm512_set1_epi32(int(span));
      const auto half = [&](int i) __attribute__((always_inline, target("avx512f"))) {
        const __m512i x = _mm512_sub_epi32(_mm512_loadu_si512(keys + i), from);
        return uint32_t(_mm512_cmple_epu32_mask(x, most));
      };
      out[w] = half(0) | half(16) << 16;
    } else {
      const __m512i from = _mm512_set1_epi64(int64_t(low)), most = _mm512_set1_epi64(int64_t(span));
      const auto quarter = [&](int i) __attribute__((always_inline, target("avx512f"))) {
        const __m512i x = _mm512_sub_epi64(_mm512_loadu_si512(keys + i), from);
        return uint32_t(_mm512_cmple_epu64_mask(x, most));
      };
      out[w] = quarter(0) | quarter(8) << 8 | quarter(16) << 16 | quarter(24) << 24;
    }
  }
}
#endif

template <class Key>
BitsBetween<Key> pick_bits_between() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return bits_between_512<Key>;
#endif
  return bits_between_by_bytes<Key>;
}

}  // namespace sk
