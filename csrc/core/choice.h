// Choices that are the same for every element of a loop, without branches.
#pragma once

#include <cstdint>
#include <cstring>

#include "math.h"

namespace sk {

// A choice that is the same for every element, as a mask: g++ makes a branch of a choice by a bool,
// and scalar code of a loop with branches.
using Choice = uint32_t;
SK_HD constexpr Choice choice(bool yes) { return yes ? ~0u : 0u; }

SK_HD float choose(Choice yes, float a, float b) {
  return bits_to_float((float_to_bits(a) & yes) | (float_to_bits(b) & ~yes));
}

SK_HD double choose(Choice yes, double a, double b) {
  const uint64_t mask = uint64_t(yes) << 32 | yes;
  const uint64_t bits = (to_bits(a) & mask) | (to_bits(b) & ~mask);
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Whether to branch round what is computed for a choice. Not on a CPU, where it costs less than the
// vector code; on a GPU all threads take the same way, and registers are short.
SK_HD bool worth_computing([[maybe_unused]] Choice yes) {
#if defined(__CUDA_ARCH__)
  return yes != 0;
#else
  return true;
#endif
}

}  // namespace sk
