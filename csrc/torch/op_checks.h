// What each op demands of its lists, in one place for the CPU and the CUDA host functions. Every
// function returns the dtype of the first list, which is not empty.
#pragma once

#include <optional>
#include <string>

#include "../core/chunk_plan.h"
#include "../functors/mask_count.h"
#include "../functors/prox_group.h"
#include "../functors/ranked.h"
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
  check_distinct(kOp, {&params, &backup});
  return dtype;
}

// restore_ and the base steps that start from it
inline ScalarType check_restore(const char* op, const TensorList& params, const TensorList& masks,
                                const TensorList& backup, const TensorList& ranks) {
  const ScalarType dtype = params[0].scalar_type();
  check_list(op, "params", params, params, dtype);
  check_backup(op, params, masks, backup, ranks);
  STD_TORCH_CHECK(!backup.empty(), op, ": backup is empty");
  check_distinct(op, {&params});
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
  check_distinct(kOp, {&params, &momentum_buffers});
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
  check_distinct(kOp, {&params, &exp_avgs, &exp_avg_sqs});
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

// One number per tile of every mask.
inline void check_tables(const char* op, const char* name, const TensorList& tables,
                         const TensorList& words) {
  STD_TORCH_CHECK(tables.size() == words.size(), op, ": words and ", name, " differ in length");
  for (size_t i = 0; i < tables.size(); ++i) {
    const int64_t tiles = (words[i].numel() + MaskCount::kWords - 1) / MaskCount::kWords;
    STD_TORCH_CHECK(tables[i].scalar_type() == ScalarType::Long && tables[i].numel() == tiles &&
                        tables[i].is_contiguous() && tables[i].device() == words[i].device(),
                    op, ": ", name, "[", i, "] is not the table of words[", i, "]");
  }
}

inline void check_mask_count(const TensorList& words, const TensorList& counts) {
  constexpr const char* kOp = "mask_count_";
  check_list(kOp, "words", words, words, ScalarType::Int);
  check_tables(kOp, "counts", counts, words);
}

inline void check_mask_apply(const TensorList& tensors, const TensorList& masks) {
  constexpr const char* kOp = "mask_apply_";
  check_list(kOp, "tensors", tensors, tensors, tensors[0].scalar_type());
  STD_TORCH_CHECK(!masks.empty(), kOp, ": masks is empty");
  check_masks(kOp, masks, tensors);
  check_distinct(kOp, {&tensors});
}

// What every selection ranks by.
inline ScalarType check_ranked(const char* op, const TensorList& scores, const std::string& kind,
                               const std::optional<Tensor>& key,
                               const std::vector<int64_t>& firsts) {
  const ScalarType dtype = scores[0].scalar_type();
  check_list(op, "scores", scores, scores, dtype);
  const bool random = kind == "random";
  STD_TORCH_CHECK(random || kind == "value" || kind == "abs", op, ": unknown kind ", kind);
  STD_TORCH_CHECK(key.has_value() == random, op, ": key goes with kind random and only with it");
  if (key) check_scalars(op, "key", *key, 1, ScalarType::Long, scores);
  STD_TORCH_CHECK(firsts.empty() || firsts.size() == scores.size(), op,
                  ": one first index per tensor is needed");
  for (const int64_t first : firsts) {
    STD_TORCH_CHECK(first >= 0, op, ": a first index is negative");
  }
  return dtype;
}

inline void check_output_words(const char* op, const TensorList& words, const TensorList& scores) {
  STD_TORCH_CHECK(words.size() == scores.size(), op, ": words and scores differ in length");
  check_masks(op, words, scores);
}

// One number per pool: one pool, or one per tensor.
inline void check_pools(const char* op, const char* name, const Tensor& t, int64_t pools,
                        const TensorList& scores) {
  check_scalars(op, name, t, pools, ScalarType::Long, scores);
  STD_TORCH_CHECK(pools == 1 || pools == int64_t(scores.size()), op, ": ", name, " has ", pools,
                  " elements for ", scores.size(), " tensors");
}

inline void check_digit(int64_t shift, int64_t bits, int64_t key_bits) {
  constexpr const char* kOp = "topk_histogram";
  STD_TORCH_CHECK(bits >= 1 && bits <= kDigitBits, kOp, ": bits must be in [1, ", kDigitBits, "]");
  STD_TORCH_CHECK(shift >= 0 && shift <= key_bits - bits, kOp, ": no such digit of a key");
}

inline int64_t count_chunks(const TensorList& tensors) {
  int64_t chunks = 0;
  for (const Listed& t : tensors) chunks += chunks_of(t.numel());
  return chunks;
}

inline void check_topk_ties(const TensorList& scores, const Tensor& threshold, const Tensor& counts,
                            const Tensor& before, const Tensor& take, const TensorList& words) {
  constexpr const char* kOp = "topk_ties_";
  const int64_t chunks = count_chunks(scores);
  check_pools(kOp, "threshold", threshold, threshold.numel(), scores);
  check_pools(kOp, "take", take, threshold.numel(), scores);
  check_scalars(kOp, "counts", counts, chunks, ScalarType::Long, scores);
  check_scalars(kOp, "before", before, chunks, ScalarType::Long, scores);
  check_output_words(kOp, words, scores);
}

inline void check_mask_nm(const TensorList& scores, const std::vector<int64_t>& rows,
                          const std::vector<int64_t>& cols, int64_t n, int64_t m,
                          const TensorList& words) {
  constexpr const char* kOp = "mask_nm_";
  STD_TORCH_CHECK(m >= 1 && n >= 0 && n <= m, kOp, ": n must be in [0, m] and m >= 1");
  STD_TORCH_CHECK(rows.size() == scores.size() && cols.size() == scores.size(), kOp,
                  ": rows and cols of every tensor are needed");
  for (size_t i = 0; i < scores.size(); ++i) {
    const int64_t numel = scores[i].numel();
    STD_TORCH_CHECK(
        rows[i] >= 0 && cols[i] >= 0 &&
            (numel == 0 ? rows[i] == 0 || cols[i] == 0
                        : cols[i] != 0 && numel % cols[i] == 0 && numel / cols[i] == rows[i]),
        kOp, ": rows and cols of scores[", i, "] do not fit");
  }
  check_output_words(kOp, words, scores);
}

// What the Bregman steps do with entries at zero needs a dual, and its readout.
inline void check_readout(const char* op, const TensorList& duals, bool readout, double dual_leak,
                          double fine_scale) {
  STD_TORCH_CHECK(!duals.empty() || (readout && dual_leak == 0.0), op,
                  ": readout = false and dual_leak need duals");
  STD_TORCH_CHECK(fine_scale == 1.0 || (!duals.empty() && readout), op,
                  ": fine_scale needs duals and their readout");
}

inline ScalarType check_linbreg_step(const TensorList& params, const TensorList& grads,
                                     const TensorList& duals, const TensorList& momentum_buffers,
                                     const TensorList& active, bool readout, double dual_leak,
                                     double fine_scale) {
  constexpr const char* kOp = "linbreg_step_";
  check_readout(kOp, duals, readout, dual_leak, fine_scale);
  const ScalarType dtype = params[0].scalar_type();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "grads", grads, params, dtype);
  check_list(kOp, "duals", duals, params, math_type(dtype));
  check_list(kOp, "momentum_buffers", momentum_buffers, params, math_type(dtype));
  check_masks(kOp, active, params);
  STD_TORCH_CHECK(!grads.empty(), kOp, ": grads is empty");
  const TensorList none;
  check_distinct(kOp, {readout ? &params : &none, &duals, &momentum_buffers});
  return dtype;
}

inline ScalarType check_adabreg_step(const TensorList& params, const TensorList& grads,
                                     const TensorList& duals, const TensorList& exp_avgs,
                                     const TensorList& exp_avg_sqs, const TensorList& counts,
                                     const TensorList& active, bool readout, double dual_leak,
                                     double fine_scale) {
  constexpr const char* kOp = "adabreg_step_";
  check_readout(kOp, duals, readout, dual_leak, fine_scale);
  const ScalarType dtype = params[0].scalar_type();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "grads", grads, params, dtype);
  check_list(kOp, "duals", duals, params, math_type(dtype));
  check_list(kOp, "exp_avgs", exp_avgs, params, math_type(dtype));
  check_list(kOp, "exp_avg_sqs", exp_avg_sqs, params, math_type(dtype));
  check_list(kOp, "counts", counts, params, ScalarType::Int);
  check_masks(kOp, active, params);
  const TensorList none;
  check_distinct(kOp, {readout ? &params : &none, &duals, &exp_avgs, &exp_avg_sqs, &counts});
  STD_TORCH_CHECK(!grads.empty() && !exp_avgs.empty() && !exp_avg_sqs.empty(), kOp,
                  ": grads, exp_avgs or exp_avg_sqs is empty");
  return dtype;
}

inline ScalarType check_prox_group(const TensorList& params, const TensorList& duals,
                                   const TensorList& alive, const std::vector<int64_t>& cols,
                                   const std::vector<int64_t>& heights,
                                   const std::vector<int64_t>& widths, const Tensor& thresholds) {
  constexpr const char* kOp = "prox_group_";
  const ScalarType dtype = params[0].scalar_type();
  const size_t count = params.size();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "duals", duals, params, math_type(dtype));
  STD_TORCH_CHECK(!duals.empty(), kOp, ": duals is empty");
  check_distinct(kOp, {&params, &alive});
  check_scalars(kOp, "thresholds", thresholds, 4 * int64_t(count), math_type(dtype), params);
  STD_TORCH_CHECK(cols.size() == count && heights.size() == count && widths.size() == count &&
                      (alive.empty() || alive.size() == count),
                  kOp, ": cols, heights, widths and alive of every tensor are needed");
  for (size_t i = 0; i < count; ++i) {
    const int64_t numel = params[i].numel();
    STD_TORCH_CHECK(cols[i] >= 1 && heights[i] >= 1 && widths[i] >= 1 && widths[i] <= cols[i] &&
                        numel % cols[i] == 0,
                    kOp, ": the tiling of params[", i, "] does not divide it");
    if (alive.empty()) continue;
    const int64_t groups = make_tiling(numel, cols[i], heights[i], widths[i]).groups();
    STD_TORCH_CHECK(alive[i].numel() == groups && alive[i].scalar_type() == ScalarType::Byte &&
                        alive[i].is_contiguous() && alive[i].device() == params[i].device(),
                    kOp, ": alive[", i, "] is not one byte per group");
  }
  return dtype;
}

inline ScalarType check_zo_combine(const TensorList& tensors, const TensorList& src,
                                   const TensorList& masks, const TensorList& backup,
                                   const TensorList& ranks, const std::optional<Tensor>& alpha,
                                   const std::optional<Tensor>& gamma,
                                   const std::optional<Tensor>& sumsq) {
  constexpr const char* kOp = "zo_combine_";
  const ScalarType dtype = tensors[0].scalar_type(), math = math_type(dtype);
  const int64_t count = int64_t(tensors.size());
  check_list(kOp, "tensors", tensors, tensors, dtype);
  STD_TORCH_CHECK(ranks.empty() || src.empty() || backup.empty(), kOp,
                  ": with ranks, src or backup is given, not both");
  const bool entries = !ranks.empty() && backup.empty();  // src is packed
  check_backup(kOp, tensors, masks, entries ? src : backup, ranks);
  if (!entries && !src.empty()) {
    const ScalarType from = src[0].scalar_type();
    STD_TORCH_CHECK(from == dtype || from == math, kOp, ": src has the wrong dtype");
    check_list(kOp, "src", src, tensors, from);
  }
  if (alpha) check_scalars(kOp, "alpha", *alpha, count, math, tensors);
  if (gamma) check_scalars(kOp, "gamma", *gamma, count, math, tensors);
  if (sumsq) check_scalars(kOp, "sumsq", *sumsq, 1, ScalarType::Double, tensors);
  check_distinct(kOp, {&tensors, &backup});
  return dtype;
}

inline void check_zo_key(const Tensor& key, const Tensor& counter, const Tensor& seed,
                         int64_t stream) {
  constexpr const char* kOp = "zo_key_";
  check_scalars(kOp, "key", key, 1, ScalarType::Long, key);
  check_scalars(kOp, "counter", counter, 1, ScalarType::Long, key);
  check_scalars(kOp, "seed", seed, 1, ScalarType::Long, key);
  STD_TORCH_CHECK(stream >= 0 && stream < (int64_t(1) << 32), kOp, ": stream out of range");
}

// zo_norm2, zo_gram: only numel, dtype and device of the tensors are used
inline ScalarType check_drawn(const char* op, const TensorList& tensors, const TensorList& masks) {
  const ScalarType dtype = tensors[0].scalar_type();
  check_list(op, "tensors", tensors, tensors, dtype);
  check_masks(op, masks, tensors);
  return dtype;
}

}  // namespace sk
