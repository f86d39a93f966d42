// Lists of tensors cut into chunks: (tensor, chunk) pairs numbered through by a prefix sum. Empty
// tensors own no chunk. The plan is the same for every backend, so partial sums are too.
#pragma once

#include <cstdint>
#include <vector>

#include "macros.h"

namespace sk {

SK_HD int64_t chunks_of(int64_t numel) { return (numel + kChunkSize - 1) / kChunkSize; }

// Tensor that owns `chunk`: the last t with first_chunk[t] <= chunk. first_chunk has tensors + 1
// entries; an empty tensor repeats its successor's entry and is passed over.
template <class Index>
SK_HD int find_tensor(const Index* first_chunk, int tensors, int64_t chunk) {
  int low = 0, high = tensors;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (int64_t(first_chunk[middle]) <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

struct ChunkPlan {
  std::vector<int64_t> first_chunk;  // [tensors + 1]
  int64_t elements = 0;

  explicit ChunkPlan(const std::vector<int64_t>& numels) {
    first_chunk.reserve(numels.size() + 1);
    int64_t chunk = 0;
    for (const int64_t numel : numels) {
      first_chunk.push_back(chunk);
      chunk += chunks_of(numel);
      elements += numel;
    }
    first_chunk.push_back(chunk);
  }

  int64_t chunks() const { return first_chunk.back(); }
  int tensors() const { return int(first_chunk.size()) - 1; }
};

}  // namespace sk
