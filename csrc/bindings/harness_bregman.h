// The Bregman steps in the sanitized harness: every form of the dual, with and without momentum.
#pragma once

#include <string>
#include <vector>

#include "harness_lists.h"

namespace sk::harness {

// The lists of a Bregman step, all of them mutated but grads.
template <class T>
struct BregmanLists {
  List<T> params, grads;
  List<float> duals, first, second;
  List<int32_t> counts;

  BregmanLists(int shift, std::mt19937& random)
      : params(shift, random),
        grads(shift, random),
        duals(shift ? 4 : 0, random),
        first(duals.shift, random),
        second(duals.shift, random),
        counts(duals.shift, random) {
    each_live(nullptr, [&](size_t t, int64_t i) {
      counts.at(t, i) &= 3;
      second.at(t, i) = abs(second.at(t, i));
    });
  }
  bool operator==(const BregmanLists& o) const {
    return params.memory == o.params.memory && duals.memory == o.duals.memory &&
           first.memory == o.first.memory && second.memory == o.second.memory &&
           counts.memory == o.counts.memory;
  }
};

template <class T, Dual kDual, bool kMomentum>
void linbreg_step(int shift, bool masked, std::mt19937& random) {
  constexpr bool kOwn = kDual == Dual::kOwn;
  Masks bits(random), *masks = masked ? &bits : nullptr;
  BregmanLists<T> x(shift, random);
  auto y = x;
  LinBregStep<T, kDual, kMomentum> op;
  op.functor.readout = {0.3f, -0.3f, 1.5f, 0.01f, 0.1f, 1.0f};
  op.functor.sign = -1.0f;
  op.functor.beta = 0.9f;
  op.functor.gain = 0.1f;
  op.functor.step = 0.05f;
  op.functor.nesterov = choice(true);
  std::vector<int64_t> live(list_sizes.size()), wanted(list_sizes.size());
  each_live(masks, [&](size_t t, int64_t i) {
    float w = load(y.params.at(t, i));
    const float g = load(y.grads.at(t, i));
    float &dual = y.duals.at(t, i), &first = y.first.at(t, i);
    if constexpr (kOwn && kMomentum) {
      wanted[t] += op.functor(w, g, first);
    } else if constexpr (kOwn) {
      wanted[t] += op.functor(w, g);
    } else if constexpr (kMomentum) {
      wanted[t] += op.functor(w, g, dual, first);
    } else {
      wanted[t] += op.functor(w, g, dual);
    }
    if (kDual != Dual::kGiven) y.params.at(t, i) = store<T>(w);
  });
  const auto run = [&](auto&... lists) {
    for_each(op, run_of(masks, x.params, x.grads, lists...), nullptr, live.data());
  };
  if constexpr (kOwn && kMomentum) {
    run(x.first);
  } else if constexpr (kOwn) {
    run();
  } else if constexpr (kMomentum) {
    run(x.duals, x.first);
  } else {
    run(x.duals);
  }
  expect(x == y && live == wanted, "linbreg_step " + name_of<T>());
}

template <class T, Dual kDual, bool kCounts>
void adabreg_step(int shift, bool masked, std::mt19937& random) {
  constexpr bool kOwn = kDual == Dual::kOwn;
  Masks bits(random), *masks = masked ? &bits : nullptr;
  BregmanLists<T> x(shift, random);
  auto y = x;
  const std::vector<float> steps{0, 0.1f, 0.2f, 0.3f}, roots{1, 0.5f, 0.7f, 0.9f};
  AdaBregStep<T, kDual, kCounts> op;
  op.functor.readout = {0.3f, -0.3f, 1.5f, 0.01f, 0.1f, 3.0f};
  op.functor.sign = 1.0f;
  op.functor.one_minus_beta1 = 0.1f;
  op.functor.beta2 = 0.99f;
  op.functor.one_minus_beta2 = 0.01f;
  op.functor.eps = 1e-4f;
  op.functor.step = 0.1f;
  op.functor.bias2_sqrt = 0.7f;
  op.functor.step_sizes = steps.data();
  op.functor.bias2_sqrts = roots.data();
  op.functor.last_row = 3;
  std::vector<int64_t> live(list_sizes.size()), wanted(list_sizes.size());
  each_live(masks, [&](size_t t, int64_t i) {
    float w = load(y.params.at(t, i));
    const float g = load(y.grads.at(t, i));
    float &dual = y.duals.at(t, i), &a = y.first.at(t, i), &u = y.second.at(t, i);
    int32_t& count = y.counts.at(t, i);
    if constexpr (kOwn && kCounts) {
      wanted[t] += op.functor(w, g, a, u, count);
    } else if constexpr (kOwn) {
      wanted[t] += op.functor(w, g, a, u);
    } else if constexpr (kCounts) {
      wanted[t] += op.functor(w, g, dual, a, u, count);
    } else {
      wanted[t] += op.functor(w, g, dual, a, u);
    }
    if (kDual != Dual::kGiven) y.params.at(t, i) = store<T>(w);
  });
  const auto run = [&](auto&... lists) {
    for_each(op, run_of(masks, x.params, x.grads, lists...), nullptr, live.data());
  };
  if constexpr (kOwn && kCounts) {
    run(x.first, x.second, x.counts);
  } else if constexpr (kOwn) {
    run(x.first, x.second);
  } else if constexpr (kCounts) {
    run(x.duals, x.first, x.second, x.counts);
  } else {
    run(x.duals, x.first, x.second);
  }
  expect(x == y && live == wanted, "adabreg_step " + name_of<T>());
}

template <class T, Dual kDual>
void bregman_steps(int shift, bool masked, std::mt19937& random) {
  linbreg_step<T, kDual, false>(shift, masked, random);
  linbreg_step<T, kDual, true>(shift, masked, random);
  adabreg_step<T, kDual, false>(shift, masked, random);
  adabreg_step<T, kDual, true>(shift, masked, random);
}

template <class T>
void bregman_steps(int shift, bool masked, std::mt19937& random) {
  bregman_steps<T, Dual::kOwn>(shift, masked, random);
  bregman_steps<T, Dual::kShrunk>(shift, masked, random);
  bregman_steps<T, Dual::kGiven>(shift, masked, random);
}

}  // namespace sk::harness
