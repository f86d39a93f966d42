#include "../functors/zo_combine.h"

#include <torch/csrc/stable/library.h>

#include <string>

#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "../torch/zo_stream.h"
#include "generate.h"
#include "gram.h"
#include "results.h"

namespace sk::cpu {

void zo_combine_cpu(const TensorList& tensors, const TensorList& src, Tensor coef, Tensor key,
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
  const TensorList none;
  const auto segments = drawn_segments(kOp, {&tensors, entries ? &none : &src}, masks,
                                       entries ? src : backup, ranks, uids, firsts);
  check_capacity(kOp, segments);
  dispatch_float<true>(kOp, dtype, [&]<class T>() {
    using O = opmath_t<T>;
    const auto stream = make_directions<O>(kOp, &coef, coef.numel(), key, directions,
                                           first_direction, distribution, rounds, math, tensors);
    dispatch_source<T>(src, backup, ranks, dtype, [&]<class Source>() {
      dispatch_bool(sumsq.has_value(), [&]<bool kSumsq>() {
        const ZoCombine<T, Source, kSumsq> op{stream, data_or_null<O>(alpha),
                                              data_or_null<O>(gamma)};
        const double sum = for_each(drawn(op), segments).sum;
        if (kSumsq) *static_cast<double*>(sumsq->data_ptr()) = sum;
      });
    });
  });
}

Tensor zo_norm2_cpu(const TensorList& tensors, Tensor coef, Tensor key,
                    std::optional<Tensor> directions, int64_t first_direction,
                    const std::vector<int64_t>& uids, const std::vector<int64_t>& firsts,
                    std::string distribution, int64_t rounds, std::string math,
                    const TensorList& masks) {
  constexpr const char* kOp = "zo_norm2";
  if (tensors.empty()) return scalar_result(0, ScalarType::Double);
  const ScalarType dtype = check_drawn(kOp, tensors, masks);
  const auto segments = drawn_segments(kOp, {&tensors}, masks, {}, {}, uids, firsts);
  const double sum = dispatch_float<true>(kOp, dtype, [&]<class T>() {
    const auto stream =
        make_directions<opmath_t<T>>(kOp, &coef, coef.numel(), key, directions, first_direction,
                                     distribution, rounds, math, tensors);
    return for_each(drawn(ZoNorm2<T>{stream}), segments).sum;
  });
  return scalar_result(sum, ScalarType::Double);
}

Tensor zo_gram_cpu(const TensorList& tensors, int64_t q, Tensor key,
                   std::optional<Tensor> directions, int64_t first_direction,
                   const std::vector<int64_t>& uids, const std::vector<int64_t>& firsts,
                   std::string distribution, int64_t rounds, std::string math,
                   const TensorList& masks) {
  constexpr const char* kOp = "zo_gram";
  Tensor out = torch::stable::empty({q, q}, ScalarType::Double);
  auto* gram = static_cast<double*>(out.data_ptr());
  std::fill(gram, gram + q * q, 0.0);
  if (tensors.empty()) return out;
  check_drawn(kOp, tensors, masks);
  const auto stream = make_directions<float>(kOp, nullptr, q, key, directions, first_direction,
                                             distribution, rounds, math, tensors);
  gram_matrix(stream, drawn_segments(kOp, {&tensors}, masks, {}, {}, uids, firsts), gram);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("zo_combine_", TORCH_BOX(&zo_combine_cpu));
  m.impl("zo_norm2", TORCH_BOX(&zo_norm2_cpu));
  m.impl("zo_gram", TORCH_BOX(&zo_gram_cpu));
}

}  // namespace sk::cpu
