// Scalar math with the same bits on host and device: the only file that asks for __CUDA_ARCH__.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "macros.h"

namespace sk {

SK_HD float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

SK_HD uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

SK_HD uint32_t to_bits(float value) { return float_to_bits(value); }

SK_HD uint64_t to_bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// -x where the top bit of `flip` is 1, else x
SK_HD float flip_sign(float x, uint32_t flip) {
  return bits_to_float(float_to_bits(x) ^ (flip & 0x80000000u));
}

SK_HD double flip_sign(double x, uint32_t flip) {
  const uint64_t bits = to_bits(x) ^ uint64_t(flip & 0x80000000u) << 32;
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

SK_HD float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

SK_HD double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// correctly rounded everywhere, like every + - * / under -ffp-contract=off and --fmad=false
SK_HD float sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

SK_HD double sqrt(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

SK_HD int32_t popcount(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __popc(x);
#else
  return __builtin_popcount(x);
#endif
}

template <class T>
SK_HD T abs(T x) {
  return x < T(0) ? -x : (x == T(0) ? T(0) : x);  // NaN stays, -0.0 becomes +0.0
}

template <class T>
SK_HD bool isfinite(T x) {
  return x - x == T(0);
}

template <class T>
SK_HD T min(T a, T b) {
  return b < a ? b : a;
}

}  // namespace sk
