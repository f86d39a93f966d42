#include "../functors/restore.h"

#include <torch/csrc/stable/library.h>

#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "results.h"

namespace sk::cpu {

void restore_cpu(const TensorList& params, const TensorList& masks, const TensorList& backup,
                 const TensorList& ranks) {
  constexpr const char* kOp = "restore_";
  if (params.empty()) return;
  check_restore(kOp, params, masks, backup, ranks);
  const auto segments = make_segments({&params}, masks, backup, ranks);
  check_capacity(kOp, segments);
  dispatch_bits(kOp, params[0].element_size(),
                [&]<class T>() { for_each(Restore<T>{}, segments); });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) { m.impl("restore_", TORCH_BOX(&restore_cpu)); }

}  // namespace sk::cpu
