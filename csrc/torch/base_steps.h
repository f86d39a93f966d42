// Hyper-parameters of the fused base steps, combined in double and rounded once to the math dtype,
// as the reference does. Shared by the CPU and the CUDA host functions.
#pragma once

#include <optional>

#include "../functors/restore_adamw.h"
#include "../functors/restore_sgd.h"
#include "device_scalars.h"
#include "segments.h"

namespace sk {

template <class Math>
Gates<Math> make_gates(const std::optional<Tensor>& skip, const std::optional<Tensor>& inv_scale,
                       bool maximize) {
  return {data_or_null<Math>(skip), data_or_null<Math>(inv_scale), maximize};
}

template <class T, bool kMomentum>
RestoreSgd<T, kMomentum> restore_sgd_op(const Gates<opmath_t<T>>& gates, double lr, double momentum,
                                        double dampening, bool nesterov, double weight_decay,
                                        bool first) {
  using O = opmath_t<T>;
  return {gates, O(lr), O(momentum), O(1.0 - dampening), O(weight_decay), nesterov, first};
}

template <class T>
RestoreAdamw<T> restore_adamw_op(const Gates<opmath_t<T>>& gates, const Tensor& step_sizes,
                                 const Tensor& bias2_sqrts, double lr, double beta1, double beta2,
                                 double eps, double weight_decay, bool decoupled) {
  using O = opmath_t<T>;
  const bool shrinks = decoupled && O(weight_decay) != O(0);
  RestoreAdamw<T> op;
  op.gates = gates;
  op.step_sizes = static_cast<const O*>(step_sizes.data_ptr());
  op.bias2_sqrts = static_cast<const O*>(bias2_sqrts.data_ptr());
  op.one_minus_beta1 = O(1.0 - beta1);
  op.beta2 = O(beta2);
  op.one_minus_beta2 = O(1.0 - beta2);
  op.eps = O(eps);
  op.decay = O(decoupled ? 0.0 : weight_decay);
  op.shrink = shrinks ? O(1.0 - lr * weight_decay) : O(1);
  return op;
}

}  // namespace sk
