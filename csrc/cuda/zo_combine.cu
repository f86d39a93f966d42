#include <torch/csrc/stable/library.h>

#include <string>

#include "../functors/zo_combine.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "../torch/zo_stream.h"
#include "for_each.cuh"
#include "gram.cuh"

namespace sk::cuda {

using phases::Drawn;

template <class Op>
void run(const Op& op, const std::vector<Segment>& segments, const Tensor& lead,
         const std::optional<Tensor>& sumsq) {
  if constexpr (Op::kReduce == Reduce::kSum) {
    const Total total{static_cast<double*>(sumsq->data_ptr()), nullptr, nullptr};
    for_each_sum(op, segments, lead, total);
  } else {
    for_each(op, segments, lead);
  }
}

void zo_combine_cuda(const TensorList& tensors, const TensorList& src, Tensor coef, Tensor key,
                     std::optional<Tensor> directions, int64_t first_direction,
                     const std::vector<int64_t>& uids, const std::vector<int64_t>& firsts,
                     std::string distribution, int64_t rounds, std::string math,
                     const TensorList& masks, const TensorList& backup, const TensorList& ranks,
                     std::optional<Tensor> alpha, std::optional<Tensor> gamma,
                     std::optional<Tensor> sumsq) {
  constexpr const char* kOp = "zo_combine_";
  if (tensors.empty()) return;
  const ScalarType dtype =
      check_zo_combine(tensors, src, masks, backup, ranks, alpha, gamma, sumsq);
  const bool entries = from_entries(backup, ranks);
  // one kernel for both forms: without a source the tensors are read as one
  const TensorList none, &source = !ranks.empty() ? none : (src.empty() ? tensors : src);
  const auto segments =
      drawn_segments(kOp, {&tensors, &source}, masks, entries ? src : backup, ranks, uids, firsts);
  dispatch_float<false>(kOp, dtype, [&]<class T>() {
    const auto stream =
        make_directions<float>(kOp, &coef, coef.numel(), key, directions, first_direction,
                               distribution, rounds, math, tensors);
    const auto* a = data_or_null<float>(alpha);
    const auto* g = data_or_null<float>(gamma);
    phases::dispatch_numbers(stream, [&]<class Numbers>() {
      dispatch_bool(sumsq.has_value(), [&]<bool kSumsq>() {
        dispatch_source<T>(source, backup, ranks, dtype, [&]<class Source>() {
          const Drawn<ZoCombine<T, Source, kSumsq>, Numbers> op{{stream, a, g}};
          if constexpr (kFromBackup<decltype(op)> || std::is_same_v<Source, InPlace>) {
            run(phases::packed(op), segments, tensors[0], sumsq);
          } else {
            run(op, segments, tensors[0], sumsq);
          }
        });
      });
    });
  });
}

Tensor zo_norm2_cuda(const TensorList& tensors, Tensor coef, Tensor key,
                     std::optional<Tensor> directions, int64_t first_direction,
                     const std::vector<int64_t>& uids, const std::vector<int64_t>& firsts,
                     std::string distribution, int64_t rounds, std::string math,
                     const TensorList& masks) {
  constexpr const char* kOp = "zo_norm2";
  if (tensors.empty()) return torch::stable::new_zeros(coef, {}, ScalarType::Double);
  const ScalarType dtype = check_drawn(kOp, tensors, masks);
  STD_TORCH_CHECK(dtype != ScalarType::Double, kOp, ": unsupported dtype");
  const auto segments = drawn_segments(kOp, {&tensors}, masks, {}, {}, uids, firsts);
  const auto stream = make_directions<float>(kOp, &coef, coef.numel(), key, directions,
                                             first_direction, distribution, rounds, math, tensors);
  Tensor out = torch::stable::new_empty(tensors[0], {}, ScalarType::Double);
  const Total total{static_cast<double*>(out.data_ptr()), nullptr, nullptr};
  phases::dispatch_numbers(stream, [&]<class Numbers>() {
    for_each_sum(Drawn<ZoNorm2<float>, Numbers>{{stream}}, segments, tensors[0], total);
  });
  return out;
}

Tensor zo_gram_cuda(const TensorList& tensors, int64_t q, Tensor key,
                    std::optional<Tensor> directions, int64_t first_direction,
                    const std::vector<int64_t>& uids, const std::vector<int64_t>& firsts,
                    std::string distribution, int64_t rounds, std::string math,
                    const TensorList& masks) {
  constexpr const char* kOp = "zo_gram";
  if (tensors.empty()) return torch::stable::new_zeros(key, {q, q}, ScalarType::Double);
  check_drawn(kOp, tensors, masks);
  const auto stream = make_directions<float>(kOp, nullptr, q, key, directions, first_direction,
                                             distribution, rounds, math, tensors);
  const torch::stable::accelerator::DeviceGuard guard(tensors[0].get_device());
  Tensor out = torch::stable::new_empty(tensors[0], {q, q}, ScalarType::Double);
  const auto segments = drawn_segments(kOp, {&tensors}, masks, {}, {}, uids, firsts);
  gram_matrix(stream, segments, tensors[0], static_cast<double*>(out.data_ptr()));
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("zo_combine_", TORCH_BOX(&zo_combine_cuda));
  m.impl("zo_norm2", TORCH_BOX(&zo_norm2_cuda));
  m.impl("zo_gram", TORCH_BOX(&zo_gram_cuda));
}

}  // namespace sk::cuda
