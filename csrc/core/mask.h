// Bit masks: bit i (least significant first) of word w is element 32 w + i; padding bits are 0.
#pragma once

#include <cstdint>

#include "macros.h"

namespace sk {

SK_HD int64_t words_of(int64_t numel) { return (numel + 31) / 32; }

SK_HD bool mask_bit(const uint32_t* words, int64_t i) { return (words[i >> 5] >> (i & 31)) & 1u; }

}  // namespace sk
