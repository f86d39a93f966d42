// masked_perturb: ascent step of sharpness-aware minimisation, elementwise, in place.
//   param <- param + scale * grad,                  scale = rho / (norm + eps)
//   adaptive: param <- param + scale * t^2 * grad,  t = |param| + eta
// Source: SAM, arXiv 2010.01412, eq. (2); Sparse SAM, arXiv 2210.05177; ASAM, arXiv 2102.11600.
// Deviations: a norm or scale that is not finite disables the write (the caller skips the step).
// Lists: params[T] mutated, grads[T] const. Units: rho, eta, eps >= 0. rho may be read on the
// device. One rounding on store.
// Twins: sparse_kernels/reference/masked_perturb.py, sparse_kernels/triton/masked_perturb.py.
#pragma once

#include "streams.h"

namespace sk {

template <class T, bool kAdaptive>
struct MaskedPerturb {
  using Math = opmath_t<T>;
  using Lists = StreamList<InOut<T>, In<T>>;
  static constexpr Reduce kReduce = Reduce::kNone;
  static constexpr bool kGenerated = false;
  static constexpr Backup kBackup = Backup::kSaves;

  const Math* norm;  // one element, on the device of the parameters
  Math rho, eta, eps;
  const Math* device_rho = nullptr;  // one element, in the place of rho

  struct Functor {
    Math scale, eta;
    SK_HD bool enabled() const { return isfinite(scale); }
    SK_HD void operator()(Math& param, Math grad) const {
      if constexpr (kAdaptive) {
        const Math t = abs(param) + eta;
        param = param + scale * ((t * t) * grad);
      } else {
        param = param + scale * grad;
      }
    }
  };
  SK_HD Functor bind(int64_t) const {
    // rho / inf is 0, and 0 * grad still spreads NaN: an infinite norm has to disable the write
    const Math radius = device_rho ? *device_rho : rho;
    return {isfinite(*norm) ? radius / (*norm + eps) : *norm, eta};
  }
};

}  // namespace sk
