#include "../functors/mask_nm.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "../torch/ranked.h"
#include "for_each.h"
#include "ranked.h"

namespace sk::cpu {

// Keys of the entries around a block of words, where they lie close enough together: a member of a
// group is looked at m times.
constexpr int64_t kMostBuffered = 65536;  // entries beyond the block's own
constexpr int64_t kMostCompared = 32;     // larger groups are compared entry by entry

template <class Keys>
struct Buffered {
  const typename Keys::Key* keys;  // of the entries from `low` on
  int64_t low, height, width;

  SK_HD int64_t rows() const { return height; }
  SK_HD int64_t cols() const { return width; }
  SK_HD typename Keys::Key key(int64_t entry) const { return keys[entry - low]; }
};
template <class Keys>
struct Direct {
  const Source<Keys>& source;
  const Segment& scores;

  SK_HD int64_t rows() const { return scores.numel / scores.cols; }
  SK_HD int64_t cols() const { return scores.cols; }
  SK_HD typename Keys::Key key(int64_t entry) const {
    typename Keys::Key key;
    fill_keys(source, scores, entry, 1, &key);
    return key;
  }
};

template <class Keys>
struct BufferedNm : MaskNm<Keys> {
  const Source<Keys>* source;
  const Segment* scores;  // [tensors], with cols

  template <class S>
  SK_HD void generate(int64_t tensor, const Segment&, int64_t first, int n, uint32_t* out,
                      S&) const {
    const Segment& s = scores[tensor];
    const int64_t reach = this->groups.reach(s.cols, s.numel);
    if (reach > kMostBuffered / 2) return words(Direct<Keys>{*source, s}, s.numel, first, n, out);
    // room for what a shift by any member reaches; outside the tensor nothing is filled in
    const int64_t low = 32 * first - reach, high = 32 * (first + n) + reach;
    const int64_t begin = std::max<int64_t>(0, low), end = std::min(s.numel, high);
    std::vector<typename Keys::Key> keys(size_t(high - low));
    for (int64_t at = begin; at < end; at += kBlock) {
      fill_keys(*source, s, at, int(std::min<int64_t>(kBlock, end - at)), &keys[size_t(at - low)]);
    }
    const Buffered<Keys> matrix{keys.data(), low, s.numel / s.cols, s.cols};
    if (this->groups.m > kMostCompared) return words(matrix, s.numel, first, n, out);
    for (int w = 0; w < n; w += kBlock / 32) {
      compare(matrix, s.numel, first + w, std::min(n - w, kBlock / 32), out + w);
    }
  }
  // The words of up to kBlock entries: all entries against the neighbour at one distance at a time.
  SK_HD void compare(const Buffered<Keys>& matrix, int64_t numel, int64_t first, int n,
                     uint32_t* out) const {
    using Key = typename Keys::Key;
    const int count = int(std::min<int64_t>(numel - 32 * first, 32 * n));
    alignas(kStreamAlign) int32_t in[kBlock], left[kBlock], better[kBlock] = {};
    place(matrix, 32 * first, count, in, left);
    const int64_t stride = this->groups.stride(matrix.cols());
    const Key* own = matrix.keys + (32 * first - matrix.low);
    // no further than a line is long: the room on both sides may be less than m - 1 strides
    const int64_t line = this->groups.along_rows ? matrix.cols() : matrix.rows();
    const int far = int(std::min(this->groups.m, line)) - 1;
    for (int d = -far; d <= far; ++d) {
      if (d == 0) continue;
      const Key* other = own + d * stride;
      const int32_t earlier = d < 0;
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const int32_t there = (in[i] + d >= 0) & (d < left[i]);
        better[i] += there & ((other[i] > own[i]) | ((other[i] == own[i]) & earlier));
      }
    }
    for (int w = 0; w < n; ++w) {
      uint32_t bits = 0;
      for (int i = 32 * w; i < 32 * (w + 1) && i < count; ++i) {
        bits |= uint32_t(better[i] < this->groups.n) << (i % 32);
      }
      out[w] = bits;
    }
  }
  // Of `count` entries from `first` on: members of the group before each, and from it on.
  SK_HD void place(const Buffered<Keys>& matrix, int64_t first, int count, int32_t* in,
                   int32_t* left) const {
    const int64_t m = this->groups.m, cols = matrix.cols();
    int64_t row = first / cols, col = first % cols;
    for (int i = 0; i < count;) {
      // along a row every entry differs from the last one; along columns those of a row are alike
      const int64_t at = this->groups.along_rows ? col : row;
      const int64_t line = this->groups.along_rows ? cols : matrix.rows();
      // a run along a row ends with its group: only the first may begin inside one
      const int64_t before = this->groups.along_rows && i > 0 ? 0 : at % m;
      const int64_t size = std::min(m, line - (at - before));
      const int64_t run = std::min<int64_t>(
          count - i, this->groups.along_rows ? std::min(size - before, cols - col) : cols - col);
      const int32_t step = this->groups.along_rows;
      for (int64_t j = 0; j < run; ++j) {
        in[i + j] = int32_t(before + step * j);
        left[i + j] = int32_t(size - before - step * j);
      }
      i += int(run);
      col += run;
      if (col == cols) {
        col = 0;
        ++row;
      }
    }
  }
  template <class Matrix>
  SK_HD void words(const Matrix& matrix, int64_t numel, int64_t first, int n, uint32_t* out) const {
    for (int w = 0; w < n; ++w) out[w] = nm_word(this->groups, matrix, numel, first + w);
  }
};

void mask_nm_cpu(TensorList scores, std::string kind, std::optional<Tensor> key,
                 std::vector<int64_t> firsts, std::vector<int64_t> rows, std::vector<int64_t> cols,
                 int64_t n, int64_t m, bool along_rows, TensorList words) {
  constexpr const char* kOp = "mask_nm_";
  if (scores.empty()) return;
  const ScalarType dtype = check_ranked(kOp, scores, kind, key, firsts);
  check_mask_nm(scores, rows, cols, n, m, words);
  const auto inputs = ranked_segments(scores, {}, {}, firsts, &cols);
  dispatch_keys<true>(kOp, kind, key, dtype, [&]<class Keys>(const Keys& keys) {
    const Source<Keys> source(keys);
    BufferedNm<Keys> op;
    op.keys = keys;
    op.groups = {n, m, along_rows};
    op.source = &source;
    op.scores = inputs.data();
    for_each(op, make_segments({&words}, {}, {}));
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) { m.impl("mask_nm_", TORCH_BOX(&mask_nm_cpu)); }

}  // namespace sk::cpu
