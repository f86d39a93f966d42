#include "../phases/zo_key.h"

#include <torch/csrc/stable/library.h>

#include "../torch/op_checks.h"
#include "launch.cuh"

namespace sk::cuda {

__global__ void __launch_bounds__(1)
    zo_key_kernel(int64_t* key, int64_t* counter, const int64_t* seed, uint32_t stream) {
  phases::KeyShared shared;
  phases::KeyThread state;
  DeviceBlock<phases::KeyShared, phases::KeyThread> block{shared, state};
  phases::key_block(block, key, counter, seed, stream);
}

void zo_key_cuda(Tensor key, Tensor counter, Tensor seed, int64_t stream) {
  check_zo_key(key, counter, seed, stream);
  const torch::stable::accelerator::DeviceGuard guard(key.get_device());
  zo_key_kernel<<<1, 1, 0, current_stream(key.get_device())>>>(
      static_cast<int64_t*>(key.data_ptr()), static_cast<int64_t*>(counter.data_ptr()),
      static_cast<const int64_t*>(seed.data_ptr()), uint32_t(stream));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) { m.impl("zo_key_", TORCH_BOX(&zo_key_cuda)); }

}  // namespace sk::cuda
