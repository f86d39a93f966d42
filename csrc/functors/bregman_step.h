// bregman_step: linearised Bregman iterations, elementwise, in place.
//   LinBreg:  d = g | b <- beta b + gain g, d = b (nesterov: d = g + beta b)
//             dual <- dual - scaled(step d) - decay theta
//   AdaBreg:  a <- a + (1 - beta1)(g - a), u <- beta2 u + (1 - beta2) g^2
//             dual <- dual - decay theta - scaled(step a / (sqrt(u) / bias2_sqrt + eps))
//   readout:  theta = delta shrink(dual),  shrink(v) = v - clamp(v, lower, lam),
//             lower = -lam, or -inf where theta must not be negative
//   inactive: where theta was 0, scaled(x) = fine_scale x, then dual <- dual - leak dual_old, then,
//             if fine_scale != 1, dual <- clamp(dual, lower - |x|, lam + |x|); else scaled(x) = x
// Without a list of duals the parameter is its own dual, delta is part of the step, and
// theta <- shrink(theta - ...) is a proximal gradient step (lam = 0: a gradient step).
// Source: Bungert, Roith, Tenbrinck, Burger, arXiv 2105.04319, algorithms 1 to 3 (LinBreg with
// momentum, AdaBreg). Deviations: both bias corrections of Adam; decoupled decay mu in the dual;
// leak and fine_scale of inactive entries.
// Symbols: dual = v, theta = param, tau = lr. step = lr (ema form: 1, lr sits in the buffer's
// gain). Lists: params[T] mutated (const where another op reads the dual out), grads[T] const,
// duals, momentum_buffers, exp_avgs, exp_avg_sqs mutated (float, double for double), counts mutated
// (int32). Units: lr, lam, decay, eps, leak >= 0, delta > 0, fine_scale >= 1. One rounding on
// store. NaN propagates; |dual| == lam gives +0.0. Returns 1 where the entry is live (|dual| > lam;
// dual > lam where theta must not be negative). What changes while training may come from the
// device: scalars[4] = lam, decay, step and gain (AdaBreg: bias2_sqrt) take the host's place.
// Twins: sparse_kernels/reference/bregman_step.py, sparse_kernels/triton/bregman_step.py.
#pragma once

#include <type_traits>

#include "../core/choice.h"
#include "streams.h"

namespace sk {

// What the dual is to the parameter. kOwn: there is none, the parameter takes its place. kShrunk:
// the parameter is its soft threshold and only written. kGiven: the parameter is only read, its
// readout is another op's.
enum class Dual { kOwn, kShrunk, kGiven };

constexpr int64_t kStepScalars = 4;

// f.operator()<Dual>()
template <class F>
auto dispatch_dual(bool duals, bool readout, const F& f) {
  if (!duals) return f.template operator()<Dual::kOwn>();
  return readout ? f.template operator()<Dual::kShrunk>() : f.template operator()<Dual::kGiven>();
}

// comparisons, unlike min and max, keep NaN and the sign of zero
template <class O>
SK_HD O clamp(O x, O low, O high) {
  const O raised = x < low ? low : x;
  return raised > high ? high : raised;
}

// dual - clamp(dual, lower, lam), +0.0 within the bounds by choice: -inf - -inf would be NaN
template <class O>
SK_HD O shrink(O dual, O lower, O lam) {
  const O clamped = clamp(dual, lower, lam), rest = dual - clamped;
  return clamped == dual ? O(0) : rest;
}

// The move of the dual and its readout, shared by both steps.
template <class O>
struct Readout {
  O lam, lower, delta, decay, leak = O(0), fine_scale = O(1);
  Choice decays = choice(decay != O(0)), thresholds = choice(lam != O(0) || lower != O(0));
  Choice leaks = choice(leak != O(0)), scales = choice(fine_scale != O(1));
  Choice rests = leaks | scales;  // inactive entries do something of their own

  // values that only the device knows; a lower bound of -inf stays
  SK_HD void take(O new_lam, O new_decay) {
    lower = isfinite(lower) ? -new_lam : lower;
    lam = new_lam, decay = new_decay;
    decays = choice(decay != O(0)), thresholds = choice(lam != O(0) || lower != O(0));
  }
  // without a threshold a choice: the subtraction would turn -0.0 into +0.0
  SK_HD O proximal(O x) const {
    const O shrunk = shrink(x, lower, lam);
    return choose(thresholds, shrunk, x);
  }
  template <bool kDecayFirst>
  SK_HD O stepped(O dual, O theta, O moved) const {
    const O from = kDecayFirst ? dual : dual - moved;
    const O decayed = choose(decays, from - decay * theta, from);
    return kDecayFirst ? decayed - moved : decayed;
  }
  // what an inactive entry does beside the step; old is its dual before
  SK_HD O inactive(O dual, O old, O moved) const {
    const O leaked = dual - leak * old, reach = abs(moved);
    const O kept = choose(leaks, leaked, dual);
    return choose(scales, clamp(kept, lower - reach, lam + reach), kept);
  }
  template <Dual kDual, bool kDecayFirst, bool kPlain, class Param>
  SK_HD int32_t update(Param& param, O& dual, O moved) const {
    if constexpr (kDual == Dual::kOwn) {
      param = proximal(stepped<kDecayFirst>(param, param, moved));
      return param != O(0);
    } else if constexpr (kPlain) {
      dual = dual - moved;
      return read_out<kDual>(dual, param);
    } else {
      const O old = dual, shrunk = shrink(old, lower, lam);
      const O theta = kDual == Dual::kGiven ? param : delta * shrunk;
      const bool dead = (kDual == Dual::kGiven ? param : shrunk) == O(0);
      const O plain = stepped<kDecayFirst>(old, theta, moved);
      O next = plain;
      if (worth_computing(rests)) {
        const O rested = inactive(stepped<kDecayFirst>(old, theta, fine_scale * moved), old, moved);
        next = choose(rests, dead ? rested : plain, plain);
      }
      dual = next;  // a store under the condition would keep the loop from being vectorised
      return read_out<kDual>(next, param);
    }
  }
  template <Dual kDual, class Param>
  SK_HD int32_t read_out(O dual, Param& param) const {
    if constexpr (kDual == Dual::kGiven) {
      return 0;
    } else {
      const O shrunk = shrink(dual, lower, lam);
      param = delta * shrunk;
      return shrunk != O(0);
    }
  }
};

template <class T, Dual kDual>
using ParamStream = std::conditional_t<kDual == Dual::kOwn, InOut<T>,
                                       std::conditional_t<kDual == Dual::kShrunk, Out<T>, In<T>>>;

// kPlain: no decay, and inactive entries do nothing of their own: a shorter loop, which does not
// read a given parameter.
template <class T, Dual kDual, bool kMomentum, bool kPlain = false>
struct LinBregStep {
  using Math = opmath_t<T>;
  using Param = ParamStream<T, kDual>;
  static constexpr bool kOwn = kDual == Dual::kOwn;
  using WithDual =
      std::conditional_t<kOwn, StreamList<Param, In<T>>, StreamList<Param, In<T>, InOut<Math>>>;
  using WithBoth = std::conditional_t<kOwn, StreamList<Param, In<T>, InOut<Math>>,
                                      StreamList<Param, In<T>, InOut<Math>, InOut<Math>>>;
  using Lists = std::conditional_t<kMomentum, WithBoth, WithDual>;
  static constexpr Reduce kReduce = Reduce::kCount;
  static constexpr bool kGenerated = false;
  using Value = std::conditional_t<kDual == Dual::kGiven, const Math, Math>;

  struct Functor : AlwaysEnabled {
    Readout<Math> readout;
    Math sign, beta, gain, step;  // sign -1 maximises; gain scales the gradient in the buffer
    Choice nesterov;

    SK_HD int32_t move(Value& param, Math& dual, Math d) const {
      return readout.template update<kDual, false, kPlain>(param, dual, step * d);
    }
    SK_HD Math direction(Math grad) const { return sign * grad; }
    SK_HD Math direction(Math grad, Math& buffer) const {
      const Math g = sign * grad;
      buffer = beta * buffer + gain * g;
      return choose(nesterov, g + beta * buffer, buffer);
    }
    SK_HD int32_t operator()(Value& param, Math grad) const
      requires(kOwn && !kMomentum)
    {
      return move(param, param, direction(grad));
    }
    SK_HD int32_t operator()(Value& param, Math grad, Math& other) const
      requires(kOwn == kMomentum)
    {
      if constexpr (kOwn) {
        return move(param, param, direction(grad, other));
      } else {
        return move(param, other, direction(grad));
      }
    }
    SK_HD int32_t operator()(Value& param, Math grad, Math& dual, Math& buffer) const
      requires(!kOwn && kMomentum)
    {
      return move(param, dual, direction(grad, buffer));
    }
  };

  Functor functor;
  const Math* scalars = nullptr;  // [kStepScalars] on the device, or the functor's own
  SK_HD Functor bind(int64_t) const {
    Functor f = functor;
    if (scalars) {
      f.readout.take(scalars[0], scalars[1]);
      f.step = scalars[2], f.gain = scalars[3];
    }
    return f;
  }
};

// kCounts: every coordinate has its own update number; corrections come from tables indexed by it.
template <class T, Dual kDual, bool kCounts, bool kPlain = false>
struct AdaBregStep {
  using Math = opmath_t<T>;
  using Param = ParamStream<T, kDual>;
  static constexpr bool kOwn = kDual == Dual::kOwn;
  using M = InOut<Math>;
  using Plain =
      std::conditional_t<kOwn, StreamList<Param, In<T>, M, M>, StreamList<Param, In<T>, M, M, M>>;
  using Counted = std::conditional_t<kOwn, StreamList<Param, In<T>, M, M, InOut<int32_t>>,
                                     StreamList<Param, In<T>, M, M, M, InOut<int32_t>>>;
  using Lists = std::conditional_t<kCounts, Counted, Plain>;
  static constexpr Reduce kReduce = Reduce::kCount;
  static constexpr bool kGenerated = false;
  using Value = std::conditional_t<kDual == Dual::kGiven, const Math, Math>;

  struct Functor : AlwaysEnabled {
    Readout<Math> readout;
    Math sign, one_minus_beta1, beta2, one_minus_beta2, eps;
    Math step, bias2_sqrt;                 // of this update, where all counts agree
    const Math *step_sizes, *bias2_sqrts;  // [rows] by count, else
    int32_t last_row;

    SK_HD int32_t move(Value& param, Math& dual, Math grad, Math& a, Math& u, Math step_now,
                       Math bias2_now) const {
      const Math g = sign * grad;
      a = a + (g - a) * one_minus_beta1;
      u = u * beta2 + (one_minus_beta2 * g) * g;
      const Math denominator = sqrt(u) / bias2_now + eps;
      return readout.template update<kDual, true, kPlain>(param, dual,
                                                          (step_now * a) / denominator);
    }
    SK_HD int32_t row(int32_t& count) const {
      count = count + 1;
      return min(count, last_row);
    }
    SK_HD int32_t operator()(Value& param, Math grad, Math& dual, Math& a, Math& u) const
      requires(!kOwn && !kCounts)
    {
      return move(param, dual, grad, a, u, step, bias2_sqrt);
    }
    SK_HD int32_t operator()(Value& param, Math grad, Math& a, Math& u) const
      requires(kOwn && !kCounts)
    {
      return move(param, param, grad, a, u, step, bias2_sqrt);
    }
    SK_HD int32_t operator()(Value& param, Math grad, Math& dual, Math& a, Math& u,
                             int32_t& count) const
      requires(!kOwn && kCounts)
    {
      const int32_t n = row(count);
      return move(param, dual, grad, a, u, step_sizes[n], bias2_sqrts[n]);
    }
    SK_HD int32_t operator()(Value& param, Math grad, Math& a, Math& u, int32_t& count) const
      requires(kOwn && kCounts)
    {
      const int32_t n = row(count);
      return move(param, param, grad, a, u, step_sizes[n], bias2_sqrts[n]);
    }
  };

  Functor functor;
  const Math* scalars = nullptr;  // [kStepScalars] on the device, or the functor's own
  SK_HD Functor bind(int64_t) const {
    Functor f = functor;
    if (scalars) {
      f.readout.take(scalars[0], scalars[1]);
      f.step = scalars[2], f.bias2_sqrt = scalars[3];
    }
    return f;
  }
};

}  // namespace sk
