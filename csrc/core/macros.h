// Compiler switches and the sizes every backend shares. No libtorch here.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SK_HD __host__ __device__ __forceinline__
#else
// always_inline, so that a body takes the instruction set of the SK_CLONES function it lands in
#define SK_HD inline __attribute__((always_inline))
#endif

// A function template of its own on the device, too: a call where the code would not fit.
#if defined(__CUDACC__)
#define SK_CALLED __host__ __device__ __noinline__
#else
#define SK_CALLED inline
#endif

// For a lambda's body, between its parameters and its braces: inlined like an SK_HD function.
#define SK_INLINED __attribute__((always_inline))

// Loop unrolling on the device, where registers are budgeted; the host compiler is left alone.
#if defined(__CUDACC__)
#define SK_PRAGMA(text) _Pragma(#text)
#define SK_UNROLL(count) SK_PRAGMA(unroll(count))
#define SK_UNROLLED SK_PRAGMA(unroll)
#else
#define SK_UNROLL(count)
#define SK_UNROLLED
#endif

#define SK_RESTRICT __restrict__

// One clone per x86-64 level, picked at load time. The level names matter: "avx2" alone leaves FMA
// off, and an explicit fma then becomes a library call per element.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__CUDACC__) && !defined(SK_NO_CLONES)
#define SK_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SK_CLONES
#endif

namespace sk {

constexpr int64_t kChunkSize = 65536;  // elements: the unit of threading and of partial sums
constexpr int kLanes = 2048;           // partial sums per chunk; lane = element index mod kLanes
constexpr int64_t kRankTile = 8192;    // elements per entry of a table of ranks (core/mask.h)

}  // namespace sk
