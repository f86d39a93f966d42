// The two scalars of a base step that are known on the device alone.
#pragma once

#include "../core/macros.h"

namespace sk {

template <class Math>
struct Gates {
  const Math* skip;       // one element: not 0 suppresses the step; null: never
  const Math* inv_scale;  // one element that multiplies the gradient; null: 1
  bool maximize;

  SK_HD bool open() const { return !skip || *skip == Math(0); }
  // a change of sign is exact, so it may ride on the factor
  SK_HD Math factor() const {
    const Math scale = inv_scale ? *inv_scale : Math(1);
    return maximize ? -scale : scale;
  }
};

}  // namespace sk
