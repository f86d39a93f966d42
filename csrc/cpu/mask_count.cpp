#include "../functors/mask_count.h"

#include <torch/csrc/stable/library.h>

#include "../torch/op_checks.h"
#include "computed.h"

namespace sk::cpu {

void mask_count_cpu(TensorList words, TensorList counts) {
  if (words.empty()) return;
  check_mask_count(words, counts);
  const auto inputs = pointers(words);
  const auto numels = sizes(words);
  Computed<MaskCount> op;
  op.inputs = inputs.data();
  op.numels = numels.data();
  for_each(op, make_segments({&counts}, {}, {}));
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("mask_count_", TORCH_BOX(&mask_count_cpu));
}

}  // namespace sk::cpu
