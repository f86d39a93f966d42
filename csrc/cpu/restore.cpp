#include "../functors/restore.h"

#include <torch/csrc/stable/library.h>

#include "../torch/dispatch.h"
#include "results.h"

namespace sk::cpu {

void restore_cpu(TensorList params, TensorList backup, TensorList masks) {
  constexpr const char* kOp = "restore_";
  if (params.empty()) return;
  const ScalarType dtype = params[0].scalar_type();
  check_list(kOp, "params", params, params, dtype);
  check_list(kOp, "backup", backup, params, dtype);
  check_masks(kOp, masks, params);
  STD_TORCH_CHECK(!backup.empty(), kOp, ": backup is empty");
  const auto segments = make_segments({&params, &backup}, masks, {});
  dispatch_bits(kOp, params[0].element_size(),
                [&]<class T>() { for_each(Restore<T>{}, segments); });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) { m.impl("restore_", TORCH_BOX(&restore_cpu)); }

}  // namespace sk::cpu
