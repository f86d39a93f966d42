// Non-temporal stores for outputs that are written and not read: they skip the read for ownership.
// g++ ignores `omp simd nontemporal`, so a block is computed in L1 and streamed out from there.
#pragma once

#include <cstddef>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sk {

constexpr size_t kStreamAlign = 64;  // bytes: one cache line, one 512-bit store

// Copies `bytes` (a multiple of kStreamAlign) from src to dst, both kStreamAlign-aligned.
using StreamCopy = void (*)(void* dst, const void* src, size_t bytes);

#if defined(__x86_64__)
__attribute__((target("avx512f"))) inline void stream_copy_512(void* dst, const void* src,
                                                               size_t bytes) {
  auto* d = static_cast<__m512i*>(dst);
  const auto* s = static_cast<const __m512i*>(src);
  for (size_t i = 0; i < bytes / sizeof(*d); ++i)
    _mm512_stream_si512(d + i, _mm512_load_si512(s + i));
}
__attribute__((target("avx"))) inline void stream_copy_256(void* dst, const void* src,
                                                           size_t bytes) {
  auto* d = static_cast<__m256i*>(dst);
  const auto* s = static_cast<const __m256i*>(src);
  for (size_t i = 0; i < bytes / sizeof(*d); ++i)
    _mm256_stream_si256(d + i, _mm256_load_si256(s + i));
}
inline void stream_copy_128(void* dst, const void* src, size_t bytes) {
  auto* d = static_cast<__m128i*>(dst);
  const auto* s = static_cast<const __m128i*>(src);
  for (size_t i = 0; i < bytes / sizeof(*d); ++i) _mm_stream_si128(d + i, _mm_load_si128(s + i));
}
inline StreamCopy pick_stream_copy() {
  if (__builtin_cpu_supports("avx512f")) return stream_copy_512;
  if (__builtin_cpu_supports("avx")) return stream_copy_256;
  return stream_copy_128;
}
inline void stream_fence() { _mm_sfence(); }
#else
inline StreamCopy pick_stream_copy() {
  return [](void* dst, const void* src, size_t bytes) { std::memcpy(dst, src, bytes); };
}
inline void stream_fence() {}
#endif

}  // namespace sk
