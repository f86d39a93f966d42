#include "../functors/bregman_step.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <string>

#include "../torch/bregman_scalars.h"
#include "../torch/device_scalars.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "results.h"

namespace sk::cpu {

// f.operator()<kPlain>(), false where kMayBe is. Numbers on the device may turn out to ask for
// decay.
template <bool kMayBe, class O, class F>
Tensor dispatch_plain(const Readout<O>& read, const std::optional<Tensor>& scalars, const F& f) {
  if constexpr (kMayBe) {
    if (!read.rests && !read.decays && !scalars.has_value()) return f.template operator()<true>();
  }
  return f.template operator()<false>();
}

Tensor linbreg_step_cpu(const TensorList& params, const TensorList& grads, const TensorList& duals,
                        const TensorList& momentum_buffers, const TensorList& active, double lr,
                        double lam, double delta, double momentum, std::string momentum_form,
                        bool nesterov, double weight_decay, bool maximize, bool nonnegative,
                        bool readout, double dual_leak, double fine_scale,
                        std::optional<Tensor> scalars) {
  constexpr const char* kOp = "linbreg_step_";
  if (params.empty()) return live_result({});
  const ScalarType dtype = check_linbreg_step(params, grads, duals, momentum_buffers, active,
                                              readout, dual_leak, fine_scale);
  const auto segments = make_segments({&params, &grads, &duals, &momentum_buffers}, active, {});
  return dispatch_float<true>(kOp, dtype, [&]<class T>() {
    return dispatch_dual(!duals.empty(), readout, [&]<Dual kDual>() {
      return dispatch_bool(!momentum_buffers.empty(), [&]<bool kMomentum>() {
        const auto read =
            readout_of<T, kDual>(lr, lam, delta, weight_decay, nonnegative, dual_leak, fine_scale);
        return dispatch_plain<kDual != Dual::kOwn>(read, scalars, [&]<bool kPlain>() {
          const auto functor = linbreg_functor<T, kDual, kMomentum, kPlain>(
              read, lr, delta, momentum, momentum_form, nesterov, maximize);
          const auto* own =
              device_scalars<opmath_t<T>>(kOp, "scalars", scalars, kStepScalars, params);
          const LinBregStep<T, kDual, kMomentum, kPlain> op{functor, own};
          return live_result(for_each(op, segments).live);
        });
      });
    });
  });
}

Tensor adabreg_step_cpu(const TensorList& params, const TensorList& grads, const TensorList& duals,
                        const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                        const TensorList& counts, const TensorList& active, double lr, double lam,
                        double delta, double beta1, double beta2, double eps, double weight_decay,
                        bool maximize, bool nonnegative, bool readout, double dual_leak,
                        double fine_scale, int64_t step, std::optional<Tensor> step_sizes,
                        std::optional<Tensor> bias2_sqrts, std::optional<Tensor> scalars) {
  constexpr const char* kOp = "adabreg_step_";
  if (params.empty()) return live_result({});
  const ScalarType dtype = check_adabreg_step(params, grads, duals, exp_avgs, exp_avg_sqs, counts,
                                              active, readout, dual_leak, fine_scale);
  const int64_t rows = check_tables(kOp, counts, step_sizes, bias2_sqrts, params);
  const auto segments =
      make_segments({&params, &grads, &duals, &exp_avgs, &exp_avg_sqs, &counts}, active, {});
  return dispatch_float<true>(kOp, dtype, [&]<class T>() {
    return dispatch_dual(!duals.empty(), readout, [&]<Dual kDual>() {
      return dispatch_bool(!counts.empty(), [&]<bool kCounts>() {
        using O = opmath_t<T>;
        const auto read =
            readout_of<T, kDual>(lr, lam, delta, weight_decay, nonnegative, dual_leak, fine_scale);
        constexpr bool kMayBePlain = kDual != Dual::kOwn && !kCounts;
        return dispatch_plain<kMayBePlain>(read, scalars, [&]<bool kPlain>() {
          auto functor = adabreg_functor<T, kDual, kCounts, kPlain>(read, lr, delta, beta1, beta2,
                                                                    eps, maximize, step);
          functor.step_sizes = data_or_null<O>(step_sizes);
          functor.bias2_sqrts = data_or_null<O>(bias2_sqrts);
          functor.last_row = int32_t(rows - 1);
          const auto* own = device_scalars<O>(kOp, "scalars", scalars, kStepScalars, params);
          const AdaBregStep<T, kDual, kCounts, kPlain> op{functor, own};
          return live_result(for_each(op, segments).live);
        });
      });
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("linbreg_step_", TORCH_BOX(&linbreg_step_cpu));
  m.impl("adabreg_step_", TORCH_BOX(&adabreg_step_cpu));
}

}  // namespace sk::cpu
