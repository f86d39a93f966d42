// Results of a call as tensors.
#pragma once

#include <algorithm>
#include <vector>

#include "../torch/segments.h"
#include "for_each.h"

namespace sk::cpu {

inline Tensor scalar_result(double value, ScalarType dtype) {
  Tensor out = torch::stable::empty({}, dtype);
  if (dtype == ScalarType::Double) {
    *static_cast<double*>(out.data_ptr()) = value;
  } else {
    *static_cast<float*>(out.data_ptr()) = float(value);
  }
  return out;
}

inline Tensor live_result(const std::vector<int64_t>& live) {
  Tensor out = torch::stable::empty({int64_t(live.size())}, ScalarType::Long);
  std::copy(live.begin(), live.end(), static_cast<int64_t*>(out.data_ptr()));
  return out;
}

}  // namespace sk::cpu
