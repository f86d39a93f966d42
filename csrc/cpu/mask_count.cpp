#include <torch/csrc/stable/library.h>

#include "../torch/op_checks.h"
#include "results.h"

namespace sk::cpu {

// Entries [begin, end) by tiles.
SK_CLONES void count_chunk(const uint32_t* words, int64_t begin, int64_t end, int64_t* counts) {
  for (int64_t first = begin; first < end; first += kRankTile) {
    counts[first / kRankTile] = count_ones(words + first / 32, std::min(end - first, kRankTile));
  }
}

void mask_count_cpu(const TensorList& words, const TensorList& counts) {
  if (words.empty()) return;
  check_mask_count(words, counts);
  const auto segments = make_segments({&words, &counts}, {}, {});
  auto entries = numels_of(segments);
  for (int64_t& n : entries) n *= 32;
  struct None {};
  for_each_chunk<None>(ChunkPlan(entries), entries,
                       [&](int t, int64_t begin, int64_t end, int64_t, None&) {
                         count_chunk(static_cast<const uint32_t*>(segments[t].data[0]), begin, end,
                                     static_cast<int64_t*>(segments[t].data[1]));
                       });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("mask_count_", TORCH_BOX(&mask_count_cpu));
}

}  // namespace sk::cpu
