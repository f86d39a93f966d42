#include "../functors/masked_perturb.h"

#include <torch/csrc/stable/library.h>

#include "../torch/dispatch.h"
#include "results.h"

namespace sk::cpu {

void masked_perturb_cpu(TensorList params, TensorList grads, Tensor norm, double rho,
                        TensorList masks, TensorList backup, bool adaptive, double eta,
                        double eps) {
  constexpr const char* kOp = "masked_perturb_";
  if (params.empty()) return;
  const ScalarType dtype = params[0].scalar_type();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "grads", grads, params, dtype);
  check_list(kOp, "backup", backup, params, dtype);
  check_masks(kOp, masks, params);
  check_scalars(kOp, "norm", norm, 1, math_type(dtype), params);
  STD_TORCH_CHECK(!grads.empty(), kOp, ": grads is empty");
  const auto segments = make_segments({&params, &grads}, masks, backup);
  dispatch_float<true>(kOp, dtype, [&]<class T>() {
    dispatch_bool(adaptive, [&]<bool kAdaptive>() {
      using O = opmath_t<T>;
      const O* value = static_cast<const O*>(norm.data_ptr());
      for_each(MaskedPerturb<T, kAdaptive>{value, O(rho), O(eta), O(eps)}, segments);
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("masked_perturb_", TORCH_BOX(&masked_perturb_cpu));
}

}  // namespace sk::cpu
