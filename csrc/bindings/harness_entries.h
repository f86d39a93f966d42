// The entries of a support in the sanitized harness: which they are, moving them there and back.
#pragma once

#include <string>
#include <vector>

#include "harness_compaction.h"
#include "harness_lists.h"

namespace sk::harness {

inline void live_masks(int shift, bool nonnegative, std::mt19937& random) {
  List<float> duals(shift, random);
  Masks words(random), wanted = words;
  Run run;
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    std::fill(wanted.words[t].begin(), wanted.words[t].end(), 0u);
    Segment s;
    s.numel = words_of(list_sizes[t]);
    s.data[0] = words.words[t].data();
    s.input = duals.data(t);
    s.input_numel = list_sizes[t];
    run.segments.push_back(s);
  }
  each_live(nullptr, [&](size_t t, int64_t i) {
    float& dual = duals.at(t, i);
    if (i % 97 == 3) dual = std::nanf("");
    if (i % 97 == 5) dual = 0.5f;
    const bool dead = nonnegative ? dual <= 0.5f : abs(dual) <= 0.5f;
    wanted.words[t][size_t(i / 32)] |= uint32_t(!dead) << (i % 32);
  });
  live_mask(run, 0.5, nonnegative);
  expect(words.words == wanted.words, "live_mask");
}

// offset: what the ranks of every second tile are wrong by; shift: numbers by which the index is
// moved off a 16-byte boundary
inline void index_masks(int64_t offset, size_t shift, std::mt19937& random) {
  Masks bits(random);
  std::vector<std::vector<int64_t>> ranks;
  std::vector<std::vector<int32_t>> index, wanted;
  Run run;
  int64_t before = 0;
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    auto& rank = ranks.emplace_back(size_t(tiles_of(list_sizes[t])));
    auto& numbers = wanted.emplace_back();
    const int64_t origin = before;
    for (int64_t i = 0; i < list_sizes[t]; ++i) {
      const int64_t wrong = i / kRankTile % 2 ? offset : 0;
      if (i % kRankTile == 0) rank[size_t(i / kRankTile)] = before + wrong;
      if (!mask_bit(bits.words[t].data(), i)) continue;
      numbers.push_back(wrong ? -1 : int32_t(i));
      ++before;
    }
    index.emplace_back(shift + size_t(before - origin), -1);
  }
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    Segment s;
    s.numel = 32 * int64_t(bits.words[t].size());
    s.mask = bits.words[t].data();
    s.ranks = ranks[t].data();
    s.data[0] = index[t].data() + shift;
    s.capacity = int64_t(index[t].size() - shift);
    run.segments.push_back(s);
  }
  mask_index(run);
  for (auto& numbers : index) numbers.erase(numbers.begin(), numbers.begin() + ptrdiff_t(shift));
  expect(index == wanted, "mask_index");
}

// Runs in reverse order, every fifth of a number that does not exist.
template <class T>
void moves(int shift, int64_t length, std::mt19937& random) {
  List<T> tensors(shift, random), values(shift, random);
  auto gathered = values, scattered = tensors;
  std::vector<std::vector<int32_t>> index;
  Run run;
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    const int64_t count = list_sizes[t] / length;
    auto& numbers = index.emplace_back();
    for (int64_t k = 0; k < count; ++k) {
      const int64_t none = k % 2 ? -1 - k : count + k, to = count - 1 - k;
      numbers.push_back(int32_t(k % 5 == 4 ? none : to));
      if (k % 5 == 4) continue;
      for (int64_t j = 0; j < length; ++j) {
        gathered.at(t, k * length + j) = tensors.at(t, to * length + j);
        scattered.at(t, to * length + j) = values.at(t, k * length + j);
      }
    }
    Segment s;
    s.numel = count * length;
    s.data[0] = tensors.data(t);
    s.data[1] = values.data(t);
    s.input_numel = count;
    s.cols = length;
    run.segments.push_back(s);
  }
  for (size_t t = 0; t < list_sizes.size(); ++t) run.segments[t].input = index[t].data();
  const std::string what = std::to_string(sizeof(T)) + " bytes, runs of " + std::to_string(length);
  const auto given = values;
  move_entries(run, sizeof(T), false);
  expect(values.memory == gathered.memory, "gather_entries of " + what);
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    std::copy(given.memory[t].begin(), given.memory[t].end(), values.memory[t].begin());
  }
  move_entries(run, sizeof(T), true);
  expect(tensors.memory == scattered.memory, "scatter_entries of " + what);
}

inline void entries(int shift, std::mt19937& random) {
  for (const bool nonnegative : {false, true}) live_masks(4 * shift, nonnegative, random);
  for (const int64_t offset : {int64_t(0), int64_t(1) << 40, -(int64_t(1) << 40)}) {
    index_masks(offset, size_t(shift), random);
  }
  for (const int64_t length : {1, 7, 512, 65536}) {
    moves<uint16_t>(2 * shift, length, random);
    moves<uint32_t>(4 * shift, length, random);
    moves<uint64_t>(8 * shift, length, random);
  }
}

}  // namespace sk::harness
