// The only elementwise kernel, and its launcher: one launch per tensor table, one block per chunk.
#pragma once

#include <vector>

#include "../phases/for_each.h"
#include "launch.cuh"

namespace sk::cuda {

using phases::Outputs;
using phases::TableOf;
using phases::Total;

// 2 blocks per SM: at most 64 registers per thread
template <class Op, bool kMasked>
__global__ void __launch_bounds__(phases::kThreads, 2)
    for_each_kernel(const __grid_constant__ Op op,
                    const __grid_constant__ TableOf<Op, kMasked> table,
                    const __grid_constant__ Outputs out) {
  __shared__ phases::Shared<Op> shared;
  phases::Thread<Op> state;
  DeviceBlock<phases::Shared<Op>, phases::Thread<Op>> block{shared, state};
  phases::for_each_block<kMasked>(block, op, table, out, int32_t(blockIdx.x));
}

// The caller holds a DeviceGuard.
template <bool kMasked, class Op>
void launch_masked(const Op& op, const std::vector<Segment>& segments, const ChunkPlan& plan,
                   const Outputs& out, cudaStream_t stream) {
  static_assert(sizeof(Op) + sizeof(TableOf<Op, kMasked>) + sizeof(Outputs) <=
                phases::kParameterBytes);
  phases::for_each_table<Op, kMasked>(segments, plan, [&](const TableOf<Op, kMasked>& table) {
    for_each_kernel<Op, kMasked>
        <<<unsigned(table.blocks()), phases::kThreads, 0, stream>>>(op, table, out);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

template <class Op>
void launch(const Op& op, const std::vector<Segment>& segments, const ChunkPlan& plan,
            const Outputs& out, int32_t device) {
  const cudaStream_t stream = current_stream(device);
  if constexpr (!phases::Traits<Op>::kInput) {  // the ops on masks take none themselves
    if (phases::kMaskAlways<Op> || phases::any_masked(segments)) {
      return launch_masked<true>(op, segments, plan, out, stream);
    }
  }
  if constexpr (!phases::kMaskAlways<Op>) {
    launch_masked<false>(op, segments, plan, out, stream);
  }
}

// Of an op with a block program of its own: launch(table, blocks, stream) for every tensor table.
template <class Op, class F>
void each_table(const std::vector<Segment>& segments, const Tensor& lead, const F& launch) {
  using Table = TableOf<Op, false>;
  static_assert(sizeof(Table) <= phases::kParameterBytes);
  const torch::stable::accelerator::DeviceGuard guard(lead.get_device());
  const cudaStream_t stream = current_stream(lead.get_device());
  phases::for_each_table<Op, false>(segments, ChunkPlan(numels_of(segments)),
                                    [&](const Table& table) {
                                      launch(table, unsigned(table.blocks()), stream);
                                      STD_CUDA_KERNEL_LAUNCH_CHECK();
                                    });
}

// The output is the stream; the input goes beside it, since its elements are of another number.
inline std::vector<Segment> segments_with_input(const TensorList& outputs,
                                                const TensorList& inputs) {
  auto segments = make_segments({&outputs}, {}, {});
  for (size_t i = 0; i < segments.size(); ++i) {
    segments[i].input = inputs[i].data_ptr();
    segments[i].input_numel = inputs[i].numel();
  }
  return segments;
}

// An op that only writes its streams.
template <class Op>
void for_each(const Op& op, const std::vector<Segment>& segments, const Tensor& lead) {
  const torch::stable::accelerator::DeviceGuard guard(lead.get_device());
  launch(op, segments, ChunkPlan(numels_of(segments)), {nullptr, nullptr}, lead.get_device());
}

// The same for an op with a backup, whole or packed.
template <class Op>
void for_each_backed(const Op& op, const std::vector<Segment>& segments, const Tensor& lead) {
  if (phases::any_packed(segments)) return for_each(phases::packed(op), segments, lead);
  for_each(op, segments, lead);
}

// An op that counts: live entries per tensor.
template <class Op>
Tensor for_each_live(const Op& op, const std::vector<Segment>& segments, const Tensor& lead) {
  const torch::stable::accelerator::DeviceGuard guard(lead.get_device());
  Tensor live = torch::stable::new_zeros(lead, {int64_t(segments.size())}, ScalarType::Long);
  launch(op, segments, ChunkPlan(numels_of(segments)),
         {nullptr, static_cast<int64_t*>(live.data_ptr())}, lead.get_device());
  return live;
}

void finish_sum(const double* partials, int64_t count, const Total& out, cudaStream_t stream);

// An op that sums: the chunk partials, then a finishing block.
template <class Op>
void for_each_sum(const Op& op, const std::vector<Segment>& segments, const Tensor& lead,
                  const Total& out) {
  const torch::stable::accelerator::DeviceGuard guard(lead.get_device());
  const ChunkPlan plan(numels_of(segments));
  Tensor sums = torch::stable::new_empty(lead, {plan.chunks()}, ScalarType::Double);
  auto* partials = static_cast<double*>(sums.data_ptr());
  launch(op, segments, plan, {partials, nullptr}, lead.get_device());
  finish_sum(partials, plan.chunks(), out, current_stream(lead.get_device()));
}

}  // namespace sk::cuda
