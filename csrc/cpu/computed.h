// Ops whose one stream is computed from another list, element by element.
#pragma once

#include <vector>

#include "results.h"

namespace sk::cpu {

// The computed input of a block: what the functor's value() says.
template <class Base>
struct Computed : Base {
  template <class S>
  SK_HD void generate(int64_t tensor, const Segment&, int64_t first, int n,
                      typename Base::Math* out, S&) const {
    for (int i = 0; i < n; ++i) out[i] = this->value(tensor, first + i);
  }
};

inline std::vector<const void*> pointers(const TensorList& list) {
  std::vector<const void*> out;
  for (const Tensor& t : list) out.push_back(t.data_ptr());
  return out;
}

inline std::vector<int64_t> sizes(const TensorList& list) {
  std::vector<int64_t> out;
  for (const Tensor& t : list) out.push_back(t.numel());
  return out;
}

}  // namespace sk::cpu
