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

// without a dual, delta is part of the step
template <Dual kDual>
double scale_of(double delta) {
  return kDual == Dual::kOwn ? delta : 1.0;
}

template <class T, Dual kDual>
Readout<opmath_t<T>> readout_of(double lr, double lam, double delta, double weight_decay,
                                bool nonnegative, double dual_leak, double fine_scale) {
  using O = opmath_t<T>;
  const O lower = nonnegative ? -std::numeric_limits<O>::infinity() : -O(lam);
  const double decay = lr * weight_decay * scale_of<kDual>(delta);
  return {O(lam), lower, O(delta), O(decay), O(dual_leak), O(fine_scale)};
}

template <class T, Dual kDual, bool kMomentum, bool kPlain = false>
typename LinBregStep<T, kDual, kMomentum, kPlain>::Functor linbreg_functor(
    const Readout<opmath_t<T>>& readout, double lr, double delta, double momentum,
    const std::string& momentum_form, bool nesterov, bool maximize) {
  using O = opmath_t<T>;
  const bool ema = kMomentum && momentum_form == "ema";
  const double scale = scale_of<kDual>(delta);
  typename LinBregStep<T, kDual, kMomentum, kPlain>::Functor f;
  f.readout = readout;
  f.sign = O(maximize ? -1 : 1);
  f.beta = O(momentum);
  f.gain = O(ema ? (1.0 - momentum) * lr : 1.0);
  f.step = O(ema ? scale : lr * scale);
  f.nesterov = choice(nesterov);
  return f;
}

template <class T, Dual kDual, bool kCounts, bool kPlain = false>
typename AdaBregStep<T, kDual, kCounts, kPlain>::Functor adabreg_functor(
    const Readout<opmath_t<T>>& readout, double lr, double delta, double beta1, double beta2,
    double eps, bool maximize, int64_t step) {
  using O = opmath_t<T>;
  const double scale = scale_of<kDual>(delta);
  typename AdaBregStep<T, kDual, kCounts, kPlain>::Functor f;
  f.readout = readout;
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
