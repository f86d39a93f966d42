#include <torch/csrc/stable/library.h>

#include "../functors/restore.h"
#include "../torch/dispatch.h"
#include "for_each.cuh"

namespace sk::cuda {

void restore_cuda(TensorList params, TensorList backup, TensorList masks) {
  constexpr const char* kOp = "restore_";
  if (params.empty()) return;
  const ScalarType dtype = params[0].scalar_type();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "backup", backup, params, dtype);
  check_masks(kOp, masks, params);
  STD_TORCH_CHECK(!backup.empty(), kOp, ": backup is empty");
  const auto segments = make_segments({&params, &backup}, masks, {});
  dispatch_bits(kOp, params[0].element_size(),
                [&]<class T>() { for_each(Restore<T>{}, segments, params[0]); });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) { m.impl("restore_", TORCH_BOX(&restore_cuda)); }

}  // namespace sk::cuda
