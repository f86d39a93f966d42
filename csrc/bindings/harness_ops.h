// Every op of the harness behind plain arguments: a dtype, flags and scalars.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../phases/zo_key.h"
#include "harness.h"

namespace sk::harness {

// f.operator()<T>() for the dtype's storage type
template <class F>
auto dispatch_dtype(const std::string& dtype, const F& f) {
  if (dtype == "float32") return f.template operator()<float>();
  if (dtype == "bfloat16") return f.template operator()<bf16>();
  if (dtype == "float16") return f.template operator()<f16>();
  throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got " + dtype);
}
template <class F>
auto dispatch_bool(bool value, const F& f) {
  return value ? f.template operator()<true>() : f.template operator()<false>();
}

inline Report masked_perturb(const Run& run, const std::string& dtype, bool adaptive,
                             const float* norm, float rho, float eta, float eps,
                             const float* device_rho) {
  return dispatch_dtype(dtype, [&]<class T>() {
    return dispatch_bool(adaptive, [&]<bool kAdaptive>() {
      return for_each_backed(MaskedPerturb<T, kAdaptive>{norm, rho, eta, eps, device_rho}, run);
    });
  });
}

inline Report restore(const Run& run, int bytes) {
  if (bytes == 2) return for_each_backed(Restore<uint16_t>{}, run);
  if (bytes == 4) return for_each_backed(Restore<uint32_t>{}, run);
  if (bytes == 8) return for_each_backed(Restore<uint64_t>{}, run);
  throw std::invalid_argument("bytes must be 2, 4 or 8");
}

// x: lr, momentum, 1 - dampening, weight decay
inline Report restore_sgd(const Run& run, const std::string& dtype, bool buffers,
                          const Gates<float>& gates, const std::array<float, 4>& x, bool nesterov,
                          bool first, const float* device_lr) {
  return dispatch_dtype(dtype, [&]<class T>() {
    return dispatch_bool(buffers, [&]<bool kMomentum>() {
      const RestoreSgd<T, kMomentum> op{gates, x[0], x[1], x[2], x[3], nesterov, first, device_lr};
      return for_each_backed(op, run);
    });
  });
}

// x: 1 - beta1, beta2, 1 - beta2, eps, decay, shrink
inline Report restore_adamw(const Run& run, const std::string& dtype, const Gates<float>& gates,
                            const float* step_sizes, const float* bias2_sqrts,
                            const std::array<float, 6>& x, const float* device_shrink) {
  return dispatch_dtype(dtype, [&]<class T>() {
    const RestoreAdamw<T> op{gates, step_sizes, bias2_sqrts, x[0], x[1],
                             x[2],  x[3],       x[4],        x[5], device_shrink};
    return for_each_backed(op, run);
  });
}

inline Sum norm(const Run& run, const std::string& dtype, bool weighted, float eta) {
  return dispatch_dtype(dtype, [&]<class T>() {
    return weighted ? for_each_sum(WeightedSquaredNorm<T>{eta}, run)
                    : for_each_sum(SquaredNorm<T>{}, run);
  });
}

inline Report mask_pack(const Run& run) { return for_each(MaskPack{}, run); }
inline Report mask_unpack(const Run& run) { return for_each(MaskUnpack{}, run); }

struct LinBregScalars {
  Readout<float> readout;
  float sign, beta, gain, step;
  bool nesterov;
  const float* scalars;  // [kStepScalars], or null
};

inline Report linbreg(const Run& run, const std::string& dtype, bool dual, bool readout,
                      bool momentum, const LinBregScalars& x, int64_t* live) {
  return dispatch_dtype(dtype, [&]<class T>() {
    return dispatch_dual(dual, readout, [&]<Dual kDual>() {
      return dispatch_bool(momentum, [&]<bool kMomentum>() {
        LinBregStep<T, kDual, kMomentum> op;
        op.functor.readout = x.readout;
        op.functor.sign = x.sign;
        op.functor.beta = x.beta;
        op.functor.gain = x.gain;
        op.functor.step = x.step;
        op.functor.nesterov = choice(x.nesterov);
        op.scalars = x.scalars;
        return for_each(op, run, nullptr, live);
      });
    });
  });
}

struct AdaBregScalars {
  Readout<float> readout;
  float sign, one_minus_beta1, beta2, one_minus_beta2, eps, step, bias2_sqrt;
  const float *step_sizes, *bias2_sqrts;  // [last_row + 1], where there are counts
  int32_t last_row;
  const float* scalars;  // [kStepScalars], or null
};

inline Report adabreg(const Run& run, const std::string& dtype, bool dual, bool readout,
                      bool counts, const AdaBregScalars& x, int64_t* live) {
  return dispatch_dtype(dtype, [&]<class T>() {
    return dispatch_dual(dual, readout, [&]<Dual kDual>() {
      return dispatch_bool(counts, [&]<bool kCounts>() {
        AdaBregStep<T, kDual, kCounts> op;
        op.functor.readout = x.readout;
        op.functor.sign = x.sign;
        op.functor.one_minus_beta1 = x.one_minus_beta1;
        op.functor.beta2 = x.beta2;
        op.functor.one_minus_beta2 = x.one_minus_beta2;
        op.functor.eps = x.eps;
        op.functor.step = x.step;
        op.functor.bias2_sqrt = x.bias2_sqrt;
        op.functor.step_sizes = x.step_sizes;
        op.functor.bias2_sqrts = x.bias2_sqrts;
        op.functor.last_row = x.last_row;
        op.scalars = x.scalars;
        return for_each(op, run, nullptr, live);
      });
    });
  });
}

// An op of random directions: its sum, or 0 where it has none.
template <class Op>
Sum for_each_drawn(const Op& op, const Run& run) {
  if constexpr (Op::kReduce == Reduce::kSum) return for_each_sum(op, run);
  Sum none;
  none.report = for_each(op, run);
  return none;
}

// What zo_combine starts from, as csrc/cuda/zo_combine.cu picks it. list: the tensors or their
// like; wide: floats; saved: the tensors, into a packed backup; entries: a packed backup.
template <class T, class Numbers, bool kSumsq>
Sum zo_combine_from(const Run& run, const std::string& source, const Directions<float>& stream,
                    const float* alpha, const float* gamma) {
  const auto op = [&]<class Source>() {
    return phases::Drawn<ZoCombine<T, Source, kSumsq>, Numbers>{{stream, alpha, gamma}};
  };
  using phases::packed;
  if (source == "list") return for_each_drawn(op.template operator()<T>(), run);
  if (source == "wide") return for_each_drawn(op.template operator()<float>(), run);
  if (source == "saved") return for_each_drawn(packed(op.template operator()<InPlace>()), run);
  if (source == "entries") {
    return for_each_drawn(packed(op.template operator()<FromEntries>()), run);
  }
  throw std::invalid_argument("unknown source " + source);
}

// total is the sum of squares, 0 where it is not wanted
inline Sum zo_combine(const Run& run, const std::string& dtype, const std::string& source,
                      const Directions<float>& stream, const float* alpha, const float* gamma,
                      bool sumsq) {
  return dispatch_dtype(dtype, [&]<class T>() {
    return phases::dispatch_numbers(stream, [&]<class Numbers>() -> Sum {
      // portable ones on the host: one dtype is enough
      if constexpr (phases::RandomTraits<Numbers>::kFast && !std::is_same_v<T, bf16>) {
        throw std::invalid_argument("fast normals are compiled for bfloat16 only");
      } else {
        return dispatch_bool(sumsq, [&]<bool kSumsq>() {
          return zo_combine_from<T, Numbers, kSumsq>(run, source, stream, alpha, gamma);
        });
      }
    });
  });
}

inline Sum zo_norm2(const Run& run, const Directions<float>& stream) {
  return phases::dispatch_numbers(stream, [&]<class Numbers>() {
    return for_each_sum(phases::Drawn<ZoNorm2<float>, Numbers>{{stream}}, run);
  });
}

inline Report zo_gram(const Run& run, const Directions<float>& stream, double* out) {
  return phases::dispatch_numbers(stream,
                                  [&]<class Numbers>() { return gram<Numbers>(stream, run, out); });
}

inline void zo_key(int64_t* key, int64_t* counter, const int64_t* seed, uint32_t stream) {
  Ledger ledger;
  std::vector<phases::KeyThread> states(phases::kThreads);
  phases::KeyShared shared;
  for (const int64_t* p :
       {static_cast<const int64_t*>(key), static_cast<const int64_t*>(counter), seed})
    ledger.add(p, 8);
  ledger.seal();
  HostBlock<phases::KeyShared, phases::KeyThread> block{shared, states, {&ledger}};
  walks["zo_key_kernel"];
  phases::key_block(block, key, counter, seed, stream);
}

}  // namespace sk::harness
