// Device, stream and launch: the host side every kernel shares.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "../phases/table.h"
#include "../torch/segments.h"

namespace sk::cuda {

// Plain accesses; the host harness has a twin that checks them (csrc/bindings/host_block.h).
struct DeviceMemory {
  template <class T>
  __device__ __forceinline__ T load(const T* p) const {
    return *p;
  }
  template <class T>
  __device__ __forceinline__ void store(T* p, T value) const {
    *p = value;
  }
  __device__ __forceinline__ void add(int32_t* p, int32_t value) const { atomicAdd(p, value); }
  __device__ __forceinline__ void add(int64_t* p, int64_t value) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(value));
  }
};

// A block program's view of a CUDA block: run() is this thread's turn.
template <class SharedState, class ThreadState>
struct DeviceBlock {
  using Memory = DeviceMemory;

  SharedState& shared;
  ThreadState& state;
  Memory memory{};

  template <class F>
  __device__ __forceinline__ void run(const F& f) {
    f(int(threadIdx.x), state);
  }
  __device__ __forceinline__ void barrier() { __syncthreads(); }
};

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace sk::cuda
