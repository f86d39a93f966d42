#include "../functors/mask_nm.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <vector>

#include "../core/simd_bits.h"
#include "../torch/ranked.h"
#include "for_each.h"
#include "nm_groups.h"
#include "ranked.h"

namespace sk::cpu {

constexpr int64_t kTileKeys = 4096;  // of the groups that are ranked together, if these are small

template <class Key>
struct NmScratch {
  Lines<Key> keys, entries, sorted;
  Lines<uint8_t> kept, flags;
};

// Entries that no other task writes.
struct Owned {
  int64_t begin, end;
};

// Bits of entries [first, first + n) from one byte each. The first and the last word may belong to
// others, too; they are 0 before.
SK_HD void put_bits(uint32_t* words, int64_t first, const uint8_t* flags, int64_t n,
                    const Owned& owned) {
  const int shift = int(first % 32);
  uint64_t carry = 0;
  for (int64_t at = 0; at < n + shift; at += 32) {
    const int64_t left = n - at;
    const uint64_t bits = left <= 0 ? 0 : existing_bits(bits_of_bytes(flags + at), left);
    carry |= bits << shift;
    const int64_t place = (first + at) / 32;
    uint32_t& word = words[place];
    if (!((at == 0 && shift) || left + shift < 32)) {
      word = uint32_t(carry);
    } else if (32 * place >= owned.begin && 32 * place + 32 <= owned.end) {
      word |= uint32_t(carry);
    } else {
      std::atomic_ref<uint32_t>(word).fetch_or(uint32_t(carry), std::memory_order_relaxed);
    }
    carry >>= 32;
  }
}

template <class Keys>
class NmChunk {
  using Key = typename Keys::Key;

  const Source<Keys>& source_;
  const Segment& segment_;
  int64_t m_, n_, rows_, cols_;
  bool along_rows_;
  NmScratch<Key>& scratch_;
  uint32_t* words_ = static_cast<uint32_t*>(segment_.data[1]);

 public:
  SK_HD NmChunk(const Source<Keys>& source, const Segment& segment, const Groups& groups,
                NmScratch<Key>& scratch)
      : source_(source),
        segment_(segment),
        m_(std::min(groups.m, groups.along_rows ? segment.cols : segment.numel / segment.cols)),
        n_(std::min(groups.n, m_)),
        rows_(segment.numel / segment.cols),
        cols_(segment.cols),
        along_rows_(groups.along_rows),
        scratch_(scratch) {}

  SK_HD void run(int64_t begin, int64_t end) {
    if (!along_rows_) return columns(begin, end);
    const auto of_lines = cols_ % m_ == 0 ? pick_line_words(m_) : nullptr;
    of_lines ? lines(of_lines, begin, end) : rows(begin, end);
  }

 private:
  static LineWords<Key> pick_line_words(int64_t m) {
    return m == 2    ? line_words<Key, 2>
           : m == 4  ? line_words<Key, 4>
           : m == 8  ? line_words<Key, 8>
           : m == 16 ? line_words<Key, 16>
                     : nullptr;
  }
  static KeepBest<Key> pick_keep_best(int64_t m) {
    return m == 2    ? keep_best_of<Key, 2>
           : m == 4  ? keep_best_of<Key, 4>
           : m == 8  ? keep_best_of<Key, 8>
           : m == 16 ? keep_best_of<Key, 16>
                     : nullptr;
  }
  int lanes() const {
    return m_ > kMostWide ? 1 : int(std::clamp<int64_t>(kTileKeys / m_, kWide, kBlock)) & -kWide;
  }
  void keep_best(const Key* keys, int64_t m, int lanes, int groups, uint8_t* kept) {
    if (const auto few = pick_keep_best(m)) return few(keys, lanes, groups, n_, kept);
    if (lanes == 1) {
      return keep_best_of_many<Key, 1>(keys, m, 1, groups, n_, scratch_.sorted.room(m), kept);
    }
    keep_best_of_many<Key, kWide>(keys, m, lanes, groups, n_, scratch_.sorted.room(m * kWide),
                                  kept);
  }

  // Groups that fill words: no entry of a block has to do with one of another.
  SK_HD void lines(LineWords<Key> of_lines, int64_t begin, int64_t end) {
    alignas(kStreamAlign) Key keys[kBlock];
    for (int64_t first = begin; first < end; first += kBlock) {
      const int n = int(std::min<int64_t>(kBlock, end - first));
      fill_keys(source_, segment_, first, n, keys);
      std::fill(keys + n, keys + kBlock, Key(0));
      uint32_t* words = words_ + first / 32;
      of_lines(keys, int(words_of(n)), n_, words);
      if (n % 32) words[n / 32] = existing_bits(words[n / 32], n % 32);
    }
  }

  // Groups along rows are numbered through; a chunk has those that begin in it.
  int64_t per_row() const { return (cols_ + m_ - 1) / m_; }
  int64_t group_from(int64_t entry) const {
    return entry / cols_ * per_row() + (entry % cols_ + m_ - 1) / m_;
  }
  int64_t entry_of(int64_t group) const {
    return group / per_row() * cols_ + group % per_row() * m_;
  }
  // f(first group, groups, entries of each, first entry) for runs of groups of one size, from a
  // column on; a shorter one is a run of its own
  template <class F>
  SK_HD void each_run(int64_t col, int groups, const F& f) {
    int64_t at = 0;
    for (int g = 0; g < groups;) {
      const int64_t whole = (cols_ - col) / m_;
      const int count = whole ? int(std::min<int64_t>(groups - g, whole)) : 1;
      const int64_t size = whole ? m_ : cols_ - col;
      f(g, count, size, at);
      g += count;
      at += count * size;
      col = (col + count * size) % cols_;
    }
  }
  SK_HD void rows(int64_t begin, int64_t end) {
    const int wide = lanes();
    const int64_t last = group_from(end);
    Key* keys = scratch_.keys.room(m_ * wide);
    Key* entries = scratch_.entries.room(m_ * wide);
    uint8_t* kept = scratch_.kept.room(m_ * wide);
    uint8_t* flags = scratch_.flags.room(m_ * wide + 32);
    const Owned owned{entry_of(group_from(begin)), entry_of(last)};
    for (int64_t group = group_from(begin); group < last; group += wide) {
      const int groups = int(std::min<int64_t>(wide, last - group));
      const int64_t first = entry_of(group), count = entry_of(group + groups) - first;
      for (int64_t at = 0; at < count; at += kBlock) {
        fill_keys(source_, segment_, first + at, int(std::min<int64_t>(kBlock, count - at)),
                  entries + at);
      }
      each_run(first % cols_, groups, [&](int g, int count, int64_t size, int64_t at) SK_INLINED {
        for (int64_t c = 0; c < size; ++c) {
#pragma GCC unroll 8
          for (int64_t j = 0; j < count; ++j) keys[c * wide + g + j] = entries[at + j * size + c];
        }
        // what a shorter group lacks ranks last: the smallest key, and the highest index
        for (int64_t c = size; c < m_; ++c) keys[c * wide + g] = Key(0);
      });
      keep_best(keys, m_, wide, groups, kept);
      each_run(first % cols_, groups, [&](int g, int count, int64_t size, int64_t at) SK_INLINED {
        for (int64_t c = 0; c < size; ++c) {
#pragma GCC unroll 8
          for (int64_t j = 0; j < count; ++j) flags[at + j * size + c] = kept[c * wide + g + j];
        }
      });
      put_bits(words_, first, flags, count, owned);
    }
  }

  // Asks for `wide` columns of a row; where they would begin behind the last column, for the first
  // ones of the row that is `height` below. The processor does not foresee so many short pieces.
  SK_HD void ask_for(int64_t row, int64_t height, int64_t col, int64_t last, int64_t wide) {
    if constexpr (Keys::kRandom) return;
    using Storage = typename Keys::Storage;
    if (col >= last) {
      row += height;
      col -= last;
    }
    if (row >= rows_) return;
    const auto* scores = static_cast<const Storage*>(segment_.data[0]) + row * cols_;
    for (int64_t i = col; i < std::min(col + wide, cols_); i += kStreamAlign / sizeof(Storage)) {
      __builtin_prefetch(scores + i);
    }
  }

  // A chunk has as many columns of m rows as it has entries, whole words of them.
  SK_HD void columns(int64_t begin, int64_t end) {
    const int wide = lanes();
    Key* keys = scratch_.keys.room(m_ * wide);
    uint8_t* kept = scratch_.kept.room(m_ * wide + 32);
    for (int64_t row = begin / (m_ * cols_) * m_; row * cols_ < end; row += m_) {
      const int64_t height = std::min(m_, rows_ - row);
      const auto column_at = [&](int64_t entry) {
        const int64_t at = std::clamp<int64_t>(entry - row * cols_, 0, height * cols_);
        return at == height * cols_ ? cols_ : at / height / 32 * 32;
      };
      const int64_t from = column_at(begin), last = column_at(end);
      for (int64_t col = from; col < last; col += wide) {
        const int groups = int(std::min<int64_t>(wide, last - col));
        for (int64_t c = 0; c < height; ++c) {
          ask_for(row + c, height, col + 2 * wide, last, wide);
          fill_keys(source_, segment_, (row + c) * cols_ + col, groups, keys + c * wide);
        }
        keep_best(keys, height, wide, groups, kept);
        for (int64_t c = 0; c < height; ++c) {
          const int64_t start = (row + c) * cols_;
          put_bits(words_, start + col, kept + c * wide, groups, {start + from, start + last});
        }
      }
    }
  }
};

template <class Keys>
SK_CLONES void nm_chunk(const Source<Keys>& source, const Segment& segment, const Groups& groups,
                        int64_t begin, int64_t end, NmScratch<typename Keys::Key>& scratch) {
  NmChunk<Keys>(source, segment, groups, scratch).run(begin, end);
}

// Where groups or rows end inside words, put_bits finds zeros; elsewhere it writes whole words, but
// for the last one.
void clear_shared_words(const Segment& segment, const Groups& groups) {
  auto* words = static_cast<uint32_t*>(segment.data[1]);
  const int64_t m = groups.m, cols = segment.cols;
  const bool whole = groups.along_rows ? cols % m == 0 && 32 % m == 0 : cols % 32 == 0;
  const int64_t count = words_of(segment.numel);
  std::fill(words + (whole ? count - 1 : 0), words + count, 0u);
}

void mask_nm_cpu(const TensorList& scores, std::string kind, std::optional<Tensor> key,
                 const std::vector<int64_t>& firsts, const std::vector<int64_t>& rows,
                 const std::vector<int64_t>& cols, int64_t n, int64_t m, bool along_rows,
                 const TensorList& words) {
  constexpr const char* kOp = "mask_nm_";
  if (scores.empty()) return;
  const ScalarType dtype = check_ranked(kOp, scores, kind, key, firsts);
  check_mask_nm(scores, rows, cols, n, m, words);
  const auto segments = ranked_segments(scores, {}, words, firsts, &cols);
  const auto numels = numels_of(segments);
  const Groups groups{n, m, along_rows};
  for (const Segment& s : segments) {
    if (s.numel) clear_shared_words(s, groups);
  }
  dispatch_keys<true>(kOp, kind, key, dtype, [&]<class Keys>(const Keys& keys) {
    const Source<Keys> source(keys);
    for_each_chunk<NmScratch<typename Keys::Key>>(
        ChunkPlan(numels), numels, [&](int t, int64_t begin, int64_t end, int64_t, auto& scratch) {
          nm_chunk(source, segments[t], groups, begin, end, scratch);
        });
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) { m.impl("mask_nm_", TORCH_BOX(&mask_nm_cpu)); }

}  // namespace sk::cpu
