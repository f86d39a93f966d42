#include <torch/csrc/stable/library.h>

#include "../functors/mask_pack.h"
#include "../torch/op_checks.h"
#include "for_each.cuh"

namespace sk::cuda {

void mask_pack_cuda(const TensorList& masks, const TensorList& words) {
  if (masks.empty()) return;
  check_words("mask_pack_", masks, words);
  for_each(MaskPack{}, segments_with_input(words, masks), masks[0]);
}

void mask_unpack_cuda(const TensorList& words, const TensorList& masks) {
  if (masks.empty()) return;
  check_words("mask_unpack_", masks, words);
  for_each(MaskUnpack{}, segments_with_input(masks, words), masks[0]);
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("mask_pack_", TORCH_BOX(&mask_pack_cuda));
  m.impl("mask_unpack_", TORCH_BOX(&mask_unpack_cuda));
}

}  // namespace sk::cuda
