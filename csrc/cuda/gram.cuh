// Kernels and launcher of zo_gram.
#pragma once

#include <algorithm>
#include <vector>

#include "../phases/gram.h"
#include "launch.cuh"

namespace sk::cuda {

using phases::Gram;

constexpr int64_t kGridRows = 65535;  // limit of gridDim.y

template <bool kMasked, class Numbers>
__global__ void __launch_bounds__(phases::kThreads, 2)
    gram_kernel(const __grid_constant__ Gram<Numbers> op,
                const __grid_constant__ phases::TableOf<Gram<Numbers>, kMasked> table, double* sums,
                int64_t chunks, int64_t first_pair) {
  __shared__ phases::GramShared<Numbers> shared;
  phases::GramThread state;
  DeviceBlock<phases::GramShared<Numbers>, phases::GramThread> block{shared, state};
  phases::gram_block<kMasked>(block, op, table, sums, chunks, first_pair + blockIdx.y,
                              int32_t(blockIdx.x));
}

// a template only to have one copy per library without a file of its own
template <class Out>
__global__ void __launch_bounds__(phases::kThreads, 2)
    finish_gram_kernel(const Out* sums, int64_t chunks, int32_t q, Out* gram) {
  __shared__ phases::FinishShared shared;
  phases::FinishThread state;
  DeviceBlock<phases::FinishShared, phases::FinishThread> block{shared, state};
  phases::finish_gram(block, sums, chunks, q, gram, blockIdx.x);
}

template <bool kMasked, class Numbers>
void launch_gram(const Gram<Numbers>& op, const std::vector<Segment>& segments,
                 const ChunkPlan& plan, double* sums, cudaStream_t stream) {
  const int64_t pairs = int64_t(op.stream.q) * (op.stream.q + 1) / 2;
  phases::for_each_table<Gram<Numbers>, kMasked>(segments, plan, [&](const auto& table) {
    for (int64_t first = 0; first < pairs; first += kGridRows) {
      const dim3 grid(unsigned(table.blocks()), unsigned(std::min(pairs - first, kGridRows)));
      gram_kernel<kMasked, Numbers>
          <<<grid, phases::kThreads, 0, stream>>>(op, table, sums, plan.chunks(), first);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
}

// gram[q][q]; the caller holds a DeviceGuard.
inline void gram_matrix(const Directions<float>& directions, const std::vector<Segment>& segments,
                        const Tensor& lead, double* gram) {
  const cudaStream_t stream = current_stream(lead.get_device());
  const ChunkPlan plan(numels_of(segments));
  const int64_t pairs = int64_t(directions.q) * (directions.q + 1) / 2;
  Tensor sums = torch::stable::new_empty(lead, {pairs * plan.chunks()}, ScalarType::Double);
  auto* partials = static_cast<double*>(sums.data_ptr());
  dispatch_bool(phases::any_masked(segments), [&]<bool kMasked>() {
    phases::dispatch_numbers(directions, [&]<class Numbers>() {
      launch_gram<kMasked>(Gram<Numbers>{directions}, segments, plan, partials, stream);
    });
  });
  finish_gram_kernel<double><<<unsigned(pairs), phases::kThreads, 0, stream>>>(
      partials, plan.chunks(), directions.q, gram);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace sk::cuda
