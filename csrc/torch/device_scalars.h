// Scalars that change while training and live on the device, in the place of the host's.
#pragma once

#include <optional>

#include "check.h"

namespace sk {

// Where a kernel reads them; null where the call brings its own numbers.
template <class Math>
const Math* device_scalars(const char* op, const char* name, const std::optional<Tensor>& t,
                           int64_t numel, const TensorList& lead) {
  if (!t.has_value()) return nullptr;
  check_scalars(op, name, *t, numel, math_type(lead[0].scalar_type()), lead);
  return static_cast<const Math*>(t->data_ptr());
}

}  // namespace sk
