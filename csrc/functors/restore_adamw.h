// restore_adamw: the Adam(W) step from the unperturbed parameter, with the gradient at the
// perturbed one.
//   g = factor grad + decay param,  a <- a + (1 - beta1)(g - a),  u <- beta2 u + (1 - beta2) g^2
//   param <- shrink param - step_size a / (sqrt(u) / bias2_sqrt + eps)
// AdamW: decay = 0, shrink = 1 - lr weight_decay. Adam: decay = weight_decay, shrink = 1.
// Source: Adam, arXiv 1412.6980; AdamW, arXiv 1711.05101; after the restore of SAM, 2010.01412.
// Deviations: none; skip leaves the moments alone and only restores.
// Symbols: factor = inv_scale, negative to maximise. Lists: params[T] mutated (unperturbed on
// entry: Backup::kRestores), grads[T] const, exp_avgs[T], exp_avg_sqs[T] mutated. Units: eps >= 0,
// one step_size and bias2_sqrt per tensor. One rounding on store. Twins:
// sparse_kernels/reference/restore_adamw.py, sparse_kernels/triton/restore_adamw.py.
#pragma once

#include "gates.h"
#include "streams.h"

namespace sk {

template <class T>
struct RestoreAdamw {
  using Math = opmath_t<T>;
  using Lists = StreamList<InOut<T>, In<T>, InOut<T>, InOut<T>>;
  static constexpr Reduce kReduce = Reduce::kNone;
  static constexpr bool kGenerated = false;
  static constexpr Backup kBackup = Backup::kRestores;

  Gates<Math> gates;
  const Math* step_sizes;   // [tensors] lr / (1 - beta1^step)
  const Math* bias2_sqrts;  // [tensors] sqrt(1 - beta2^step)
  Math one_minus_beta1, beta2, one_minus_beta2, eps, decay, shrink;
  const Math* device_shrink = nullptr;  // one element, in the place of shrink

  struct Functor {
    Math factor, step_size, bias2_sqrt;
    Math one_minus_beta1, beta2, one_minus_beta2, eps, decay, shrink;
    bool open;

    SK_HD bool enabled() const { return open; }
    SK_HD void operator()(Math& param, Math grad, Math& a, Math& u) const {
      Math g = factor * grad;
      g = decay != Math(0) ? g + decay * param : g;  // 0 times infinity would spread NaN
      a = a + (g - a) * one_minus_beta1;
      u = u * beta2 + (one_minus_beta2 * g) * g;
      param = param * shrink - (step_size * a) / (sk::sqrt(u) / bias2_sqrt + eps);
    }
  };
  SK_HD Functor bind(int64_t t) const {
    const Math scale = device_shrink ? *device_shrink : shrink;
    return {gates.factor(),  step_sizes[t], bias2_sqrts[t], one_minus_beta1, beta2,
            one_minus_beta2, eps,           decay,          scale,           gates.open()};
  }
};

}  // namespace sk
