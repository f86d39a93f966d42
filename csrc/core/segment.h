// One tensor of a call, as both drivers walk it: memory and numbers, no libtorch.
#pragma once

#include <cstdint>
#include <vector>

namespace sk {

constexpr int kMaxStreams = 6;

struct Segment {
  int64_t numel = 0;
  void* data[kMaxStreams] = {};
  const uint32_t* mask = nullptr;
  void* backup = nullptr;          // raw copy of stream 0, taken before it changes
  const int64_t* ranks = nullptr;  // of the mask; then `backup` is packed, one for all tensors
  int64_t capacity = 0;            // elements of a packed backup
  uint32_t uid = 0;                // parameter number of the random stream
  const void* input = nullptr;     // ops on masks: what the output is computed from
  int64_t input_numel = 0;
  int64_t first = 0;  // index of element 0: in its parameter (random directions), or through the
                      // list (ops that rank)
  int64_t cols = 0;   // of the matrix as which mask_nm and prox_group read a tensor
  int64_t height = 0, width = 0;  // of its tiles (prox_group)
};

inline std::vector<int64_t> numels_of(const std::vector<Segment>& segments) {
  std::vector<int64_t> numels;
  numels.reserve(segments.size());
  for (const Segment& s : segments) numels.push_back(s.numel);
  return numels;
}

}  // namespace sk
