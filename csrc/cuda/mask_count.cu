#include <torch/csrc/stable/library.h>

#include "../functors/mask_count.h"
#include "../torch/op_checks.h"
#include "for_each.cuh"

namespace sk::cuda {

void mask_count_cuda(TensorList words, TensorList counts) {
  if (words.empty()) return;
  check_mask_count(words, counts);
  for_each(MaskCount{}, segments_with_input(counts, words), words[0]);
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) {
  m.impl("mask_count_", TORCH_BOX(&mask_count_cuda));
}

}  // namespace sk::cuda
