#include "../functors/restore_adamw.h"

#include <torch/csrc/stable/library.h>

#include "../torch/base_steps.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "results.h"

namespace sk::cpu {

void restore_adamw_cpu(const TensorList& params, const TensorList& grads,
                       const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                       const TensorList& masks, const TensorList& backup, const TensorList& ranks,
                       Tensor step_sizes, Tensor bias2_sqrts, double lr, double beta1, double beta2,
                       double eps, double weight_decay, bool decoupled, bool maximize,
                       std::optional<Tensor> skip, std::optional<Tensor> inv_scale,
                       std::optional<Tensor> device_shrink) {
  constexpr const char* kOp = "restore_adamw_";
  if (params.empty()) return;
  const ScalarType dtype = check_restore_adamw(params, grads, exp_avgs, exp_avg_sqs, masks, backup,
                                               ranks, step_sizes, bias2_sqrts, skip, inv_scale);
  const auto segments =
      make_segments({&params, &grads, &exp_avgs, &exp_avg_sqs}, masks, backup, ranks);
  check_capacity(kOp, segments);
  dispatch_float<true>(kOp, dtype, [&]<class T>() {
    const auto gates = make_gates<opmath_t<T>>(skip, inv_scale, maximize);
    auto op = restore_adamw_op<T>(gates, step_sizes, bias2_sqrts, lr, beta1, beta2, eps,
                                  weight_decay, decoupled);
    op.device_shrink = device_scalars<opmath_t<T>>(kOp, "device_shrink", device_shrink, 1, params);
    for_each(op, segments);
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("restore_adamw_", TORCH_BOX(&restore_adamw_cpu));
}

}  // namespace sk::cpu
