#include <torch/csrc/stable/library.h>

#include "../functors/masked_perturb.h"
#include "../torch/device_scalars.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "for_each.cuh"

namespace sk::cuda {

void masked_perturb_cuda(const TensorList& params, const TensorList& grads, Tensor norm, double rho,
                         const TensorList& masks, const TensorList& backup, const TensorList& ranks,
                         bool adaptive, double eta, double eps, std::optional<Tensor> device_rho) {
  constexpr const char* kOp = "masked_perturb_";
  if (params.empty()) return;
  const ScalarType dtype = check_masked_perturb(params, grads, norm, masks, backup, ranks);
  const auto segments = make_segments({&params, &grads}, masks, backup, ranks);
  dispatch_float<false>(kOp, dtype, [&]<class T>() {
    dispatch_bool(adaptive, [&]<bool kAdaptive>() {
      const float* value = static_cast<const float*>(norm.data_ptr());
      const float* radius = device_scalars<float>(kOp, "device_rho", device_rho, 1, params);
      const MaskedPerturb<T, kAdaptive> op{value, float(rho), float(eta), float(eps), radius};
      for_each_backed(op, segments, params[0]);
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("masked_perturb_", TORCH_BOX(&masked_perturb_cuda));
}

}  // namespace sk::cuda
