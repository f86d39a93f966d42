#include "../functors/norm.h"

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "results.h"

namespace sk::cpu {

Tensor grad_norm_cpu(const TensorList& grads, const TensorList& masks, const TensorList& weights,
                     double eta, bool squared) {
  constexpr const char* kOp = "grad_norm";
  const ScalarType dtype = check_grad_norm(grads, masks, weights);
  const auto segments = make_segments({&grads, &weights}, masks, {});
  const double sum = dispatch_float<true>(kOp, dtype, [&]<class T>() {
    if (weights.empty()) return for_each(SquaredNorm<T>{}, segments).sum;
    return for_each(WeightedSquaredNorm<T>{opmath_t<T>(eta)}, segments).sum;
  });
  return squared ? scalar_result(sum, ScalarType::Double)
                 : scalar_result(std::sqrt(sum), math_type(dtype));
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("grad_norm", TORCH_BOX(&grad_norm_cpu));
}

}  // namespace sk::cpu
