// bregman_step: linearised Bregman iterations, elementwise, in place.
//   LinBreg:  d = g | b <- beta b + gain g, d = b (nesterov: d = g + beta b)
//             dual <- dual - step d - decay theta
//   AdaBreg:  a <- a + (1 - beta1)(g - a), u <- beta2 u + (1 - beta2) g^2
//             dual <- dual - decay theta - step a / (sqrt(u) / bias2_sqrt + eps)
//   readout:  theta = delta shrink(dual, lam),  shrink(v, lam) = v - clamp(v, -lam, lam)
// Without a list of duals the parameter is its own dual: no shrinkage, delta is part of the step.
// Source: Bungert, Roith, Tenbrinck, Burger, arXiv 2105.04319, algorithms 1 to 3 (LinBreg with
// momentum, AdaBreg). Deviations: both bias corrections of Adam; decoupled decay mu in the dual.
// Symbols: dual = v, theta = param, tau = lr. step = lr (ema form: 1, lr sits in the buffer's
// gain). Lists: params[T] mutated, grads[T] const, duals, momentum_buffers, exp_avgs, exp_avg_sqs
// mutated (float, double for double), counts mutated (int32). Units: lr, lam, decay, eps >= 0,
// delta > 0. One rounding on store. NaN propagates; |dual| == lam gives +0.0. Returns 1 where the
// entry is live (|dual| > lam). Twins: sparse_kernels/reference/bregman_step.py,
// sparse_kernels/triton/bregman_step.py.
#pragma once

#include <type_traits>

#include "streams.h"

namespace sk {

// lower: -lam, or -inf where theta must not be negative
template <class O>
SK_HD O shrink(O dual, O lower, O lam) {
  // comparisons, unlike min and max, keep NaN and the sign of zero
  const O below = lam < dual ? lam : dual;
  return dual - (lower > below ? lower : below);
}
template <class O>
SK_HD O shrink(O dual, O lam) {
  return shrink(dual, -lam, lam);
}

// dual <-> param, shared by both steps
template <class O>
struct Readout {
  O lam, delta, decay;

  SK_HD O decayed(O dual, O theta) const { return decay != O(0) ? dual - decay * theta : dual; }
  SK_HD O theta(O dual) const { return delta * shrink(dual, lam); }
  SK_HD int32_t write(O dual, O& param) const {
    const O shrunk = shrink(dual, lam);
    param = delta * shrunk;
    return shrunk != O(0);
  }
};

template <class T, bool kDual, bool kMomentum>
struct LinBregStep {
  using Math = opmath_t<T>;
  using Param = std::conditional_t<kDual, Out<T>, InOut<T>>;
  using WithDual =
      std::conditional_t<kDual, StreamList<Param, In<T>, InOut<Math>>, StreamList<Param, In<T>>>;
  using WithBoth = std::conditional_t<kDual, StreamList<Param, In<T>, InOut<Math>, InOut<Math>>,
                                      StreamList<Param, In<T>, InOut<Math>>>;
  using Lists = std::conditional_t<kMomentum, WithBoth, WithDual>;
  static constexpr Reduce kReduce = Reduce::kCount;
  static constexpr bool kGenerated = false;

  struct Functor : AlwaysEnabled {
    Readout<Math> readout;
    Math sign, beta, gain, step;  // sign -1 maximises; gain scales the gradient in the buffer
    bool nesterov;

    SK_HD Math direction(Math grad) const { return sign * grad; }
    SK_HD Math direction(Math grad, Math& buffer) const {
      const Math g = sign * grad;
      buffer = beta * buffer + gain * g;
      return nesterov ? g + beta * buffer : buffer;
    }
    SK_HD Math moved(Math dual, Math theta, Math d) const {
      return readout.decayed(dual - step * d, theta);
    }
    SK_HD int32_t with_dual(Math& param, Math& dual, Math d) const {
      dual = moved(dual, readout.theta(dual), d);
      return readout.write(dual, param);
    }
    SK_HD int32_t own_dual(Math& param, Math d) const {
      param = moved(param, param, d);
      return param != Math(0);
    }
    SK_HD int32_t operator()(Math& param, Math grad) const
      requires(!kDual && !kMomentum)
    {
      return own_dual(param, direction(grad));
    }
    SK_HD int32_t operator()(Math& param, Math grad, Math& other) const
      requires(kDual != kMomentum)
    {
      if constexpr (kDual) {
        return with_dual(param, other, direction(grad));
      } else {
        return own_dual(param, direction(grad, other));
      }
    }
    SK_HD int32_t operator()(Math& param, Math grad, Math& dual, Math& buffer) const
      requires(kDual && kMomentum)
    {
      return with_dual(param, dual, direction(grad, buffer));
    }
  };

  Functor functor;
  SK_HD Functor bind(int64_t) const { return functor; }
};

// kCounts: every coordinate has its own update number; corrections come from tables indexed by it.
template <class T, bool kDual, bool kCounts>
struct AdaBregStep {
  using Math = opmath_t<T>;
  using Param = std::conditional_t<kDual, Out<T>, InOut<T>>;
  using M = InOut<Math>;
  using Plain =
      std::conditional_t<kDual, StreamList<Param, In<T>, M, M, M>, StreamList<Param, In<T>, M, M>>;
  using Counted = std::conditional_t<kDual, StreamList<Param, In<T>, M, M, M, InOut<int32_t>>,
                                     StreamList<Param, In<T>, M, M, InOut<int32_t>>>;
  using Lists = std::conditional_t<kCounts, Counted, Plain>;
  static constexpr Reduce kReduce = Reduce::kCount;
  static constexpr bool kGenerated = false;

  struct Functor : AlwaysEnabled {
    Readout<Math> readout;
    Math sign, one_minus_beta1, beta2, one_minus_beta2, eps;
    Math step, bias2_sqrt;                 // of this update, where all counts agree
    const Math *step_sizes, *bias2_sqrts;  // [rows] by count, else
    int32_t last_row;

    SK_HD Math update(Math dual, Math theta, Math grad, Math& a, Math& u, Math step_now,
                      Math bias2_now) const {
      const Math g = sign * grad;
      a = a + (g - a) * one_minus_beta1;
      u = u * beta2 + (one_minus_beta2 * g) * g;
      const Math denominator = sqrt(u) / bias2_now + eps;
      return readout.decayed(dual, theta) - (step_now * a) / denominator;
    }
    SK_HD int32_t move(Math& param, Math& dual, Math grad, Math& a, Math& u, Math step_now,
                       Math bias2_now) const {
      if constexpr (kDual) {
        dual = update(dual, readout.theta(dual), grad, a, u, step_now, bias2_now);
        return readout.write(dual, param);
      } else {
        param = update(param, param, grad, a, u, step_now, bias2_now);
        return param != Math(0);
      }
    }
    SK_HD int32_t row(int32_t& count) const {
      count = count + 1;
      return min(count, last_row);
    }
    SK_HD int32_t operator()(Math& param, Math grad, Math& dual, Math& a, Math& u) const
      requires(kDual && !kCounts)
    {
      return move(param, dual, grad, a, u, step, bias2_sqrt);
    }
    SK_HD int32_t operator()(Math& param, Math grad, Math& a, Math& u) const
      requires(!kDual && !kCounts)
    {
      return move(param, param, grad, a, u, step, bias2_sqrt);
    }
    SK_HD int32_t operator()(Math& param, Math grad, Math& dual, Math& a, Math& u,
                             int32_t& count) const
      requires(kDual && kCounts)
    {
      const int32_t n = row(count);
      return move(param, dual, grad, a, u, step_sizes[n], bias2_sqrts[n]);
    }
    SK_HD int32_t operator()(Math& param, Math grad, Math& a, Math& u, int32_t& count) const
      requires(!kDual && kCounts)
    {
      const int32_t n = row(count);
      return move(param, param, grad, a, u, step_sizes[n], bias2_sqrts[n]);
    }
  };

  Functor functor;
  SK_HD Functor bind(int64_t) const { return functor; }
};

}  // namespace sk
