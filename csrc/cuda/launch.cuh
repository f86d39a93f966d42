// Device, stream and launch: the host side every kernel shares.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "../phases/table.h"
#include "../torch/check.h"

namespace sk::cuda {

using phases::Segment;

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

// Absent (empty) lists are left out, so the streams of an op are its present lists in order.
inline std::vector<Segment> make_segments(std::initializer_list<const TensorList*> lists,
                                          const TensorList& masks, const TensorList& backup,
                                          const std::vector<int64_t>* uids = nullptr) {
  const TensorList& lead = **lists.begin();
  std::vector<Segment> segments(lead.size());
  for (size_t i = 0; i < lead.size(); ++i) {
    Segment& s = segments[i];
    s.numel = lead[i].numel();
    size_t stream = 0;
    for (const TensorList* list : lists) {
      if (!list->empty()) s.data[stream++] = (*list)[i].data_ptr();
    }
    if (!masks.empty()) s.mask = static_cast<const uint32_t*>(masks[i].data_ptr());
    if (!backup.empty()) s.backup = backup[i].data_ptr();
    if (uids) s.uid = uint32_t((*uids)[i]);
  }
  return segments;
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

}  // namespace sk::cuda
