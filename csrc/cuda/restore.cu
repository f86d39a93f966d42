#include <torch/csrc/stable/library.h>

#include "../functors/restore.h"
#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "for_each.cuh"

namespace sk::cuda {

void restore_cuda(const TensorList& params, const TensorList& masks, const TensorList& backup,
                  const TensorList& ranks) {
  constexpr const char* kOp = "restore_";
  if (params.empty()) return;
  check_restore(kOp, params, masks, backup, ranks);
  const auto segments = make_segments({&params}, masks, backup, ranks);
  dispatch_bits(kOp, params[0].element_size(),
                [&]<class T>() { for_each_backed(Restore<T>{}, segments, params[0]); });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) { m.impl("restore_", TORCH_BOX(&restore_cuda)); }

}  // namespace sk::cuda
