// ranked: what a selection ranks an element by, an unsigned integer, larger is better.
//   score    its order-preserving bits: NaN below -inf, -0.0 equal to +0.0; abs: the sign taken off
//   random   word g mod 4 of Philox block g / 4, uid 0, direction 0, for the global index g
// Keys have 32 bits, 64 for scores in double.
// Twins: sparse_kernels/reference/_keys.py, sparse_kernels/triton/ranked.py.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/philox.h"
#include "streams.h"

namespace sk {

constexpr int kDigitBits = 11;  // of a key, at most, per histogram

template <class Key>
SK_HD Key ordered_key(Key bits) {
  constexpr Key kSign = Key(1) << (8 * sizeof(Key) - 1);
  constexpr Key kInfinity = sizeof(Key) == 4 ? Key(0x7f800000u) : Key(0x7ffull << 52);
  const Key key = bits > kSign ? ~bits : bits | kSign;  // the bits of -0.0 are kSign alone
  return (bits & ~kSign) > kInfinity ? Key(0) : key;
}

template <class T>
struct ScoreKeys {
  using Storage = T;
  using Key = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;
  static constexpr bool kRandom = false;

  Key kept;  // bits of a score that count: all, or for abs all but the sign

  SK_HD Key operator()(T score) const { return ordered_key<Key>(to_bits(load(score)) & kept); }
};

// of scores, or of their magnitudes
template <class T>
ScoreKeys<T> score_keys(bool magnitude) {
  using Key = typename ScoreKeys<T>::Key;
  return {magnitude ? Key(~Key(0)) >> 1 : Key(~Key(0))};
}

struct RandomKeys {
  using Storage = uint32_t;  // of no meaning: the scores are not read
  using Key = uint32_t;
  static constexpr bool kRandom = true;

  const int64_t* key;  // one element: the 64-bit stream key's bits

  static SK_HD Words words(uint64_t block, const RoundKeys& keys) {
    return philox<10>(block, 0, 0, keys);
  }
  // of the element with this global index
  static SK_HD Key at(int64_t index, const RoundKeys& keys) {
    const Words w = words(uint64_t(index) / 4, keys);
    const int in = int(index % 4);  // by selection: an index would put the words into memory
    const uint32_t low = in == 0 ? w.x[0] : w.x[1], high = in == 2 ? w.x[2] : w.x[3];
    return in < 2 ? low : high;
  }
};

// The digit of `bits` bits from bit `shift` on, of keys that agree with a prefix above it.
struct Digit {
  int32_t shift, bits;

  template <class Key>
  SK_HD int32_t of(Key key) const {
    return int32_t((key >> shift) & ((Key(1) << bits) - 1));
  }
  // on the first digit there is nothing above, and a shift by all bits would be undefined
  template <class Key>
  SK_HD bool first() const {
    return shift + bits >= int32_t(8 * sizeof(Key));
  }
  template <class Key>
  SK_HD bool follows(Key key, Key prefix) const {
    return first<Key>() || key >> (shift + bits) == prefix;
  }
};

// The bits of `ties` that are among its first `count` ones.
SK_HD uint32_t first_ones(uint32_t ties, int64_t count) {
  if (count <= 0) return 0;
  uint32_t rest = ties;
  for (int64_t i = 0; i < count && rest; ++i) rest &= rest - 1;
  return ties ^ rest;
}

}  // namespace sk
