// Loops over the functors of every Bregman step, as csrc/cpu/block.h runs them: each must become
// vector code. A choice by a bool that is the same for all elements is enough to prevent it.
#include "../../csrc/functors/bregman_step.h"

#if defined(__x86_64__)
#define SK_TARGET [[gnu::target("arch=x86-64-v4")]]
#else
#define SK_TARGET
#endif

template <class Op, class... X>
[[gnu::always_inline]] inline void loop(const typename Op::Functor& functor, int n, int* results,
                                        X*... x) {
#pragma omp simd
  for (int i = 0; i < n; ++i) results[i] = functor(x[i]...);
}

using F = float*;
using sk::Dual;

template <Dual kDual, bool kMomentum, bool kRests = true>
using LinBreg = sk::LinBregStep<float, kDual, kMomentum, kRests>;
template <Dual kDual, bool kCounts>
using AdaBreg = sk::AdaBregStep<float, kDual, kCounts>;

using OwnLin = LinBreg<Dual::kOwn, false>;
using OwnMomentum = LinBreg<Dual::kOwn, true>;
using ShrunkLin = LinBreg<Dual::kShrunk, false>;
using PlainLin = LinBreg<Dual::kShrunk, false, false>;
using ShrunkMomentum = LinBreg<Dual::kShrunk, true>;
using GivenLin = LinBreg<Dual::kGiven, false>;
using GivenMomentum = LinBreg<Dual::kGiven, true>;
using OwnAda = AdaBreg<Dual::kOwn, false>;
using ShrunkAda = AdaBreg<Dual::kShrunk, false>;
using ShrunkCounts = AdaBreg<Dual::kShrunk, true>;
using GivenAda = AdaBreg<Dual::kGiven, false>;

// clang-format off
SK_TARGET void own_lin(const OwnLin::Functor& f, int n, int* r, F p, F g) { loop<OwnLin>(f, n, r, p, g); }
SK_TARGET void own_momentum(const OwnMomentum::Functor& f, int n, int* r, F p, F g, F b) { loop<OwnMomentum>(f, n, r, p, g, b); }
SK_TARGET void shrunk_lin(const ShrunkLin::Functor& f, int n, int* r, F p, F g, F v) { loop<ShrunkLin>(f, n, r, p, g, v); }
SK_TARGET void plain_lin(const PlainLin::Functor& f, int n, int* r, F p, F g, F v) { loop<PlainLin>(f, n, r, p, g, v); }
SK_TARGET void shrunk_momentum(const ShrunkMomentum::Functor& f, int n, int* r, F p, F g, F v, F b) { loop<ShrunkMomentum>(f, n, r, p, g, v, b); }
SK_TARGET void given_lin(const GivenLin::Functor& f, int n, int* r, F p, F g, F v) { loop<GivenLin>(f, n, r, p, g, v); }
SK_TARGET void given_momentum(const GivenMomentum::Functor& f, int n, int* r, F p, F g, F v, F b) { loop<GivenMomentum>(f, n, r, p, g, v, b); }
SK_TARGET void own_ada(const OwnAda::Functor& f, int n, int* r, F p, F g, F a, F u) { loop<OwnAda>(f, n, r, p, g, a, u); }
SK_TARGET void shrunk_ada(const ShrunkAda::Functor& f, int n, int* r, F p, F g, F v, F a, F u) { loop<ShrunkAda>(f, n, r, p, g, v, a, u); }
SK_TARGET void shrunk_counts(const ShrunkCounts::Functor& f, int n, int* r, F p, F g, F v, F a, F u, int* k) { loop<ShrunkCounts>(f, n, r, p, g, v, a, u, k); }
SK_TARGET void given_ada(const GivenAda::Functor& f, int n, int* r, F p, F g, F v, F a, F u) { loop<GivenAda>(f, n, r, p, g, v, a, u); }
// clang-format on
