#include "../functors/mask_pack.h"

#include <torch/csrc/stable/library.h>

#include "../torch/op_checks.h"
#include "computed.h"

namespace sk::cpu {

void mask_pack_cpu(TensorList masks, TensorList words) {
  if (masks.empty()) return;
  check_words("mask_pack_", masks, words);
  const auto inputs = pointers(masks);
  const auto numels = sizes(masks);
  Computed<MaskPack> op;
  op.inputs = inputs.data();
  op.numels = numels.data();
  for_each(op, make_segments({&words}, {}, {}));
}

void mask_unpack_cpu(TensorList words, TensorList masks) {
  if (masks.empty()) return;
  check_words("mask_unpack_", masks, words);
  const auto inputs = pointers(words);
  Computed<MaskUnpack> op;
  op.inputs = inputs.data();
  for_each(op, make_segments({&masks}, {}, {}));
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("mask_pack_", TORCH_BOX(&mask_pack_cpu));
  m.impl("mask_unpack_", TORCH_BOX(&mask_unpack_cpu));
}

}  // namespace sk::cpu
