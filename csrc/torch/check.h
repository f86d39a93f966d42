// What memory safety needs, checked again under the public wrapper: torch.ops can be called
// directly.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "../core/mask.h"
#include "tensor_list.h"

namespace sk {

inline ScalarType math_type(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The shim's number of the dtypes that most lists have; -1 for the others.
inline int32_t raw_dtype(ScalarType t) {
  switch (t) {
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    case ScalarType::Bool:
      return aoti_torch_dtype_bool();
    default:
      return -1;
  }
}

// Straight from the shim: a step asks hundreds of tensors, and the accessors of
// torch::stable::Tensor translate every enum by further calls.
struct Place {
  int32_t type, index = 0;

  explicit Place(const Listed& t) {
    static const int32_t kCpu = aoti_torch_device_type_cpu();  // of which there is one
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
    if (type != kCpu) TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
  }
  bool operator==(const Place& o) const { return type == o.type && index == o.index; }
};

inline bool has_dtype(const Listed& t, ScalarType dtype, int32_t raw) {
  if (raw < 0) return t.scalar_type() == dtype;
  int32_t own;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &own));
  return own == raw;
}

// One list against the shapes and the one device of the first list; an absent (empty) list passes.
inline void check_list(const char* op, const char* name, const TensorList& list,
                       const TensorList& lead, ScalarType dtype) {
  if (list.empty()) return;
  STD_TORCH_CHECK(list.size() == lead.size(), op, ": ", name, " has ", list.size(),
                  " tensors, expected ", lead.size());
  const int32_t raw = raw_dtype(dtype);
  const Place home(lead[0]);
  for (size_t i = 0; i < list.size(); ++i) {
    STD_TORCH_CHECK(list[i].numel() == lead[i].numel(), op, ": ", name, "[", i, "] has ",
                    list[i].numel(), " elements, expected ", lead[i].numel());
    STD_TORCH_CHECK(has_dtype(list[i], dtype, raw), op, ": ", name, "[", i,
                    "] has the wrong dtype");
    STD_TORCH_CHECK(list[i].is_contiguous(), op, ": ", name, "[", i, "] must be contiguous");
    STD_TORCH_CHECK(Place(list[i]) == home, op, ": ", name, "[", i, "] is on another device");
    STD_TORCH_CHECK(list[i].same_shape(lead[i]), op, ": ", name, "[", i, "] has another shape");
  }
}

inline void check_masks(const char* op, const TensorList& masks, const TensorList& lead) {
  if (masks.empty()) return;
  STD_TORCH_CHECK(masks.size() == lead.size(), op, ": masks has ", masks.size(),
                  " tensors, expected ", lead.size());
  const int32_t raw = raw_dtype(ScalarType::Int);
  const Place home(lead[0]);
  for (size_t i = 0; i < masks.size(); ++i) {
    STD_TORCH_CHECK(has_dtype(masks[i], ScalarType::Int, raw) && masks[i].is_contiguous() &&
                        masks[i].numel() == words_of(lead[i].numel()) && Place(masks[i]) == home,
                    op, ": masks[", i, "] is not the bit mask of its tensor");
  }
}

// Lists that an op writes: no two tensors may begin at one address. Open addressing, in the order
// of the lists: a set of nodes would cost an allocation per tensor.
inline void check_distinct(const char* op, std::initializer_list<const TensorList*> written) {
  size_t count = 0;
  for (const TensorList* list : written) count += list->size();
  const size_t mask = std::bit_ceil(2 * count + 1) - 1;
  std::vector<void*> seen(mask + 1, nullptr);
  for (const TensorList* list : written) {
    for (const Listed& t : *list) {
      void* p = t.data_ptr();
      if (p == nullptr || t.numel() == 0) continue;
      // addresses are multiples of 64 as a rule: the product spreads them over the table
      size_t at = size_t((uint64_t(reinterpret_cast<uintptr_t>(p)) * 0x9E3779B97F4A7C15u) >> 32);
      for (at &= mask; seen[at] != nullptr; at = (at + 1) & mask) {
        STD_TORCH_CHECK(seen[at] != p, op, ": two of the tensors it writes are the same memory");
      }
      seen[at] = p;
    }
  }
}

// One small tensor of scalars that a kernel reads on its device, which is that of `beside`.
inline void check_scalars(const char* op, const char* name, const Tensor& t, int64_t numel,
                          ScalarType dtype, const Tensor& beside) {
  STD_TORCH_CHECK(t.numel() == numel && t.scalar_type() == dtype && t.is_contiguous() &&
                      t.device() == beside.device(),
                  op, ": ", name, " must be contiguous with ", numel,
                  " elements of the math dtype on the tensors' device");
}
inline void check_scalars(const char* op, const char* name, const Tensor& t, int64_t numel,
                          ScalarType dtype, const TensorList& lead) {
  check_scalars(op, name, t, numel, dtype, Tensor(lead[0]));
}

}  // namespace sk
