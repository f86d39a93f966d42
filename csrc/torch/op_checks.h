// What each op demands of its lists, in one place for the CPU and the CUDA host functions. Every
// function returns the dtype of the first list, which is not empty.
#pragma once

#include <optional>

#include "check.h"

namespace sk {

inline ScalarType check_grad_norm(const TensorList& grads, const TensorList& masks,
                                  const TensorList& weights) {
  constexpr const char* kOp = "grad_norm";
  STD_TORCH_CHECK(!grads.empty(), kOp, ": the list is empty");
  const ScalarType dtype = grads[0].scalar_type();
  check_list(kOp, "grads", grads, grads, dtype);
  check_list(kOp, "weights", weights, grads, dtype);
  check_masks(kOp, masks, grads);
  return dtype;
}

// A whole backup, a packed one, or none.
inline void check_backup(const char* op, const TensorList& params, const TensorList& masks,
                         const TensorList& backup, const TensorList& ranks) {
  const ScalarType dtype = params[0].scalar_type();
  check_masks(op, masks, params);
  if (ranks.empty()) return check_list(op, "backup", backup, params, dtype);
  STD_TORCH_CHECK(!masks.empty(), op, ": ranks need masks");
  STD_TORCH_CHECK(backup.size() == 1 && backup[0].scalar_type() == dtype &&
                      backup[0].is_contiguous() && backup[0].device() == params[0].device(),
                  op, ": with ranks, backup must be one contiguous tensor like the params");
  STD_TORCH_CHECK(ranks.size() == params.size(), op, ": ranks has ", ranks.size(),
                  " tensors, expected ", params.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    STD_TORCH_CHECK(ranks[i].scalar_type() == ScalarType::Long &&
                        ranks[i].numel() == tiles_of(params[i].numel()) &&
                        ranks[i].is_contiguous() && ranks[i].device() == params[i].device(),
                    op, ": ranks[", i, "] is not the table of its mask");
  }
}

inline ScalarType check_masked_perturb(const TensorList& params, const TensorList& grads,
                                       const Tensor& norm, const TensorList& masks,
                                       const TensorList& backup, const TensorList& ranks) {
  constexpr const char* kOp = "masked_perturb_";
  const ScalarType dtype = params[0].scalar_type();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "grads", grads, params, dtype);
  check_backup(kOp, params, masks, backup, ranks);
  check_scalars(kOp, "norm", norm, 1, math_type(dtype), params);
  STD_TORCH_CHECK(!grads.empty(), kOp, ": grads is empty");
  return dtype;
}

// restore_ and the base steps that start from it
inline ScalarType check_restore(const char* op, const TensorList& params, const TensorList& masks,
                                const TensorList& backup, const TensorList& ranks) {
  const ScalarType dtype = params[0].scalar_type();
  check_list(op, "params", params, params, dtype);
  check_backup(op, params, masks, backup, ranks);
  STD_TORCH_CHECK(!backup.empty(), op, ": backup is empty");
  return dtype;
}

inline void check_gates(const char* op, const TensorList& params, const std::optional<Tensor>& skip,
                        const std::optional<Tensor>& inv_scale) {
  const ScalarType math = math_type(params[0].scalar_type());
  if (skip) check_scalars(op, "skip", *skip, 1, math, params);
  if (inv_scale) check_scalars(op, "inv_scale", *inv_scale, 1, math, params);
}

inline ScalarType check_restore_sgd(const TensorList& params, const TensorList& grads,
                                    const TensorList& momentum_buffers, const TensorList& masks,
                                    const TensorList& backup, const TensorList& ranks,
                                    const std::optional<Tensor>& skip,
                                    const std::optional<Tensor>& inv_scale) {
  constexpr const char* kOp = "restore_sgd_";
  const ScalarType dtype = check_restore(kOp, params, masks, backup, ranks);
  check_list(kOp, "grads", grads, params, dtype);
  check_list(kOp, "momentum_buffers", momentum_buffers, params, dtype);
  check_gates(kOp, params, skip, inv_scale);
  STD_TORCH_CHECK(!grads.empty(), kOp, ": grads is empty");
  return dtype;
}

inline ScalarType check_restore_adamw(const TensorList& params, const TensorList& grads,
                                      const TensorList& exp_avgs, const TensorList& exp_avg_sqs,
                                      const TensorList& masks, const TensorList& backup,
                                      const TensorList& ranks, const Tensor& step_sizes,
                                      const Tensor& bias2_sqrts, const std::optional<Tensor>& skip,
                                      const std::optional<Tensor>& inv_scale) {
  constexpr const char* kOp = "restore_adamw_";
  const ScalarType dtype = check_restore(kOp, params, masks, backup, ranks);
  const int64_t count = int64_t(params.size());
  check_list(kOp, "grads", grads, params, dtype);
  check_list(kOp, "exp_avgs", exp_avgs, params, dtype);
  check_list(kOp, "exp_avg_sqs", exp_avg_sqs, params, dtype);
  check_scalars(kOp, "step_sizes", step_sizes, count, math_type(dtype), params);
  check_scalars(kOp, "bias2_sqrts", bias2_sqrts, count, math_type(dtype), params);
  check_gates(kOp, params, skip, inv_scale);
  STD_TORCH_CHECK(!grads.empty() && !exp_avgs.empty() && !exp_avg_sqs.empty(), kOp,
                  ": grads, exp_avgs or exp_avg_sqs is empty");
  return dtype;
}

inline void check_words(const char* op, const TensorList& masks, const TensorList& words) {
  check_list(op, "masks", masks, masks, ScalarType::Bool);
  STD_TORCH_CHECK(words.size() == masks.size(), op, ": words and masks differ in length");
  check_masks(op, words, masks);
}

inline ScalarType check_linbreg_step(const TensorList& params, const TensorList& grads,
                                     const TensorList& duals, const TensorList& momentum_buffers,
                                     const TensorList& active) {
  constexpr const char* kOp = "linbreg_step_";
  const ScalarType dtype = params[0].scalar_type();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "grads", grads, params, dtype);
  check_list(kOp, "duals", duals, params, math_type(dtype));
  check_list(kOp, "momentum_buffers", momentum_buffers, params, math_type(dtype));
  check_masks(kOp, active, params);
  STD_TORCH_CHECK(!grads.empty(), kOp, ": grads is empty");
  return dtype;
}

inline ScalarType check_adabreg_step(const TensorList& params, const TensorList& grads,
                                     const TensorList& duals, const TensorList& exp_avgs,
                                     const TensorList& exp_avg_sqs, const TensorList& counts,
                                     const TensorList& active) {
  constexpr const char* kOp = "adabreg_step_";
  const ScalarType dtype = params[0].scalar_type();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "grads", grads, params, dtype);
  check_list(kOp, "duals", duals, params, math_type(dtype));
  check_list(kOp, "exp_avgs", exp_avgs, params, math_type(dtype));
  check_list(kOp, "exp_avg_sqs", exp_avg_sqs, params, math_type(dtype));
  check_list(kOp, "counts", counts, params, ScalarType::Int);
  check_masks(kOp, active, params);
  STD_TORCH_CHECK(!grads.empty() && !exp_avgs.empty() && !exp_avg_sqs.empty(), kOp,
                  ": grads, exp_avgs or exp_avg_sqs is empty");
  return dtype;
}

inline ScalarType check_zo_combine(const TensorList& tensors, const TensorList& src,
                                   const TensorList& masks, const TensorList& backup,
                                   const std::optional<Tensor>& alpha,
                                   const std::optional<Tensor>& gamma,
                                   const std::optional<Tensor>& sumsq) {
  constexpr const char* kOp = "zo_combine_";
  const ScalarType dtype = tensors[0].scalar_type(), math = math_type(dtype);
  const int64_t count = int64_t(tensors.size());
  check_list(kOp, "tensors", tensors, tensors, dtype);
  check_list(kOp, "src", src, tensors, dtype);
  check_list(kOp, "backup", backup, tensors, dtype);
  check_masks(kOp, masks, tensors);
  if (alpha) check_scalars(kOp, "alpha", *alpha, count, math, tensors);
  if (gamma) check_scalars(kOp, "gamma", *gamma, count, math, tensors);
  if (sumsq) check_scalars(kOp, "sumsq", *sumsq, 1, ScalarType::Double, tensors);
  return dtype;
}

// zo_norm2, zo_gram: only numel, dtype and device of the tensors are used
inline ScalarType check_drawn(const char* op, const TensorList& tensors, const TensorList& masks) {
  const ScalarType dtype = tensors[0].scalar_type();
  check_list(op, "tensors", tensors, tensors, dtype);
  check_masks(op, masks, tensors);
  return dtype;
}

}  // namespace sk
