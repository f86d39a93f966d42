#include <torch/csrc/stable/library.h>

#include "../functors/norm.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "for_each.cuh"

namespace sk::cuda {

Tensor grad_norm_cuda(const TensorList& grads, const TensorList& masks, const TensorList& weights,
                      double eta, bool squared) {
  constexpr const char* kOp = "grad_norm";
  const ScalarType dtype = check_grad_norm(grads, masks, weights);
  const auto segments = make_segments({&grads, &weights}, masks, {});
  return dispatch_float<false>(kOp, dtype, [&]<class T>() {
    Tensor out =
        torch::stable::new_empty(grads[0], {}, squared ? ScalarType::Double : ScalarType::Float);
    const Total total{squared ? static_cast<double*>(out.data_ptr()) : nullptr, nullptr,
                      squared ? nullptr : static_cast<float*>(out.data_ptr())};
    if (weights.empty()) {
      for_each_sum(SquaredNorm<T>{}, segments, grads[0], total);
    } else {
      for_each_sum(WeightedSquaredNorm<T>{float(eta)}, segments, grads[0], total);
    }
    return out;
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("grad_norm", TORCH_BOX(&grad_norm_cuda));
}

}  // namespace sk::cuda
