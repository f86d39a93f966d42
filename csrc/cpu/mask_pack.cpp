#include "../functors/mask_pack.h"

#include <torch/csrc/stable/library.h>

#include "../torch/op_checks.h"
#include "results.h"

namespace sk::cpu {

// The computed input of a block: what the functor's value() says, element by element.
template <class Base>
struct Computed : Base {
  template <class S>
  SK_HD void generate(int64_t tensor, uint32_t, int64_t first, int n, typename Base::Math* out,
                      S&) const {
    for (int i = 0; i < n; ++i) out[i] = this->value(tensor, first + i);
  }
};

std::vector<const void*> pointers(const TensorList& list) {
  std::vector<const void*> out;
  for (const Tensor& t : list) out.push_back(t.data_ptr());
  return out;
}

void mask_pack_cpu(TensorList masks, TensorList words) {
  if (masks.empty()) return;
  check_words("mask_pack_", masks, words);
  const auto inputs = pointers(masks);
  std::vector<int64_t> numels;
  for (const Tensor& t : masks) numels.push_back(t.numel());
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
