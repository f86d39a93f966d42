#include "../functors/prox_group.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../phases/prox_blocks.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "launch.cuh"

namespace sk::cuda {

using phases::ProxLists;
using phases::ProxOutputs;
using phases::ProxShared;
using phases::ProxTable;
using phases::ProxThread;
using phases::TableOf;

template <class Op>
__global__ void __launch_bounds__(phases::kThreads, 2)
    prox_small_kernel(const __grid_constant__ Op op,
                      const __grid_constant__ TableOf<Op, false> table, ProxOutputs out) {
  __shared__ ProxShared shared;
  ProxThread state;
  DeviceBlock<ProxShared, ProxThread> block{shared, state};
  phases::prox_small_block(block, op, table, out, int32_t(blockIdx.x));
}

template <class Op>
__global__ void __launch_bounds__(phases::kThreads, 2)
    prox_group_kernel(const __grid_constant__ Op op,
                      const __grid_constant__ TableOf<Op, false> table, ProxOutputs out) {
  __shared__ ProxShared shared;
  ProxThread state;
  DeviceBlock<ProxShared, ProxThread> block{shared, state};
  phases::prox_group_block(block, op, table, out, int32_t(blockIdx.x));
}

template <class Op>
__global__ void __launch_bounds__(phases::kThreads, 2)
    prox_large_kernel(const __grid_constant__ Op op,
                      const __grid_constant__ TableOf<Op, false> table, ProxOutputs out) {
  __shared__ ProxShared shared;
  ProxThread state;
  DeviceBlock<ProxShared, ProxThread> block{shared, state};
  phases::prox_large_block(block, op, table, out, int32_t(blockIdx.x));
}

// the tables of all types are alike
__global__ void __launch_bounds__(phases::kThreads, 2)
    prox_value_kernel(const __grid_constant__ ProxTable<float> table, const double* values,
                      double* value) {
  __shared__ phases::FinishShared shared;
  phases::FinishThread state;
  DeviceBlock<phases::FinishShared, phases::FinishThread> block{shared, state};
  phases::prox_value_block<float>(block, table, values, value, int32_t(blockIdx.x));
}

// The caller holds a DeviceGuard.
template <class T>
void prox_lists(const ProxLists<T>& op, const std::vector<Segment>& segments, const ChunkPlan& plan,
                const ProxOutputs& out, double* value, cudaStream_t stream) {
  static_assert(sizeof(op) + sizeof(ProxTable<T>) + sizeof(out) <= phases::kParameterBytes);
  const auto each = [&](const auto& launch) {
    phases::for_each_table<ProxLists<T>, false>(segments, plan, [&](const ProxTable<T>& table) {
      launch(table);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  };
  const phases::ProxSizes sizes(segments);
  const auto run = [&](auto kernel) {
    each([&](const ProxTable<T>& table) {
      kernel<<<unsigned(table.blocks()), phases::kThreads, 0, stream>>>(op, table, out);
    });
  };
  if (sizes.small) run(prox_small_kernel<ProxLists<T>>);
  if (sizes.single) run(prox_group_kernel<ProxLists<T>>);
  if (sizes.large) run(prox_large_kernel<ProxLists<T>>);
  each([&](const ProxTable<T>& table) {
    prox_value_kernel<<<unsigned(table.tensors), phases::kThreads, 0, stream>>>(table, out.values,
                                                                                value);
  });
}

std::tuple<Tensor, Tensor, Tensor> prox_group_cuda(const TensorList& params,
                                                   const TensorList& duals, const TensorList& alive,
                                                   const std::vector<int64_t>& cols,
                                                   const std::vector<int64_t>& heights,
                                                   const std::vector<int64_t>& widths,
                                                   Tensor thresholds, double lam, double delta,
                                                   bool nonnegative) {
  constexpr const char* kOp = "prox_group_";
  const int64_t count = int64_t(params.size());
  const auto zeros = [&](ScalarType type) {
    return torch::stable::new_zeros(thresholds, {count}, type);
  };
  Tensor live = zeros(ScalarType::Long), groups = zeros(ScalarType::Long);
  Tensor value = zeros(ScalarType::Double);
  if (params.empty()) return {live, groups, value};
  const ScalarType dtype =
      check_prox_group(params, duals, alive, cols, heights, widths, thresholds);
  const torch::stable::accelerator::DeviceGuard guard(params[0].get_device());
  const auto segments = tiled_segments(params, duals, alive, cols, heights, widths);
  const ChunkPlan plan = phases::prox_plan(segments);
  Tensor parts = torch::stable::new_empty(params[0], {2, plan.chunks()}, ScalarType::Double);
  auto* sums = static_cast<double*>(parts.data_ptr());
  const ProxOutputs out{sums, sums + plan.chunks(), static_cast<int64_t*>(live.data_ptr()),
                        static_cast<int64_t*>(groups.data_ptr())};
  dispatch_float<false>(kOp, dtype, [&]<class T>() {
    const ProxLists<T> op{prox_group_functor<float>(lam, delta, nonnegative),
                          static_cast<const float*>(thresholds.data_ptr()), lam, delta};
    prox_lists(op, segments, plan, out, static_cast<double*>(value.data_ptr()),
               current_stream(params[0].get_device()));
  });
  return {live, groups, value};
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("prox_group_", TORCH_BOX(&prox_group_cuda));
}

}  // namespace sk::cuda
