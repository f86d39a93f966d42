#include "../functors/masked_perturb.h"

#include <torch/csrc/stable/library.h>

#include "../torch/device_scalars.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "results.h"

namespace sk::cpu {

void masked_perturb_cpu(const TensorList& params, const TensorList& grads, Tensor norm, double rho,
                        const TensorList& masks, const TensorList& backup, const TensorList& ranks,
                        bool adaptive, double eta, double eps, std::optional<Tensor> device_rho) {
  constexpr const char* kOp = "masked_perturb_";
  if (params.empty()) return;
  const ScalarType dtype = check_masked_perturb(params, grads, norm, masks, backup, ranks);
  const auto segments = make_segments({&params, &grads}, masks, backup, ranks);
  check_capacity(kOp, segments);
  dispatch_float<true>(kOp, dtype, [&]<class T>() {
    dispatch_bool(adaptive, [&]<bool kAdaptive>() {
      using O = opmath_t<T>;
      const O* value = static_cast<const O*>(norm.data_ptr());
      const O* radius = device_scalars<O>(kOp, "device_rho", device_rho, 1, params);
      for_each(MaskedPerturb<T, kAdaptive>{value, O(rho), O(eta), O(eps), radius}, segments);
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("masked_perturb_", TORCH_BOX(&masked_perturb_cpu));
}

}  // namespace sk::cpu
