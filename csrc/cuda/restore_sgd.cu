#include <torch/csrc/stable/library.h>

#include "../torch/base_steps.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "for_each.cuh"

namespace sk::cuda {

void restore_sgd_cuda(const TensorList& params, const TensorList& grads,
                      const TensorList& momentum_buffers, const TensorList& masks,
                      const TensorList& backup, const TensorList& ranks, double lr, double momentum,
                      double dampening, bool nesterov, double weight_decay, bool maximize,
                      bool first, std::optional<Tensor> skip, std::optional<Tensor> inv_scale,
                      std::optional<Tensor> device_lr) {
  constexpr const char* kOp = "restore_sgd_";
  if (params.empty()) return;
  const ScalarType dtype =
      check_restore_sgd(params, grads, momentum_buffers, masks, backup, ranks, skip, inv_scale);
  const auto segments = make_segments({&params, &grads, &momentum_buffers}, masks, backup, ranks);
  dispatch_float<false>(kOp, dtype, [&]<class T>() {
    const auto gates = make_gates<float>(skip, inv_scale, maximize);
    dispatch_bool(!momentum_buffers.empty(), [&]<bool kMomentum>() {
      auto op = restore_sgd_op<T, kMomentum>(gates, lr, momentum, dampening, nesterov, weight_decay,
                                             first);
      op.device_lr = device_scalars<float>(kOp, "device_lr", device_lr, 1, params);
      for_each_backed(op, segments, params[0]);
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("restore_sgd_", TORCH_BOX(&restore_sgd_cuda));
}

}  // namespace sk::cuda
