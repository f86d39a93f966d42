// From a runtime dtype to a template argument.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "../core/types.h"

namespace sk {

using torch::headeronly::ScalarType;

// f.operator()<T>() for T in float, double (where kDouble), bf16, f16
template <bool kDouble, class F>
auto dispatch_float(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::BFloat16:
      return f.template operator()<bf16>();
    case ScalarType::Half:
      return f.template operator()<f16>();
    case ScalarType::Double:
      if constexpr (kDouble) return f.template operator()<double>();
      break;
    default:
      break;
  }
  STD_TORCH_CHECK(false, op, ": unsupported dtype");
}

// f.operator()<true>() or f.operator()<false>()
template <class F>
auto dispatch_bool(bool value, const F& f) {
  return value ? f.template operator()<true>() : f.template operator()<false>();
}

// f.operator()<U>() for the unsigned integer U of `bytes` bytes
template <class F>
void dispatch_bits(const char* op, size_t bytes, const F& f) {
  switch (bytes) {
    case 2:
      return f.template operator()<uint16_t>();
    case 4:
      return f.template operator()<uint32_t>();
    case 8:
      return f.template operator()<uint64_t>();
    default:
      STD_TORCH_CHECK(false, op, ": unsupported element size ", bytes);
  }
}

}  // namespace sk
