// Entries whose mask bit is 1: gathered from memory and put back, and their numbers. g++ vectorises
// none of it, so the 4- and 2-byte elements and the numbers have AVX-512 intrinsics; everything
// else goes by words of the mask.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "mask.h"
#include "simd_store.h"

namespace sk {

constexpr int kPackSlack = int(kStreamAlign);  // elements that a gather may write past its last one

// out[j] = the j-th of src[0 .. n) with bit 1; returns their number.
template <class T>
using Gather = int (*)(const T* src, const uint32_t* words, int n, T* out);

// out[i] = the next of packed[0 .. left) where bit i is 1, else base[i], for i < n; out may be
// base. Returns the number taken.
template <class T>
using Scatter = int (*)(const T* packed, int64_t left, const uint32_t* words, int n, const T* base,
                        T* out);

template <class T>
int gather_by_words(const T* src, const uint32_t* words, int n, T* out) {
  T* const first = out;
  for (int i = 0; i < n; i += 32, src += 32) {
    const uint32_t word = existing_bits(words[i / 32], n - i);
    if (word == ~0u) {
      std::memcpy(out, src, 32 * sizeof(T));
      out += 32;
    } else {
      for (uint32_t left = word; left != 0; left &= left - 1) *out++ = src[std::countr_zero(left)];
    }
  }
  return int(out - first);
}

template <class T>
int scatter_by_words(const T* packed, int64_t, const uint32_t* words, int n, const T* base,
                     T* out) {
  const T* const first = packed;
  if (out != base) std::memcpy(out, base, size_t(n) * sizeof(T));
  for (int i = 0; i < n; i += 32, out += 32) {
    const uint32_t word = existing_bits(words[i / 32], n - i);
    if (word == ~0u) {
      std::memcpy(out, packed, 32 * sizeof(T));
      packed += 32;
    } else {
      for (uint32_t left = word; left != 0; left &= left - 1) {
        out[std::countr_zero(left)] = *packed++;
      }
    }
  }
  return int(packed - first);
}

// out[j] = first + the place of the j-th 1 of n entries; returns their number.
using NumberOnes = int64_t (*)(const uint32_t* words, int64_t n, uint32_t first, uint32_t* out);

// Entries [at, at + 64) of n.
SK_HD uint64_t bits_at(const uint32_t* words, int64_t n, int64_t at) {
  uint64_t bits = existing_bits(words[at / 32], n - at);
  if (n - at > 32) bits |= uint64_t(existing_bits(words[at / 32 + 1], n - at - 32)) << 32;
  return bits;
}

// Eight at a time, whether there are as many or not: no branch depends on fewer bits.
SK_CLONES inline int64_t number_ones_by_bits(const uint32_t* words, int64_t n, uint32_t first,
                                             uint32_t* out) {
  const uint32_t* const begin = out;
  for (int64_t at = 0; at < n; at += 64, first += 64) {
    uint64_t bits = bits_at(words, n, at);
    const int ones = std::popcount(bits);
    for (int done = 0; done < ones; done += 8) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k, bits &= bits - 1) {
        out[done + k] = first + uint32_t(std::countr_zero(bits));
      }
    }
    out += ones;
  }
  return out - begin;
}

#if defined(__x86_64__)
#define SK_AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi2,popcnt")))

// Whole vectors by plain loads and stores, compressed from register to register: masked accesses to
// memory that is not in a cache took three times as long.
template <class T>
SK_AVX512 inline __m512i load_some(const T* p, int64_t n) {
  if (n >= int64_t(64 / sizeof(T))) return _mm512_loadu_si512(p);
  if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_epi32(__mmask16((1u << n) - 1u), p);
  return _mm512_maskz_loadu_epi16((1u << n) - 1u, p);
}
template <class T>
SK_AVX512 inline void store_some(T* p, int64_t n, __m512i x) {
  if (n >= int64_t(64 / sizeof(T))) {
    _mm512_storeu_si512(p, x);
  } else if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_epi32(p, __mmask16((1u << n) - 1u), x);
  } else {
    _mm512_mask_storeu_epi16(p, (1u << n) - 1u, x);
  }
}

template <class T>
SK_AVX512 inline T* store_chosen(__m512i x, uint32_t bits, T* out) {
  if constexpr (sizeof(T) == 4) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(bits), x));
    return out + __builtin_popcount(uint16_t(bits));
  } else {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi16(bits, x));
    return out + __builtin_popcount(bits);
  }
}

template <class T>
SK_AVX512 int gather_512(const T* src, const uint32_t* words, int n, T* out) {
  constexpr int kWide = int(64 / sizeof(T));
  T* const first = out;
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const uint32_t word = words[i / 32];
    out = store_chosen(_mm512_loadu_si512(src + i), word, out);
    if constexpr (kWide < 32) {
      out = store_chosen(_mm512_loadu_si512(src + i + kWide), word >> kWide, out);
    }
  }
  for (; i < n; i += kWide) {
    const uint32_t word = existing_bits(words[i / 32], n - i / 32 * 32) >> (i % 32);
    out = store_chosen(load_some(src + i, n - i), word, out);
  }
  return int(out - first);
}

template <class T>
SK_AVX512 int scatter_512(const T* packed, int64_t left, const uint32_t* words, int n,
                          const T* base, T* out) {
  constexpr int kWide = int(64 / sizeof(T));
  int64_t taken = 0;
  for (int i = 0; i < n; i += kWide) {
    const uint32_t word = existing_bits(words[i / 32], n - i / 32 * 32) >> (i % 32);
    const __m512i x = load_some(packed + taken, left - taken);
    const __m512i old = load_some(base + i, n - i);
    if constexpr (sizeof(T) == 4) {
      store_some(out + i, n - i, _mm512_mask_expand_epi32(old, __mmask16(word), x));
      taken += __builtin_popcount(uint16_t(word));
    } else {
      store_some(out + i, n - i, _mm512_mask_expand_epi16(old, word, x));
      taken += __builtin_popcount(word);
    }
  }
  return int(taken);
}

SK_AVX512 inline int64_t number_ones_512(const uint32_t* words, int64_t n, uint32_t first,
                                         uint32_t* out) {
  const uint32_t* const begin = out;
  alignas(64) uint8_t places[64];
  for (int i = 0; i < 64; ++i) places[i] = uint8_t(i);
  const __m512i all = _mm512_load_si512(places);
  for (int64_t at = 0; at < n; at += 64, first += 64) {
    const uint64_t bits = bits_at(words, n, at);
    const __m512i chosen = _mm512_maskz_compress_epi8(bits, all);
    const __m512i from = _mm512_set1_epi32(int(first));
    const auto put = [&](int j, __m128i sixteen) __attribute__((
                         always_inline, target("avx512f,avx512bw,avx512vbmi2,popcnt"))) {
      _mm512_storeu_si512(out + j, _mm512_add_epi32(from, _mm512_cvtepu8_epi32(sixteen)));
    };
    const int ones = __builtin_popcountll(bits);
    put(0, _mm512_castsi512_si128(chosen));
    if (ones > 16) put(16, _mm512_extracti32x4_epi32(chosen, 1));
    if (ones > 32) {
      put(32, _mm512_extracti32x4_epi32(chosen, 2));
      put(48, _mm512_extracti32x4_epi32(chosen, 3));
    }
    out += ones;
  }
  return out - begin;
}
#undef SK_AVX512

inline bool has_avx512_pack() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("popcnt");
}
#endif

template <class T>
Gather<T> pick_gather() {
#if defined(__x86_64__)
  if constexpr (sizeof(T) <= 4) {
    if (has_avx512_pack()) return gather_512<T>;
  }
#endif
  return gather_by_words<T>;
}
template <class T>
Scatter<T> pick_scatter() {
#if defined(__x86_64__)
  if constexpr (sizeof(T) <= 4) {
    if (has_avx512_pack()) return scatter_512<T>;
  }
#endif
  return scatter_by_words<T>;
}
inline NumberOnes pick_number_ones() {
#if defined(__x86_64__)
  if (has_avx512_pack()) return number_ones_512;
#endif
  return number_ones_by_bits;
}

}  // namespace sk
