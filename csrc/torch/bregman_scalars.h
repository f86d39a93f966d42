// Hyper-parameters of the Bregman steps, combined in double and rounded once to the math dtype, as
// the reference does. Shared by the CPU and the CUDA host functions.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "../functors/bregman_step.h"
#include "check.h"

namespace sk {

template <class T, bool kDual, bool kMomentum>
typename LinBregStep<T, kDual, kMomentum>::Functor linbreg_functor(
    double lr, double lam, double delta, double momentum, const std::string& momentum_form,
    bool nesterov, double weight_decay, bool maximize) {
  using O = opmath_t<T>;
  const bool ema = kMomentum && momentum_form == "ema";
  const double scale = kDual ? 1.0 : delta;  // without a dual, delta is part of the step
  typename LinBregStep<T, kDual, kMomentum>::Functor f;
  f.readout = {O(lam), O(delta), O(lr * weight_decay * scale)};
  f.sign = O(maximize ? -1 : 1);
  f.beta = O(momentum);
  f.gain = O(ema ? (1.0 - momentum) * lr : 1.0);
  f.step = O(ema ? scale : lr * scale);
  f.nesterov = nesterov;
  return f;
}

template <class T, bool kDual, bool kCounts>
typename AdaBregStep<T, kDual, kCounts>::Functor adabreg_functor(double lr, double lam,
                                                                 double delta, double beta1,
                                                                 double beta2, double eps,
                                                                 double weight_decay, bool maximize,
                                                                 int64_t step) {
  using O = opmath_t<T>;
  const double scale = kDual ? 1.0 : delta;
  typename AdaBregStep<T, kDual, kCounts>::Functor f;
  f.readout = {O(lam), O(delta), O(lr * weight_decay * scale)};
  f.sign = O(maximize ? -1 : 1);
  f.one_minus_beta1 = O(1.0 - beta1);
  f.beta2 = O(beta2);
  f.one_minus_beta2 = O(1.0 - beta2);
  f.eps = O(eps);
  f.step = O(lr * scale / (1.0 - std::pow(beta1, double(step))));
  f.bias2_sqrt = O(std::sqrt(1.0 - std::pow(beta2, double(step))));
  f.step_sizes = f.bias2_sqrts = nullptr;
  f.last_row = 0;
  return f;
}

// Rows of the two correction tables that go with counts; 0 where there are no counts.
inline int64_t check_tables(const char* op, const TensorList& counts,
                            const std::optional<Tensor>& step_sizes,
                            const std::optional<Tensor>& bias2_sqrts, const TensorList& params) {
  if (counts.empty()) return 0;
  STD_TORCH_CHECK(step_sizes.has_value() && bias2_sqrts.has_value(), op,
                  ": counts need step_sizes and bias2_sqrts");
  const int64_t rows = step_sizes->numel();
  STD_TORCH_CHECK(rows > 1 && rows <= std::numeric_limits<int32_t>::max(), op,
                  ": the tables need at least 2 rows");
  const ScalarType math = math_type(params[0].scalar_type());
  check_scalars(op, "step_sizes", *step_sizes, rows, math, params);
  check_scalars(op, "bias2_sqrts", *bias2_sqrts, rows, math, params);
  return rows;
}

}  // namespace sk
