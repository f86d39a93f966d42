#include "../torch/compaction.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../core/simd_bits.h"
#include "../core/simd_pack.h"
#include "../functors/compaction.h"
#include "../torch/dispatch.h"
#include "results.h"

namespace sk::cpu {

template <class T>
SK_CLONES void live_chunk(const typename LiveMask<T>::Functor& functor, const T* duals,
                          int64_t begin, int64_t end, uint32_t* words) {
  alignas(kStreamAlign) uint8_t live[kBlock] = {};
  int64_t first = begin;
  for (; first + kBlock <= end; first += kBlock) {
    const T* own = duals + first;
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) live[i] = functor.live(own[i]);
    for (int w = 0; w < kBlock / 32; ++w) words[first / 32 + w] = bits_of_bytes(live + 32 * w);
  }
  const int n = int(end - first);
  for (int i = 0; i < n; ++i) live[i] = functor.live(duals[first + i]);
  std::fill(live + n, live + kBlock, uint8_t(0));
  for (int w = 0; w * 32 < n; ++w) words[first / 32 + w] = bits_of_bytes(live + 32 * w);
}

void live_mask_cpu(const TensorList& duals, const TensorList& words, double lam, bool nonnegative) {
  if (duals.empty()) return;
  const ScalarType dtype = check_live_mask(duals, words);
  const auto segments = make_segments({&duals, &words}, {}, {});
  const auto numels = numels_of(segments);
  const auto run = [&]<class T>() {
    const auto functor = live_mask<T>(lam, nonnegative).functor;
    struct None {};
    for_each_chunk<None>(ChunkPlan(numels), numels,
                         [&](int t, int64_t begin, int64_t end, int64_t, None&) {
                           live_chunk(functor, static_cast<const T*>(segments[t].data[0]), begin,
                                      end, static_cast<uint32_t*>(segments[t].data[1]));
                         });
  };
  dtype == ScalarType::Double ? run.operator()<double>() : run.operator()<float>();
}

// Numbers of the ones of a tile.
struct OneNumbers {
  alignas(kStreamAlign) uint32_t ones[kRankTile + kPackSlack];
};

void index_tile(const Segment& segment, int64_t begin, int64_t end, OneNumbers& numbers) {
  static const NumberOnes number_ones = pick_number_ones();
  const int64_t ones =
      number_ones(segment.mask + begin / 32, end - begin, uint32_t(begin), numbers.ones);
  // the places that exist: all of them, but for ranks of another mask
  const int64_t place = segment.ranks[begin / kRankTile] - segment.ranks[0];
  const int64_t from = std::clamp<int64_t>(-place, 0, ones);
  const int64_t to = std::clamp<int64_t>(segment.capacity - place, from, ones);
  if (from < to) {
    auto* index = static_cast<uint32_t*>(segment.data[0]);
    std::memcpy(index + place + from, numbers.ones + from, size_t(to - from) * sizeof(uint32_t));
  }
}

void mask_index_cpu(const TensorList& words, const TensorList& ranks, const TensorList& index) {
  if (words.empty()) return;
  check_mask_index(words, ranks, index);
  const auto segments = index_segments(words, ranks, index);
  const auto numels = numels_of(segments);
  for_each_chunk<OneNumbers>(ChunkPlan(numels), numels,
                             [&](int t, int64_t begin, int64_t end, int64_t, OneNumbers& numbers) {
                               for (int64_t tile = begin; tile < end; tile += kRankTile) {
                                 index_tile(segments[t], tile, std::min(end, tile + kRankTile),
                                            numbers);
                               }
                             });
}

SK_CLONES uint32_t largest(const uint32_t* numbers, int64_t n) {
  uint32_t most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = numbers[i] > most ? numbers[i] : most;
  return most;
}

// Before anything is moved. A negative number is a large one without its sign.
void check_range(const char* op, const TensorList& index, const std::vector<Segment>& segments) {
  struct None {};
  std::vector<int64_t> numels;
  for (const Listed& t : index) numels.push_back(t.numel());
  const ChunkPlan plan(numels);
  std::vector<uint32_t> most(size_t(plan.chunks()));
  for_each_chunk<None>(plan, numels, [&](int t, int64_t begin, int64_t end, int64_t chunk, None&) {
    most[size_t(chunk)] =
        largest(static_cast<const uint32_t*>(segments[t].input) + begin, end - begin);
  });
  for (size_t t = 0; t < segments.size(); ++t) {
    for (int64_t c = plan.first_chunk[t]; c < plan.first_chunk[t + 1]; ++c) {
      STD_TORCH_CHECK(int64_t(most[size_t(c)]) < segments[t].input_numel, op, ": index[", t,
                      "] holds ", int32_t(most[size_t(c)]), ", outside of [0, ",
                      segments[t].input_numel, ")");
    }
  }
}

// Runs ahead whose memory is asked for: too far apart for the processor to foresee, every access
// would wait for memory.
constexpr int64_t kAhead = 128;

template <class T, bool kScatter>
SK_HD void copy_run(T* place, T* values, int64_t n) {
  std::memcpy(kScatter ? place : values, kScatter ? values : place, size_t(n) * sizeof(T));
}

// kRun: length of the runs, 0 where it is not known here
template <class T, bool kScatter, int kRun>
SK_CLONES void move_whole_runs(T* tensor, const uint32_t* index, T* values, int64_t count,
                               int64_t length) {
  const int64_t run = kRun ? kRun : length;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t ahead = index[std::min(i + kAhead, count - 1)];
    __builtin_prefetch(tensor + ahead * run, kScatter,
                       kScatter ? 3 : 2);  // reads: the second cache
    copy_run<T, kScatter>(tensor + int64_t(index[i]) * run, values + i * run, run);
  }
}

// Elements [begin, end) of the values.
template <class T, bool kScatter>
void move_elements(const Segment& segment, int64_t begin, int64_t end) {
  const auto* index = static_cast<const uint32_t*>(segment.input);
  T* tensor = static_cast<T*>(segment.data[0]);
  T* values = static_cast<T*>(segment.data[1]);
  const int64_t run = segment.cols;
  const auto part = [&](int64_t first, int64_t n) {  // of one run
    copy_run<T, kScatter>(tensor + int64_t(index[first / run]) * run + first % run, values + first,
                          n);
  };
  if (begin % run != 0) {
    const int64_t n = std::min(run - begin % run, end - begin);
    part(begin, n);
    begin += n;
  }
  const auto move = run == 1   ? move_whole_runs<T, kScatter, 1>
                    : run == 4 ? move_whole_runs<T, kScatter, 4>
                    : run == 9 ? move_whole_runs<T, kScatter, 9>
                               : move_whole_runs<T, kScatter, 0>;
  const int64_t first = begin / run, count = (end - begin) / run;
  move(tensor, index + first, values + begin, count, run);
  begin += count * run;
  if (begin < end) part(begin, end - begin);
}

template <bool kScatter>
void move_entries(const char* op, const TensorList& tensors, const TensorList& index,
                  const std::vector<int64_t>& runs, const TensorList& values) {
  if (tensors.empty()) return;
  check_entries(op, tensors, index, runs, values);
  const auto segments = entry_segments(tensors, index, runs, values);
  check_range(op, index, segments);
  struct None {};
  const auto numels = numels_of(segments);
  dispatch_bits(op, tensors[0].element_size(), [&]<class T>() {
    for_each_chunk<None>(ChunkPlan(numels), numels,
                         [&](int t, int64_t begin, int64_t end, int64_t, None&) {
                           move_elements<T, kScatter>(segments[t], begin, end);
                         });
  });
}

void gather_entries_cpu(const TensorList& tensors, const TensorList& index,
                        const std::vector<int64_t>& runs, const TensorList& values) {
  move_entries<false>("gather_entries_", tensors, index, runs, values);
}

void scatter_entries_cpu(const TensorList& tensors, const TensorList& index,
                         const std::vector<int64_t>& runs, const TensorList& values) {
  move_entries<true>("scatter_entries_", tensors, index, runs, values);
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("live_mask_", TORCH_BOX(&live_mask_cpu));
  m.impl("mask_index_", TORCH_BOX(&mask_index_cpu));
  m.impl("gather_entries_", TORCH_BOX(&gather_entries_cpu));
  m.impl("scatter_entries_", TORCH_BOX(&scatter_entries_cpu));
}

}  // namespace sk::cpu
