// mask_nm in the elementwise kernel: the table beside its words, and a word from the scores.
#pragma once

#include "../functors/mask_nm.h"
#include "for_each.h"

namespace sk::phases {

template <class Keys>
struct Traits<MaskNm<Keys>> : DefaultTraits {
  static constexpr bool kInput = true;
  static constexpr int kInputBytes = int(sizeof(typename Keys::Storage));
};

template <class Keys, bool kMasked>
struct Slots<MaskNm<Keys>, kMasked> {
  static constexpr int kNumel = 0, kData = 1, kInput = 2, kInputNumel = 3, kRows = 4, kCols = 5;
  static constexpr int kFirst = 6, kCount = 7;

  template <class Table>
  static void fill(Table& table, int row, const Segment& s) {
    const auto put = [&](int slot, const void* p) {
      table.slots[slot][row] = int64_t(reinterpret_cast<intptr_t>(p));
    };
    table.slots[kNumel][row] = s.numel;
    put(kData, s.data[0]);
    put(kInput, s.input);
    table.slots[kInputNumel][row] = s.input_numel;
    table.slots[kRows][row] = s.cols ? s.input_numel / s.cols : 0;
    table.slots[kCols][row] = s.cols;
    table.slots[kFirst][row] = s.first;
  }
};

// Called, not inlined: eight copies of the hash between the 64-bit loop counters would spill. A
// template only to have one copy per library.
template <class Index>
SK_CALLED uint32_t random_key(const int64_t* key, Index index) {
  return RandomKeys::at(index, round_keys(uint64_t(*key)));
}

template <class Keys, class Memory, class Block>
struct Matrix {
  const Keys& keys;
  const Memory& memory;
  const Block& block;

  SK_HD int64_t rows() const { return block.reloaded().rows(); }
  SK_HD int64_t cols() const { return block.reloaded().cols(); }
  SK_HD typename Keys::Key key(int64_t entry) const {
    if constexpr (Keys::kRandom) {
      return random_key(keys.key, block.reloaded().first() + entry);
    } else {
      using T = typename Keys::Storage;
      return keys(memory.load(reinterpret_cast<const T*>(block.input()) + entry));
    }
  }
};

// Word `index` of a mask from the scores of its tensor.
template <class Keys, class Functor, class Memory, class Block>
SK_HD uint32_t computed(const MaskNm<Keys>&, const Functor& functor, const Memory& memory,
                        const Block& block, int64_t index) {
  const Matrix<Keys, Memory, Block> matrix{functor.keys, memory, block};
  return nm_word(functor.groups, matrix, block.input_numel(), index);
}

}  // namespace sk::phases
