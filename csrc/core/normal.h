// Portable normals: Box-Muller from IEEE add, multiply, explicit fma and sqrt in a fixed order,
// hence the same bits on every CPU and GPU, and within 4 ulp of the float64 reference value.
//   u = fma(float(a), 2^-32, 2^-33), r = sqrt(-2 ln u), angle = 2 pi b / 2^32
//   even lane r cos(angle), odd lane r sin(angle); the quadrant is taken in integers
// Coefficients: relative minimax fits (iteratively reweighted least squares on Chebyshev nodes),
// log1p on [-1/3, 1/3] to 5e-9, sine and cosine of (pi/4) x on [-1, 1] to 5e-12 and 6e-14.
// Twins: box_muller in sparse_kernels/reference/philox.py, sparse_kernels/triton/philox.py.
#pragma once

#include <cstdint>

#include "macros.h"
#include "math.h"
#include "philox.h"

namespace sk {

// ln u for u in [2^-33, 1]: u = 2^e m with m in [2/3, 4/3), ln u = e ln2 + log1p(m - 1)
SK_HD float log_unit(float u) {
  const int32_t bits = int32_t(float_to_bits(u));
  const int32_t exponent = (bits - 0x3f2aaaab) >> 23;  // 0x3f2aaaab is 2/3
  const float f = bits_to_float(uint32_t(bits - exponent * (1 << 23))) - 1.0f;
  const float w = f * f;
  float q = -0x1.080586p-3f;
  q = fma(f, q, 0x1.1e66bep-3f);
  q = fma(f, q, -0x1.f3114p-4f);
  q = fma(f, q, 0x1.1ed716p-3f);
  q = fma(f, q, -0x1.559dccp-3f);
  q = fma(f, q, 0x1.99d028p-3f);
  q = fma(f, q, -0x1.fffefp-3f);
  q = fma(f, q, 0x1.555506p-2f);
  const float e = float(exponent);
  float y = fma(f * w, q, e * -0x1.bd0106p-13f);  // ln2, low word
  y = fma(-0.5f, w, y);
  return fma(e, 0x1.63p-1f, f + y);  // ln2, high word: its product with e is exact
}

struct NormalPair {
  float even, odd;
};

SK_HD NormalPair box_muller(uint32_t a, uint32_t b) {
  const float u = fma(float(a), 0x1p-32f, 0x1p-33f);
  const float radius = sqrt(-2.0f * log_unit(u));
  // residual angle (pi/4) x, x in [-1, 1); the sine's leading coefficient takes two words
  const uint32_t turn = b + 0x20000000u;  // quadrant in the upper two bits
  const float x = float(int32_t(b << 2)) * 0x1p-31f;
  const float t = x * x;
  float s = 0x1.4be09ep-22f;
  s = fma(t, s, -0x1.32cb0ep-15f);
  s = fma(t, s, 0x1.466bbcp-9f);
  s = fma(t, s, -0x1.4abbcep-4f);
  const float sine = fma(x, 0x1.921fb6p-1f, x * fma(t, s, -0x1.777a5cp-26f));
  float c = -0x1.a10852p-26f;
  c = fma(t, c, 0x1.e1e85cp-19f);
  c = fma(t, c, -0x1.55d3bcp-12f);
  c = fma(t, c, 0x1.03c1fp-6f);
  c = fma(t, c, -0x1.3bd3ccp-2f);
  const float cosine = fma(t, c, 1.0f);
  const bool swap = turn & 0x40000000u;
  const float even = radius * (swap ? sine : cosine);
  const float odd = radius * (swap ? cosine : sine);
  // cos is negative in quadrants 1 and 2, sin in 2 and 3; by bits: with selects of -radius and
  // radius the vector code took a third longer
  return {flip_sign(even, turn ^ turn << 1), flip_sign(odd, turn)};
}

// The same from the approximate functions of the GPU, where r may be 1e-5 off: more as u nears 1.
// The signed word is an angle in [-pi, pi), where sine and cosine are good to 2^-21. On the host
// they are the portable ones.
SK_HD NormalPair fast_box_muller(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  const float u = fma(float(a), 0x1p-32f, 0x1p-33f);
  const float square = __log2f(u) * -0x1.62e43p+0f;  // -2 ln2
  float radius;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(radius) : "f"(square > 0.0f ? square : 0.0f));
  const float angle = float(int32_t(b)) * 0x1.921fb6p-30f;  // 2 pi / 2^32
  return {radius * __cosf(angle), radius * __sinf(angle)};
#else
  return box_muller(a, b);
#endif
}

// The four normals of one call of Philox.
template <bool kFast = false>
SK_HD void normals_of(const Words& w, float* z) {
  const NormalPair low = kFast ? fast_box_muller(w.x[0], w.x[1]) : box_muller(w.x[0], w.x[1]);
  const NormalPair high = kFast ? fast_box_muller(w.x[2], w.x[3]) : box_muller(w.x[2], w.x[3]);
  z[0] = low.even;
  z[1] = low.odd;
  z[2] = high.even;
  z[3] = high.odd;
}

}  // namespace sk
