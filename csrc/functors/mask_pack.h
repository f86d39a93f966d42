// mask_pack: bool bytes to bit words (layout in core/mask.h), and back.
//   pack walks words: word w gathers the bytes 32 w ... 32 w + 31 that exist
//   unpack walks bytes: byte i is bit i mod 32 of word i / 32
// Lists: the output only; the input is a computed one.
// Twins: sparse_kernels/reference/mask_pack.py, sparse_kernels/triton/mask_pack.py.
#pragma once

#include "../core/mask.h"
#include "streams.h"

namespace sk {

template <class T>
struct CopyGenerated {
  using Math = T;
  using Lists = StreamList<Out<T>>;
  static constexpr Reduce kReduce = Reduce::kNone;
  static constexpr bool kGenerated = true;

  struct Functor : AlwaysEnabled {
    SK_HD void operator()(T value, T& out) const { out = value; }
  };
  SK_HD Functor bind(int64_t) const { return {}; }
};

struct MaskPack : CopyGenerated<uint32_t> {
  const void* const* inputs;  // [tensors] bool bytes
  const int64_t* numels;      // [tensors] elements, not words

  static SK_HD uint32_t word(const uint8_t* bytes, int64_t numel, int64_t w) {
    uint32_t bits = 0;
    const int64_t base = 32 * w;
    const int count = int(numel - base < 32 ? numel - base : 32);
    for (int i = 0; i < count; ++i) bits |= uint32_t(bytes[base + i] != 0) << i;
    return bits;
  }
  SK_HD uint32_t value(int64_t tensor, int64_t w) const {
    return word(static_cast<const uint8_t*>(inputs[tensor]), numels[tensor], w);
  }
};

struct MaskUnpack : CopyGenerated<uint8_t> {
  const void* const* inputs;  // [tensors] words

  SK_HD uint8_t value(int64_t tensor, int64_t i) const {
    return mask_bit(static_cast<const uint32_t*>(inputs[tensor]), i);
  }
};

}  // namespace sk
