// mask_nm: the n best of every m consecutive entries of a line, ties to the lower index.
//   entry e is kept where fewer than n members of its group beat it: those with a larger key, and
//   those with the same key before it
// A tensor is a matrix rows x cols, row-major; lines are its rows, or its columns. What is left at
// the end of a line is a shorter group.
// Lists: words[uint32] mutated; the keys are a computed input.
// Twins: sparse_kernels/reference/mask_nm.py, sparse_kernels/triton/mask_nm.py.
#pragma once

#include "mask_pack.h"
#include "ranked.h"

namespace sk {

struct Groups {
  int64_t n, m;
  bool along_rows;  // else along columns

  SK_HD int64_t stride(int64_t cols) const { return along_rows ? 1 : cols; }
  // how far apart two members of a group can be, at most `numel`
  SK_HD int64_t reach(int64_t cols, int64_t numel) const {
    return m > numel / stride(cols) ? numel : (m - 1) * stride(cols);
  }
};

// Word w of a matrix of `numel` entries: matrix.key(entry), matrix.cols(). These are asked for
// where they are used, so that a device need not keep them.
template <class Matrix>
SK_HD uint32_t nm_word(const Groups& groups, const Matrix& matrix, int64_t numel, int64_t w) {
  const int64_t first = 32 * w;
  const int count = int(numel - first < 32 ? numel - first : 32);
  const int64_t row = first / matrix.cols();
  int64_t col = first - row * matrix.cols();
  const int64_t at = groups.along_rows ? col : row;  // in the line
  int64_t in = at % groups.m;                        // in the group
  int64_t left = (groups.along_rows ? matrix.cols() : matrix.rows()) - (at - in);
  uint32_t bits = 0;
  SK_UNROLL(1)
  for (int i = 0; i < count; ++i) {
    const auto own = matrix.key(first + i);
    int64_t entry = first + i - in * groups.stride(matrix.cols()), better = 0;
    SK_UNROLL(1)
    for (int64_t j = 0; j < groups.m && j < left; ++j) {
      const auto key = matrix.key(entry);
      entry += groups.stride(matrix.cols());
      better += key > own || (key == own && j < in);
    }
    bits |= uint32_t(better < groups.n) << i;
    const bool next_row = ++col == matrix.cols();
    if (next_row) col = 0;
    if (groups.along_rows && next_row) {
      in = 0;
      left = matrix.cols();
    } else if ((groups.along_rows || next_row) && ++in == groups.m) {
      in = 0;
      left -= groups.m;
    }
  }
  return bits;
}

template <class Keys>
struct MaskNm : CopyGenerated<uint32_t> {
  Keys keys;
  Groups groups;

  struct Functor : CopyGenerated<uint32_t>::Functor {
    Keys keys;
    Groups groups;
  };
  SK_HD Functor bind(int64_t) const {
    Functor f;
    f.keys = keys;
    f.groups = groups;
    return f;
  }
};

}  // namespace sk
