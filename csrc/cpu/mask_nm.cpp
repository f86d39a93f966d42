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
  SK_HD void generate(int64_t tensor, uint32_t, int64_t first, int n, uint32_t* out, S&) const {
    const Segment& s = scores[tensor];
    const int64_t reach = this->groups.reach(s.cols, s.numel);
    if (reach > kMostBuffered / 2) return words(Direct<Keys>{*source, s}, s.numel, first, n, out);
    const int64_t low = std::max<int64_t>(0, 32 * first - reach);
    const int64_t high = std::min(s.numel, 32 * (first + n) + reach);
    std::vector<typename Keys::Key> keys(size_t(high - low));
    for (int64_t at = low; at < high; at += kBlock) {
      fill_keys(*source, s, at, int(std::min<int64_t>(kBlock, high - at)), &keys[size_t(at - low)]);
    }
    words(Buffered<Keys>{keys.data(), low, s.numel / s.cols, s.cols}, s.numel, first, n, out);
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
