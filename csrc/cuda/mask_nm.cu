#include "../phases/mask_nm.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "../torch/ranked.h"
#include "for_each.cuh"

namespace sk::cuda {

void mask_nm_cuda(const TensorList& scores, std::string kind, std::optional<Tensor> key,
                  const std::vector<int64_t>& firsts, const std::vector<int64_t>& rows,
                  const std::vector<int64_t>& cols, int64_t n, int64_t m, bool along_rows,
                  const TensorList& words) {
  constexpr const char* kOp = "mask_nm_";
  if (scores.empty()) return;
  const ScalarType dtype = check_ranked(kOp, scores, kind, key, firsts);
  check_mask_nm(scores, rows, cols, n, m, words);
  auto segments = segments_with_input(words, scores);
  for (size_t t = 0; t < segments.size(); ++t) {
    segments[t].cols = cols[t];
    if (!firsts.empty()) segments[t].first = firsts[t];
  }
  dispatch_keys<false>(kOp, kind, key, dtype, [&]<class Keys>(const Keys& keys) {
    MaskNm<Keys> op;
    op.keys = keys;
    op.groups = {n, m, along_rows};
    for_each(op, segments, scores[0]);
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CUDA, m) { m.impl("mask_nm_", TORCH_BOX(&mask_nm_cuda)); }

}  // namespace sk::cuda
