#include "../phases/mask_count.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "../torch/op_checks.h"
#include "for_each.cuh"

namespace sk::cuda {

using phases::CountShared;
using phases::CountTable;
using phases::CountThread;

__global__ void __launch_bounds__(phases::kThreads, 2)
    count_kernel(const __grid_constant__ CountTable table) {
  __shared__ CountShared shared;
  CountThread state;
  DeviceBlock<CountShared, CountThread> block{shared, state};
  phases::count_block(block, table, int32_t(blockIdx.x));
}

void mask_count_cuda(const TensorList& words, const TensorList& counts) {
  if (words.empty()) return;
  check_mask_count(words, counts);
  std::vector<Segment> segments(words.size());
  for (size_t i = 0; i < words.size(); ++i) {
    segments[i].numel = 32 * words[i].numel();
    segments[i].mask = static_cast<const uint32_t*>(words[i].data_ptr());
    segments[i].data[0] = counts[i].data_ptr();
  }
  each_table<phases::TileCounts>(segments, words[0],
                                 [](const CountTable& table, unsigned blocks, cudaStream_t stream) {
                                   count_kernel<<<blocks, phases::kThreads, 0, stream>>>(table);
                                 });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("mask_count_", TORCH_BOX(&mask_count_cuda));
}

}  // namespace sk::cuda
