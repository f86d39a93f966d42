#include "../phases/compaction.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "../torch/compaction.h"
#include "../torch/dispatch.h"
#include "for_each.cuh"

namespace sk::cuda {

using phases::EntryTable;
using phases::EntryThread;
using phases::IndexTable;
using phases::MaskIndex;
using phases::MoveEntries;
using phases::Places;

__global__ void __launch_bounds__(phases::kThreads, 2)
    index_kernel(const __grid_constant__ IndexTable table) {
  __shared__ Places shared;
  EntryThread state;
  DeviceBlock<Places, EntryThread> block{shared, state};
  phases::index_block(block, table, int32_t(blockIdx.x));
}

template <class Op>
__global__ void __launch_bounds__(phases::kThreads, 2)
    move_kernel(const __grid_constant__ EntryTable<Op> table) {
  EntryThread shared, state;
  DeviceBlock<EntryThread, EntryThread> block{shared, state};
  phases::move_block<Op>(block, table, int32_t(blockIdx.x));
}

void live_mask_cuda(const TensorList& duals, const TensorList& words, double lam,
                    bool nonnegative) {
  constexpr const char* kOp = "live_mask_";
  if (duals.empty()) return;
  const ScalarType dtype = check_live_mask(duals, words);
  STD_TORCH_CHECK(dtype == ScalarType::Float, kOp, ": unsupported dtype");
  for_each(live_mask<float>(lam, nonnegative), segments_with_input(words, duals), duals[0]);
}

void mask_index_cuda(const TensorList& words, const TensorList& ranks, const TensorList& index) {
  if (words.empty()) return;
  check_mask_index(words, ranks, index);
  each_table<MaskIndex>(index_segments(words, ranks, index), words[0],
                        [](const IndexTable& table, unsigned blocks, cudaStream_t stream) {
                          index_kernel<<<blocks, phases::kThreads, 0, stream>>>(table);
                        });
}

template <bool kScatter>
void move_entries(const char* op, const TensorList& tensors, const TensorList& index,
                  const std::vector<int64_t>& runs, const TensorList& values) {
  if (tensors.empty()) return;
  check_entries(op, tensors, index, runs, values);
  const auto segments = entry_segments(tensors, index, runs, values);
  dispatch_bits(op, tensors[0].element_size(), [&]<class T>() {
    using Op = MoveEntries<T, kScatter>;
    each_table<Op>(segments, tensors[0],
                   [](const EntryTable<Op>& table, unsigned blocks, cudaStream_t stream) {
                     move_kernel<Op><<<blocks, phases::kThreads, 0, stream>>>(table);
                   });
  });
}

void gather_entries_cuda(const TensorList& tensors, const TensorList& index,
                         const std::vector<int64_t>& runs, const TensorList& values) {
  move_entries<false>("gather_entries_", tensors, index, runs, values);
}

void scatter_entries_cuda(const TensorList& tensors, const TensorList& index,
                          const std::vector<int64_t>& runs, const TensorList& values) {
  move_entries<true>("scatter_entries_", tensors, index, runs, values);
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("live_mask_", TORCH_BOX(&live_mask_cuda));
  m.impl("mask_index_", TORCH_BOX(&mask_index_cuda));
  m.impl("gather_entries_", TORCH_BOX(&gather_entries_cuda));
  m.impl("scatter_entries_", TORCH_BOX(&scatter_entries_cuda));
}

}  // namespace sk::cuda
