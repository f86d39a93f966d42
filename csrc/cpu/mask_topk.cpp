#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstring>

#include "../core/simd_pack.h"
#include "../torch/ranked.h"
#include "for_each.h"
#include "ranked.h"

namespace sk::cpu {

constexpr int kCopies = 4;  // of a histogram: neighbours in one bin would wait for each other
constexpr int kBins = 1 << kDigitBits;
constexpr int kChosen = 4 * kBlock;  // digits of the keys that count, from several blocks
constexpr int64_t kMostPending = int64_t(1) << 30;  // elements that 32-bit bins surely hold

// Adds the copies of a histogram to the output, and clears them.
SK_CLONES void add_copies(int32_t* copies, int used, int64_t* out) {
  for (int c = 1; c < kCopies; ++c) {
#pragma omp simd
    for (int b = 0; b < used; ++b) copies[b] += copies[c * kBins + b];
  }
  for (int b = 0; b < used; ++b) {
    if (copies[b]) std::atomic_ref<int64_t>(out[b]).fetch_add(copies[b], std::memory_order_relaxed);
  }
  std::fill(copies, copies + kCopies * kBins, 0);
}

// A task's histogram of one pool, added to the output when the pool changes and at the end. Sums of
// integers: the order of the tasks does not matter.
struct Bins {
  std::vector<int32_t> copies = std::vector<int32_t>(size_t(kCopies) * kBins);
  int64_t* out = nullptr;
  int used = 0;  // bins
  int64_t pending = 0;

  void open(int64_t* pool, int size, int64_t elements) {
    if (pool != out || pending + elements > kMostPending) flush();
    out = pool;
    used = size;
    pending += elements;
  }
  void flush() {
    if (pending == 0) return;
    add_copies(copies.data(), used, out);
    pending = 0;
  }
  ~Bins() { flush(); }
};

SK_HD bool all_bits(const uint32_t* words, int n) {
  uint32_t all = ~0u;
  for (int w = 0; w * 32 < n; ++w) all &= words[w];
  return all == ~0u;
}

SK_HD void count_digits(const uint32_t* digits, int n, int32_t* bins) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) ++bins[j % kCopies * kBins + int64_t(digits[i + j])];
  }
  for (; i < n; ++i) ++bins[i % kCopies * kBins + int64_t(digits[i])];
}

template <class Keys>
SK_CLONES void histogram_chunk(const Source<Keys>& source, const Segment& segment,
                               const Digit& digit, typename Keys::Key prefix, int64_t begin,
                               int64_t end, int32_t* bins) {
  using Key = typename Keys::Key;
  static const Gather<uint32_t> gather = pick_gather<uint32_t>();
  static const BitsBetween<typename Keys::Key> compare = pick_bits_between<typename Keys::Key>();
  RankedBlock<Keys> block;
  alignas(kStreamAlign) uint32_t digits[kBlock], chosen[kChosen + kPackSlack];
  uint32_t follows[kBlock / 32];
  int pending = 0;
  const bool all = digit.first<Key>();
  const int above = all ? 0 : digit.shift + digit.bits;
  const Key low = prefix << above, span = (Key(1) << above) - 1;
  if (!all && low >> above != prefix) return;  // no key has such a prefix
  for (int64_t first = begin; first < end; first += kBlock) {
    if (!block.open(source, segment, first, end)) continue;
    const uint32_t* counted = block.here;
    if (!all) {
      block.between(compare, low, span, follows);
      if (!any_bit(follows, kBlock)) continue;
      counted = follows;
    }
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) digits[i] = uint32_t(digit.of(block.keys[i]));
    if (all_bits(counted, kBlock)) {
      count_digits(digits, kBlock, bins);
      continue;
    }
    pending += gather(digits, counted, kBlock, chosen + pending);
    if (pending <= kChosen - kBlock) continue;
    count_digits(chosen, pending, bins);
    pending = 0;
  }
  count_digits(chosen, pending, bins);
}

// Writes the bits of the keys above the threshold; returns the number of keys equal to it.
template <class Keys>
SK_CLONES int64_t write_chunk(const Source<Keys>& source, const Segment& segment,
                              typename Keys::Key threshold, bool accumulate, int64_t begin,
                              int64_t end) {
  using Key = typename Keys::Key;
  static const BitsBetween<typename Keys::Key> compare = pick_bits_between<typename Keys::Key>();
  RankedBlock<Keys> block;
  uint32_t above[kBlock / 32], equal[kBlock / 32];
  const Key low = threshold + 1;
  const uint32_t any_above = low ? ~0u : 0u;
  int64_t ties = 0;
  for (int64_t first = begin; first < end; first += kBlock) {
    uint32_t* words = static_cast<uint32_t*>(segment.data[1]) + first / 32;
    if (!block.open(source, segment, first, end)) {
      if (!accumulate) std::fill(words, words + block.words, 0u);
      continue;
    }
    block.between(compare, low, ~low, above);
    block.between(compare, threshold, 0, equal);
    uint32_t ones = 0;
    for (int w = 0; w < block.kWords; ++w) {
      above[w] &= any_above;
      ones |= equal[w];
    }
    for (int w = 0; accumulate && w < block.words; ++w) above[w] |= words[w];
    std::memcpy(words, above, size_t(block.words) * sizeof(uint32_t));
    if (ones) ties += count_ones(equal, kBlock);
  }
  return ties;
}

// Sets the bits of the first `left` keys equal to the threshold.
template <class Keys>
SK_CLONES void ties_chunk(const Source<Keys>& source, const Segment& segment,
                          typename Keys::Key threshold, int64_t left, int64_t begin, int64_t end) {
  static const BitsBetween<typename Keys::Key> compare = pick_bits_between<typename Keys::Key>();
  RankedBlock<Keys> block;
  uint32_t equal[kBlock / 32];
  for (int64_t first = begin; first < end && left > 0; first += kBlock) {
    uint32_t* words = static_cast<uint32_t*>(segment.data[1]) + first / 32;
    if (!block.open(source, segment, first, end)) continue;
    block.between(compare, threshold, 0, equal);
    for (int w = 0; w < block.words; ++w) {
      words[w] |= first_ones(equal[w], left);
      left -= popcount(equal[w]);
    }
  }
}

// The numbers of the pools; one pool serves all tensors.
struct Pools {
  const int64_t* values;
  bool single;

  explicit Pools(const Tensor& t)
      : values(static_cast<const int64_t*>(t.data_ptr())), single(t.numel() == 1) {}
  int64_t number(int t) const { return single ? 0 : t; }
  int64_t of(int t) const { return values[number(t)]; }
};

Tensor topk_histogram_cpu(const TensorList& scores, std::string kind, std::optional<Tensor> key,
                          const std::vector<int64_t>& firsts, const TensorList& among,
                          bool inverted, Tensor prefix, int64_t shift, int64_t bits) {
  constexpr const char* kOp = "topk_histogram";
  check_digit(shift, bits, scores.empty() ? 64 : bits_of_key(kind, scores));
  Tensor out =
      torch::stable::new_zeros(prefix, {prefix.numel(), int64_t(1) << bits}, ScalarType::Long);
  if (scores.empty()) return out;
  const ScalarType dtype = check_ranked(kOp, scores, kind, key, firsts);
  check_masks(kOp, among, scores);
  check_pools(kOp, "prefix", prefix, prefix.numel(), scores);
  const auto segments = ranked_segments(scores, among, {}, firsts);
  const auto numels = numels_of(segments);
  const Pools prefixes(prefix);
  const Digit digit{int32_t(shift), int32_t(bits)};
  auto* counts = static_cast<int64_t*>(out.data_ptr());
  dispatch_keys<true>(kOp, kind, key, dtype, [&]<class Keys>(const Keys& keys) {
    const Source<Keys> source(keys, inverted);
    for_each_chunk<Bins>(
        ChunkPlan(numels), numels, [&](int t, int64_t begin, int64_t end, int64_t, Bins& bins) {
          bins.open(counts + (prefixes.number(t) << bits), 1 << bits, end - begin);
          histogram_chunk(source, segments[t], digit, typename Keys::Key(prefixes.of(t)), begin,
                          end, bins.copies.data());
        });
  });
  return out;
}

struct NoScratch {};

Tensor topk_write_cpu(const TensorList& scores, std::string kind, std::optional<Tensor> key,
                      const std::vector<int64_t>& firsts, const TensorList& among, bool inverted,
                      Tensor threshold, const TensorList& words, bool accumulate) {
  constexpr const char* kOp = "topk_write_";
  Tensor out = torch::stable::new_zeros(threshold, {count_chunks(scores)}, ScalarType::Long);
  if (scores.empty()) return out;
  const ScalarType dtype = check_ranked(kOp, scores, kind, key, firsts);
  check_masks(kOp, among, scores);
  check_pools(kOp, "threshold", threshold, threshold.numel(), scores);
  check_output_words(kOp, words, scores);
  const auto segments = ranked_segments(scores, among, words, firsts);
  const auto numels = numels_of(segments);
  const Pools thresholds(threshold);
  auto* ties = static_cast<int64_t*>(out.data_ptr());
  dispatch_keys<true>(kOp, kind, key, dtype, [&]<class Keys>(const Keys& keys) {
    const Source<Keys> source(keys, inverted);
    for_each_chunk<NoScratch>(ChunkPlan(numels), numels,
                              [&](int t, int64_t begin, int64_t end, int64_t chunk, NoScratch&) {
                                ties[chunk] = write_chunk(source, segments[t],
                                                          typename Keys::Key(thresholds.of(t)),
                                                          accumulate, begin, end);
                              });
  });
  return out;
}

void topk_ties_cpu(const TensorList& scores, std::string kind, std::optional<Tensor> key,
                   const std::vector<int64_t>& firsts, const TensorList& among, bool inverted,
                   Tensor threshold, Tensor counts, Tensor before, Tensor take,
                   const TensorList& words) {
  constexpr const char* kOp = "topk_ties_";
  if (scores.empty()) return;
  const ScalarType dtype = check_ranked(kOp, scores, kind, key, firsts);
  check_masks(kOp, among, scores);
  check_topk_ties(scores, threshold, counts, before, take, words);
  const auto segments = ranked_segments(scores, among, words, firsts);
  const auto numels = numels_of(segments);
  const Pools thresholds(threshold), takes(take);
  const auto* here = static_cast<const int64_t*>(counts.data_ptr());
  const auto* earlier = static_cast<const int64_t*>(before.data_ptr());
  dispatch_keys<true>(kOp, kind, key, dtype, [&]<class Keys>(const Keys& keys) {
    const Source<Keys> source(keys, inverted);
    for_each_chunk<NoScratch>(ChunkPlan(numels), numels,
                              [&](int t, int64_t begin, int64_t end, int64_t chunk, NoScratch&) {
                                const int64_t left = takes.of(t) - earlier[chunk];
                                if (here[chunk] == 0 || left <= 0) return;
                                ties_chunk(source, segments[t],
                                           typename Keys::Key(thresholds.of(t)), left, begin, end);
                              });
  });
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("topk_histogram", TORCH_BOX(&topk_histogram_cpu));
  m.impl("topk_write_", TORCH_BOX(&topk_write_cpu));
  m.impl("topk_ties_", TORCH_BOX(&topk_ties_cpu));
}

}  // namespace sk::cpu
