// The finishing block of every sum.
#include "../phases/reduce.h"
#include "for_each.cuh"

namespace sk::cuda {

__global__ void __launch_bounds__(phases::kThreads, 2)
    finish_sum_kernel(const double* partials, int64_t count, Total out) {
  __shared__ phases::FinishShared shared;
  phases::FinishThread state;
  DeviceBlock<phases::FinishShared, phases::FinishThread> block{shared, state};
  phases::finish_block(block, partials, count, out);
}

// Runs for an empty list too: the sum is then 0.
void finish_sum(const double* partials, int64_t count, const Total& out, cudaStream_t stream) {
  finish_sum_kernel<<<1, phases::kThreads, 0, stream>>>(partials, count, out);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace sk::cuda
