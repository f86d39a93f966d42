#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "../phases/topk.h"
#include "../torch/ranked.h"
#include "launch.cuh"

namespace sk::cuda {

using phases::HistogramShared;
using phases::MarksShared;
using phases::Ranked;
using phases::RankedTable;
using phases::RankedThread;
using phases::TieCounts;

template <class Keys>
__global__ void __launch_bounds__(phases::kThreads, 2)
    histogram_kernel(const __grid_constant__ Ranked<Keys> op,
                     const __grid_constant__ RankedTable<Keys> table, Digit digit,
                     int64_t* counts) {
  __shared__ HistogramShared shared;
  RankedThread state;
  DeviceBlock<HistogramShared, RankedThread> block{shared, state};
  phases::histogram_block(block, op, digit, table, counts, int32_t(blockIdx.x));
}

template <class Keys>
__global__ void __launch_bounds__(phases::kThreads, 2)
    write_kernel(const __grid_constant__ Ranked<Keys> op,
                 const __grid_constant__ RankedTable<Keys> table, bool accumulate, int64_t* ties) {
  __shared__ MarksShared shared;
  RankedThread state;
  DeviceBlock<MarksShared, RankedThread> block{shared, state};
  phases::write_block(block, op, table, accumulate, ties, int32_t(blockIdx.x));
}

template <class Keys>
__global__ void __launch_bounds__(phases::kThreads, 2)
    ties_kernel(const __grid_constant__ Ranked<Keys> op,
                const __grid_constant__ RankedTable<Keys> table, TieCounts tie) {
  __shared__ MarksShared shared;
  RankedThread state;
  DeviceBlock<MarksShared, RankedThread> block{shared, state};
  phases::ties_block(block, op, table, tie, int32_t(blockIdx.x));
}

// What the three ops share: launch(op, table, stream) for every tensor table of the scores.
template <class F>
void each_table(const char* op, const TensorList& scores, const std::string& kind,
                const std::optional<Tensor>& key, const std::vector<int64_t>& firsts,
                const TensorList& among, bool inverted, const Tensor& pools,
                const TensorList& words, const F& launch) {
  const torch::stable::accelerator::DeviceGuard guard(scores[0].get_device());
  const cudaStream_t stream = current_stream(scores[0].get_device());
  const auto segments = ranked_segments(scores, among, words, firsts);
  const ChunkPlan plan(numels_of(segments));
  const auto* numbers = static_cast<const int64_t*>(pools.data_ptr());
  const bool single = pools.numel() == 1;
  dispatch_keys<false>(op, kind, key, scores[0].scalar_type(), [&]<class Keys>(const Keys& keys) {
    static_assert(sizeof(RankedTable<Keys>) + 128 <= phases::kParameterBytes);
    const Ranked<Keys> ranked{keys, numbers, single, inverted};
    phases::for_each_table<Ranked<Keys>, false>(
        segments, plan, [&](const RankedTable<Keys>& table) {
          launch(ranked, table, unsigned(table.blocks()), stream);
          STD_CUDA_KERNEL_LAUNCH_CHECK();
        });
  });
}

Tensor topk_histogram_cuda(const TensorList& scores, std::string kind, std::optional<Tensor> key,
                           const std::vector<int64_t>& firsts, const TensorList& among,
                           bool inverted, Tensor prefix, int64_t shift, int64_t bits) {
  constexpr const char* kOp = "topk_histogram";
  check_digit(shift, bits, scores.empty() ? 64 : bits_of_key(kind, scores));
  Tensor out =
      torch::stable::new_zeros(prefix, {prefix.numel(), int64_t(1) << bits}, ScalarType::Long);
  if (scores.empty()) return out;
  check_ranked(kOp, scores, kind, key, firsts);
  check_masks(kOp, among, scores);
  check_pools(kOp, "prefix", prefix, prefix.numel(), scores);
  auto* counts = static_cast<int64_t*>(out.data_ptr());
  const Digit digit{int32_t(shift), int32_t(bits)};
  each_table(kOp, scores, kind, key, firsts, among, inverted, prefix, {},
             [&](const auto& op, const auto& table, unsigned blocks, cudaStream_t stream) {
               histogram_kernel<<<blocks, phases::kThreads, 0, stream>>>(op, table, digit, counts);
             });
  return out;
}

Tensor topk_write_cuda(const TensorList& scores, std::string kind, std::optional<Tensor> key,
                       const std::vector<int64_t>& firsts, const TensorList& among, bool inverted,
                       Tensor threshold, const TensorList& words, bool accumulate) {
  constexpr const char* kOp = "topk_write_";
  Tensor out = torch::stable::new_empty(threshold, {count_chunks(scores)}, ScalarType::Long);
  if (scores.empty()) return out;
  check_ranked(kOp, scores, kind, key, firsts);
  check_masks(kOp, among, scores);
  check_pools(kOp, "threshold", threshold, threshold.numel(), scores);
  check_output_words(kOp, words, scores);
  auto* ties = static_cast<int64_t*>(out.data_ptr());
  each_table(kOp, scores, kind, key, firsts, among, inverted, threshold, words,
             [&](const auto& op, const auto& table, unsigned blocks, cudaStream_t stream) {
               write_kernel<<<blocks, phases::kThreads, 0, stream>>>(op, table, accumulate, ties);
             });
  return out;
}

void topk_ties_cuda(const TensorList& scores, std::string kind, std::optional<Tensor> key,
                    const std::vector<int64_t>& firsts, const TensorList& among, bool inverted,
                    Tensor threshold, Tensor counts, Tensor before, Tensor take,
                    const TensorList& words) {
  constexpr const char* kOp = "topk_ties_";
  if (scores.empty()) return;
  check_ranked(kOp, scores, kind, key, firsts);
  check_masks(kOp, among, scores);
  check_topk_ties(scores, threshold, counts, before, take, words);
  const TieCounts tie{static_cast<const int64_t*>(counts.data_ptr()),
                      static_cast<const int64_t*>(before.data_ptr()),
                      static_cast<const int64_t*>(take.data_ptr())};
  each_table(kOp, scores, kind, key, firsts, among, inverted, threshold, words,
             [&](const auto& op, const auto& table, unsigned blocks, cudaStream_t stream) {
               ties_kernel<<<blocks, phases::kThreads, 0, stream>>>(op, table, tie);
             });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("topk_histogram", TORCH_BOX(&topk_histogram_cuda));
  m.impl("topk_write_", TORCH_BOX(&topk_write_cuda));
  m.impl("topk_ties_", TORCH_BOX(&topk_ties_cuda));
}

}  // namespace sk::cuda
