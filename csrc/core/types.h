// Storage types, the dtype of the arithmetic on them, and the one rounding between the two.
#pragma once

#include <cstdint>

#include "macros.h"
#include "math.h"

namespace sk {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// opmath_t<T>: double for double, float for the floating types, T itself for raw and integer types
template <class T>
struct Opmath {
  using type = T;
};
template <>
struct Opmath<bf16> {
  using type = float;
};
template <>
struct Opmath<f16> {
  using type = float;
};
template <class T>
using opmath_t = typename Opmath<T>::type;

template <class T>
SK_HD T load(T x) {
  return x;
}

SK_HD float load(bf16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

SK_HD float load(f16 x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  // branch-free so that the loop around it vectorises
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t rebias = magnitude >= 0x7c00u ? (224u << 23) : (112u << 23);  // inf, nan : finite
  const uint32_t normal = (magnitude << 13) + rebias;
  const uint32_t subnormal = float_to_bits(float(int32_t(magnitude)) * 0x1p-24f);
  return bits_to_float(sign | (magnitude < 0x0400u ? subnormal : normal));
#endif
}

// store<T>(x): round to nearest even, once
template <class T>
struct Store {
  static SK_HD T apply(T x) { return x; }
};

template <>
struct Store<bf16> {
  static SK_HD bf16 apply(float x) {
    const uint32_t bits = float_to_bits(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {uint16_t(x != x ? 0x7fc0u : rounded)};
  }
};

template <>
struct Store<f16> {
  static SK_HD f16 apply(float x) {
#if defined(__CUDA_ARCH__)
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return {bits};
#else
    const uint32_t bits = float_to_bits(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // rebias the exponent and round at bit 13; a carry runs into the exponent, up to infinity
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // below 2^-14 adding 0.5 lines the last half bit up with float's last bit and rounds there
    const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x47800000u ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return {uint16_t(sign | half)};
#endif
  }
};

template <class T>
SK_HD T store(opmath_t<T> x) {
  return Store<T>::apply(x);
}

}  // namespace sk
