// The ops on masks and scores in the sanitized harness: counts, zeros, selections, n of m.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "harness_compaction.h"
#include "harness_lists.h"
#include "harness_ranked.h"

namespace sk::harness {

// shift: words by which the masks are moved off a 16-byte boundary
inline void count_masks(size_t shift, std::mt19937& random) {
  const Masks bits(random);
  auto words = bits.words;
  std::vector<std::vector<int64_t>> counts, wanted;
  Run run;
  for (const int64_t n : list_sizes) {
    counts.emplace_back(size_t(tiles_of(n)), -1);
    wanted.emplace_back(size_t(tiles_of(n)));
  }
  each_live(&bits, [&](size_t t, int64_t i) { ++wanted[t][size_t(i / kRankTile)]; });
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    words[t].insert(words[t].begin(), shift, ~0u);
    words[t].shrink_to_fit();
    Segment s;
    s.numel = 32 * words_of(list_sizes[t]);
    s.data[0] = counts[t].data();
    s.mask = words[t].data() + shift;
    run.segments.push_back(s);
  }
  mask_count(run);
  expect(counts == wanted, "mask_count");
}

template <class T>
void apply_masks(int shift, std::mt19937& random) {
  Masks bits(random);
  List<T> tensors(shift, random), wanted = tensors;
  each_live(nullptr, [&](size_t t, int64_t i) {
    if (!mask_bit(bits.words[t].data(), i)) wanted.at(t, i) = T(0);
  });
  mask_apply(run_of(&bits, tensors), int(sizeof(T)));
  expect(tensors.memory == wanted.memory, "mask_apply of " + std::to_string(sizeof(T)) + " bytes");
}

constexpr int64_t kScoreKey = 0x0123456789abcdef;

// The global index of element 0; not a multiple of what one call of Philox serves.
inline int64_t first_of(size_t t) { return 5 + 1000003 * int64_t(t); }

inline uint32_t random_key_of(size_t t, int64_t i) {
  return RandomKeys::at(first_of(t) + i, round_keys(uint64_t(kScoreKey)));
}

// Many of them equal: multiples of 1/4 between -2 and 2.
template <class T>
List<T> tied_scores(int shift, std::mt19937& random) {
  List<T> scores(shift, random);
  each_live(nullptr, [&](size_t t, int64_t i) {
    scores.at(t, i) = store<T>(std::nearbyint(load(scores.at(t, i)) * 4) / 4);
  });
  return scores;
}

// The key of every element, by the functor.
template <class T>
std::vector<std::vector<uint32_t>> keys_of(List<T>& scores, const std::string& kind) {
  std::vector<std::vector<uint32_t>> keys;
  for (const int64_t n : list_sizes) keys.emplace_back(size_t(n));
  each_live(nullptr, [&](size_t t, int64_t i) {
    keys[t][size_t(i)] =
        kind == "random" ? random_key_of(t, i) : score_keys<T>(kind == "abs")(scores.at(t, i));
  });
  return keys;
}

enum class Among { kAll, kOnes, kZeros };

// One list of scores, what is a candidate, and the words of a selection.
template <class T>
struct Choice {
  std::string kind;
  Among among;
  bool single;
  List<T> scores;
  Masks bits, words;
  std::vector<std::vector<uint32_t>> keys;
  ChunkPlan plan{list_sizes};

  Choice(int shift, const std::string& k, Among a, bool one_pool, std::mt19937& random)
      : kind(k),
        among(a),
        single(one_pool),
        scores(tied_scores<T>(shift, random)),
        bits(random),
        words(random),
        keys(keys_of(scores, k)) {}

  size_t pools() const { return single ? 1 : list_sizes.size(); }
  size_t pool(size_t t) const { return single ? 0 : t; }
  size_t chunk(size_t t, int64_t i) const { return size_t(plan.first_chunk[t] + i / kChunkSize); }
  // a key that occurs in the pool
  std::vector<int64_t> thresholds() const {
    if (single) return {int64_t(keys.back()[4711 % keys.back().size()])};
    std::vector<int64_t> out;
    for (const auto& k : keys) out.push_back(k.empty() ? 0 : int64_t(k[k.size() / 2]));
    return out;
  }
  Selection selection(const std::vector<int64_t>& numbers) const {
    return {name_of<T>(), kind, &kScoreKey, numbers.data(), single, among == Among::kZeros};
  }
  Run run(Masks* out) {
    Run run = run_of(among == Among::kAll ? nullptr : &bits, scores);
    for (size_t t = 0; t < list_sizes.size(); ++t) {
      if (out) run.segments[t].data[1] = out->words[t].data();
      run.segments[t].first = first_of(t);
    }
    return run;
  }
  template <class F>
  void each_candidate(const F& f) const {
    each_live(nullptr, [&](size_t t, int64_t i) {
      const bool one = mask_bit(bits.words[t].data(), i);
      if (among == Among::kAll || one == (among == Among::kOnes)) f(t, i, keys[t][size_t(i)]);
    });
  }
  std::string name(const char* op) const { return op + (" " + kind) + " of " + name_of<T>(); }
};

template <class T>
void histograms(Choice<T>& x) {
  for (const auto& [low, bits] : {std::pair{21, 11}, {10, 11}, {0, 10}}) {
    std::vector<int64_t> prefix = x.thresholds();
    for (auto& p : prefix) p >>= low + bits;
    std::vector<int64_t> counts(x.pools() << bits), wanted(x.pools() << bits);
    x.each_candidate([&, low = low, bits = bits](size_t t, int64_t, uint32_t key) {
      if (int64_t(uint64_t(key) >> (low + bits)) != prefix[x.pool(t)]) return;
      ++wanted[(x.pool(t) << bits) + ((key >> low) & ((1u << bits) - 1u))];
    });
    topk_histogram(x.run(nullptr), x.selection(prefix), low, bits, counts.data());
    expect(counts == wanted, x.name("topk_histogram"));
  }
}

inline void set_bit(Masks& masks, size_t t, int64_t i) {
  masks.words[t][size_t(i / 32)] |= 1u << (i % 32);
}

// The bits above the threshold, then those of the first ties: half of each pool's.
template <class T>
void writes(Choice<T>& x, bool accumulate) {
  const std::vector<int64_t> thresholds = x.thresholds();
  Masks out = x.words, wanted = x.words;
  if (!accumulate) {
    for (auto& w : wanted.words) std::fill(w.begin(), w.end(), 0u);
  }
  std::vector<int64_t> ties(size_t(x.plan.chunks()), -1), found(ties.size()), before(ties.size());
  std::vector<int64_t> take(x.pools()), seen(x.pools());
  x.each_candidate([&](size_t t, int64_t i, uint32_t key) {
    if (int64_t(key) > thresholds[x.pool(t)]) set_bit(wanted, t, i);
    found[x.chunk(t, i)] += int64_t(key) == thresholds[x.pool(t)];
  });
  topk_write(x.run(&out), x.selection(thresholds), accumulate, ties.data());
  expect(out.words == wanted.words && ties == found, x.name("topk_write"));
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    for (int64_t c = x.plan.first_chunk[t]; c < x.plan.first_chunk[t + 1]; ++c) {
      before[size_t(c)] = take[x.pool(t)];
      take[x.pool(t)] += found[size_t(c)];
    }
  }
  for (auto& count : take) count = (count + 1) / 2;
  x.each_candidate([&](size_t t, int64_t i, uint32_t key) {
    if (int64_t(key) != thresholds[x.pool(t)]) return;
    if (seen[x.pool(t)]++ < take[x.pool(t)]) set_bit(wanted, t, i);
  });
  topk_ties(x.run(&out), x.selection(thresholds), {ties.data(), before.data(), take.data()});
  expect(out.words == wanted.words, x.name("topk_ties"));
}

template <class T>
void selections(int shift, std::mt19937& random) {
  bool single = false;
  for (const char* kind : {"value", "abs", "random"}) {
    for (const Among among : {Among::kAll, Among::kOnes, Among::kZeros}) {
      Choice<T> x(shift, kind, among, single = !single, random);
      histograms(x);
      for (const bool accumulate : {false, true}) writes(x, accumulate);
    }
  }
}

// columns of the matrix that each tensor is read as
inline const std::array<int64_t, 6> kCols{0, 1, 7, 255, 64, 65537};

inline int64_t cols_of(size_t t) {
  return many_tensors() ? std::max(list_sizes[t], int64_t(1)) : kCols[t];
}

// Where an entry stands in its line, how long that is, and how far apart its entries are.
struct Place {
  int64_t at, length, stride;

  Place(bool along_rows, size_t t, int64_t i) {
    const int64_t cols = cols_of(t), row = i / cols, col = i % cols;
    at = along_rows ? col : row;
    length = along_rows ? cols : list_sizes[t] / cols;
    stride = along_rows ? 1 : cols;
  }
};

template <class T>
void n_of_m(int shift, const std::string& kind, const Groups& groups, std::mt19937& random) {
  List<T> scores = tied_scores<T>(shift, random);
  const auto keys = keys_of(scores, kind);
  Masks words(random), wanted = words;
  for (auto& w : wanted.words) std::fill(w.begin(), w.end(), 0u);
  each_live(nullptr, [&](size_t t, int64_t i) {
    const Place place(groups.along_rows, t, i);
    const int64_t in = place.at % groups.m, start = i - in * place.stride;
    const int64_t members = std::min(groups.m, place.length - (place.at - in));
    int64_t better = 0;
    for (int64_t j = 0; j < members; ++j) {
      const uint32_t key = keys[t][size_t(start + j * place.stride)], own = keys[t][size_t(i)];
      better += key > own || (key == own && j < in);
    }
    if (better < groups.n) set_bit(wanted, t, i);
  });
  Run run;
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    Segment s;
    s.numel = words_of(list_sizes[t]);
    s.data[0] = words.words[t].data();
    s.input = scores.data(t);
    s.input_numel = list_sizes[t];
    s.first = first_of(t);
    s.cols = cols_of(t);
    run.segments.push_back(s);
  }
  const Selection selection{name_of<T>(), kind, &kScoreKey, nullptr, true, false};
  mask_nm(run, selection, groups.n, groups.m, groups.along_rows);
  expect(words.words == wanted.words, "mask_nm " + kind + " of " + name_of<T>());
}

template <class T>
void ranked_ops(int shift, std::mt19937& random) {
  selections<T>(shift, random);
  for (const bool along_rows : {false, true}) {
    n_of_m<T>(shift, "value", {2, 4, along_rows}, random);
    n_of_m<T>(shift, "abs", {7, 40, along_rows}, random);
    n_of_m<T>(shift, "random", {1, 3, along_rows}, random);
  }
}

}  // namespace sk::harness
