#include "../functors/mask_pack.h"

#include <torch/csrc/stable/library.h>

#include "../core/simd_bits.h"
#include "../torch/op_checks.h"
#include "results.h"

namespace sk::cpu {

SK_CLONES void pack_chunk(const Segment& segment, int64_t begin, int64_t end) {
  const auto* bytes = static_cast<const uint8_t*>(segment.data[0]);
  auto* words = static_cast<uint32_t*>(segment.data[1]);
  const int64_t whole = end / 32;
  for (int64_t w = begin / 32; w < whole; ++w) words[w] = bits_of_bytes(bytes + 32 * w);
  if (end % 32) words[whole] = MaskPack::word(bytes, segment.numel, whole);
}

void mask_pack_cpu(const TensorList& masks, const TensorList& words) {
  if (masks.empty()) return;
  check_words("mask_pack_", masks, words);
  const auto segments = make_segments({&masks, &words}, {}, {});
  const auto numels = numels_of(segments);
  struct None {};
  for_each_chunk<None>(ChunkPlan(numels), numels,
                       [&](int t, int64_t begin, int64_t end, int64_t, None&) {
                         pack_chunk(segments[t], begin, end);
                       });
}

struct UnpackedWords : MaskUnpack {
  template <class S>
  SK_HD void generate(int64_t tensor, const Segment&, int64_t first, int n, uint8_t* out,
                      S&) const {
    const auto* words = static_cast<const uint32_t*>(inputs[tensor]) + first / 32;
    for (int w = 0; w * 32 < n; ++w, out += 32) {
      const uint32_t word = words[w];
#pragma omp simd
      for (int i = 0; i < 32; ++i) out[i] = (word >> i) & 1;
    }
  }
};

void mask_unpack_cpu(const TensorList& words, const TensorList& masks) {
  if (masks.empty()) return;
  check_words("mask_unpack_", masks, words);
  std::vector<const void*> inputs;
  for (const Listed& t : words) inputs.push_back(t.data_ptr());
  UnpackedWords op;
  op.inputs = inputs.data();
  for_each(op, make_segments({&masks}, {}, {}));
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("mask_pack_", TORCH_BOX(&mask_pack_cpu));
  m.impl("mask_unpack_", TORCH_BOX(&mask_unpack_cpu));
}

}  // namespace sk::cpu
