// norm: square of an element, to be summed in the order of core/reduce.h.
//   dense     g^2;   weighted (adaptive SAM)   ((|w| + eta) g)^2
// Source: SAM, arXiv 2010.01412, eq. (2); ASAM, arXiv 2102.11600.
// Lists: grads[T] const, weights[T] const (weighted form).
// Twins: sparse_kernels/reference/norm.py, sparse_kernels/triton/norm.py.
#pragma once

#include "streams.h"

namespace sk {

template <class T>
struct SquaredNorm {
  using Math = opmath_t<T>;
  using Lists = StreamList<In<T>>;
  static constexpr Reduce kReduce = Reduce::kSum;
  static constexpr bool kGenerated = false;

  struct Functor : AlwaysEnabled {
    SK_HD Math operator()(Math grad) const { return grad * grad; }
  };
  SK_HD Functor bind(int64_t) const { return {}; }
};

template <class T>
struct WeightedSquaredNorm {
  using Math = opmath_t<T>;
  using Lists = StreamList<In<T>, In<T>>;
  static constexpr Reduce kReduce = Reduce::kSum;
  static constexpr bool kGenerated = false;

  Math eta;  // >= 0

  struct Functor : AlwaysEnabled {
    Math eta;
    SK_HD Math operator()(Math grad, Math weight) const {
      const Math x = (abs(weight) + eta) * grad;
      return x * x;
    }
  };
  SK_HD Functor bind(int64_t) const {
    Functor f;
    f.eta = eta;
    return f;
  }
};

}  // namespace sk
