// What memory safety needs, checked again under the public wrapper: torch.ops can be called
// directly.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

#include "../core/mask.h"

namespace sk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

inline ScalarType math_type(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// One list against the numel and device of the first list; an absent (empty) list passes.
inline void check_list(const char* op, const char* name, const TensorList& list,
                       const TensorList& lead, ScalarType dtype) {
  if (list.empty() && !lead.empty()) return;
  STD_TORCH_CHECK(list.size() == lead.size(), op, ": ", name, " has ", list.size(),
                  " tensors, expected ", lead.size());
  for (size_t i = 0; i < list.size(); ++i) {
    STD_TORCH_CHECK(list[i].numel() == lead[i].numel(), op, ": ", name, "[", i, "] has ",
                    list[i].numel(), " elements, expected ", lead[i].numel());
    STD_TORCH_CHECK(list[i].scalar_type() == dtype, op, ": ", name, "[", i,
                    "] has the wrong dtype");
    STD_TORCH_CHECK(list[i].is_contiguous(), op, ": ", name, "[", i, "] must be contiguous");
    STD_TORCH_CHECK(list[i].device() == lead[i].device() && list[i].device() == lead[0].device(),
                    op, ": ", name, "[", i, "] is on another device");
  }
}

inline void check_masks(const char* op, const TensorList& masks, const TensorList& lead) {
  if (masks.empty()) return;
  STD_TORCH_CHECK(masks.size() == lead.size(), op, ": masks has ", masks.size(),
                  " tensors, expected ", lead.size());
  for (size_t i = 0; i < masks.size(); ++i) {
    STD_TORCH_CHECK(masks[i].scalar_type() == ScalarType::Int &&
                        masks[i].numel() == words_of(lead[i].numel()) && masks[i].is_contiguous() &&
                        masks[i].device() == lead[i].device(),
                    op, ": masks[", i, "] is not the bit mask of its tensor");
  }
}

// One small tensor of scalars that a kernel reads on its device.
inline void check_scalars(const char* op, const char* name, const Tensor& t, int64_t numel,
                          ScalarType dtype, const TensorList& lead) {
  STD_TORCH_CHECK(t.numel() == numel && t.scalar_type() == dtype && t.is_contiguous() &&
                      t.device() == lead[0].device(),
                  op, ": ", name, " must be contiguous with ", numel,
                  " elements of the math dtype on the tensors' device");
}

}  // namespace sk
