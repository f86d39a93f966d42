#include <torch/csrc/stable/library.h>

#include "../functors/mask_apply.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "for_each.cuh"

namespace sk::cuda {

void mask_apply_cuda(const TensorList& tensors, const TensorList& masks) {
  if (tensors.empty()) return;
  check_mask_apply(tensors, masks);
  const auto segments = make_segments({&tensors}, masks, {});
  dispatch_bits("mask_apply_", tensors[0].element_size(),
                [&]<class T>() { for_each(MaskApply<T>{}, segments, tensors[0]); });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("mask_apply_", TORCH_BOX(&mask_apply_cuda));
}

}  // namespace sk::cuda
