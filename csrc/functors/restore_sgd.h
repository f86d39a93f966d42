// restore_sgd: the SGD step from the unperturbed parameter, with the gradient at the perturbed one.
//   g = fma(decay, param, factor grad),  b <- fma(gain, g, momentum b)  (first step: b <- g)
//   param <- fma(-lr, d, param),  d = b  (nesterov: fma(momentum, b, g); no buffers: g)
// Source: the step of torch.optim.SGD, bit for bit, after the restore of SAM, arXiv 2010.01412.
// Deviations: none; skip leaves the buffer alone and only restores.
// Symbols: factor = inv_scale, negative to maximise; gain = 1 - dampening. Lists: params[T] mutated
// (unperturbed on entry: Backup::kRestores), grads[T] const, momentum_buffers[T] mutated.
// Units: lr, momentum, decay >= 0. lr may be read on the device. One rounding on store.
// Twins: sparse_kernels/reference/restore_sgd.py, sparse_kernels/triton/restore_sgd.py.
#pragma once

#include <type_traits>

#include "gates.h"
#include "streams.h"

namespace sk {

template <class T, bool kMomentum>
struct RestoreSgd {
  using Math = opmath_t<T>;
  using Lists = std::conditional_t<kMomentum, StreamList<InOut<T>, In<T>, InOut<T>>,
                                   StreamList<InOut<T>, In<T>>>;
  static constexpr Reduce kReduce = Reduce::kNone;
  static constexpr bool kGenerated = false;
  static constexpr Backup kBackup = Backup::kRestores;

  Gates<Math> gates;
  Math lr, momentum, gain, decay;
  bool nesterov, first;             // first: the buffers hold nothing yet
  const Math* device_lr = nullptr;  // one element, in the place of lr

  struct Functor {
    Math factor, lr, momentum, gain, decay;
    bool nesterov, first, open;

    SK_HD bool enabled() const { return open; }
    SK_HD Math gradient(Math param, Math grad) const {
      const Math g = factor * grad;
      return decay != Math(0) ? fma(decay, param, g) : g;  // 0 times infinity would spread NaN
    }
    SK_HD void operator()(Math& param, Math grad) const {
      param = fma(-lr, gradient(param, grad), param);
    }
    SK_HD void operator()(Math& param, Math grad, Math& buffer) const {
      const Math g = gradient(param, grad);
      const Math moved = fma(gain, g, momentum * buffer);
      buffer = first ? g : moved;
      const Math d = nesterov ? fma(momentum, buffer, g) : buffer;
      param = fma(-lr, d, param);
    }
  };
  SK_HD Functor bind(int64_t) const {
    const Math rate = device_lr ? *device_lr : lr;
    return {gates.factor(), rate, momentum, gain, decay, nesterov, first, gates.open()};
  }
};

}  // namespace sk
