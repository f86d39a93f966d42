// The roof of a kernel: one that moves the same streams and computes nothing. Loaded by _roofs.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "../csrc/core/macros.h"
#include "../csrc/core/simd_store.h"
#include "../csrc/torch/check.h"

namespace sk::bench {

constexpr int64_t kLine = kStreamAlign;    // bytes
constexpr int64_t kWords = kLine / 8;      // of 64 bits in a line
constexpr int64_t kBlock = 4;              // lines of every array before the next block's
constexpr int64_t kTurn = 2048;            // lines of the longest arrays before shorter ones' turn
constexpr int kMost = 3;                   // arrays of one length that are read, or updated
constexpr int64_t kPattern = 16384;        // lines after which the touched ones repeat
constexpr size_t kAhead = 128;             // touched lines that are asked for before their turn
constexpr uint64_t kAdded = 1;             // to every word that is updated
constexpr uint64_t kWritten = 0x01010101;  // into every word that is only written

// Which lines of every kPattern are touched.
struct Pattern {
  std::vector<int64_t> touched;  // ascending; then the first ones of the next kPattern
  size_t count;

  Pattern(double share, int64_t run) {
    std::vector<int64_t> runs(static_cast<size_t>(kPattern / run));
    std::iota(runs.begin(), runs.end(), 0);
    std::shuffle(runs.begin(), runs.end(), std::mt19937_64(1));
    runs.resize(size_t(std::max(std::lround(share * double(runs.size())), 1L)));
    std::sort(runs.begin(), runs.end());
    for (const int64_t r : runs) {
      for (int64_t i = 0; i < run; ++i) touched.push_back(r * run + i);
    }
    count = touched.size();
    for (size_t i = 0; i < kAhead; ++i) touched.push_back(touched[i] + kPattern);
  }
  // Made once: the time of a call is that of the memory.
  static const Pattern& of(double share, int64_t run) {
    static std::map<std::pair<double, int64_t>, Pattern> made;
    return made.try_emplace({share, run}, share, run).first->second;
  }
};

// An array of which scattered lines are touched, in one word each.
struct Scattered {
  uint64_t* data;
  const Pattern* pattern;

  // Returns how many lines of [begin, end) were touched.
  template <bool kUpdate>
  int64_t touch(int64_t begin, int64_t end, uint64_t& sum) const {
    const auto own = pattern->touched.begin(), last = own + int64_t(pattern->count);
    int64_t visited = 0;
    for (int64_t first = begin / kPattern * kPattern; first < end; first += kPattern) {
      const auto to = std::lower_bound(own, last, end - first);
      for (auto at = std::lower_bound(own, last, begin - first); at < to; ++at, ++visited) {
        __builtin_prefetch(data + (first + at[kAhead]) * kWords, kUpdate, kUpdate ? 3 : 2);
        uint64_t& word = data[(first + *at) * kWords];
        kUpdate ? word += kAdded : sum += word;
      }
    }
    return visited;
  }
};

// Arrays of one length: they move line by line together, as in a kernel.
struct Group {
  int64_t lines = 0;
  std::vector<uint64_t*> read, update, write;
  std::vector<Scattered> touch_read, touch_update;
  // lines before a turn: groups of all lengths advance side by side
  int64_t before(int64_t turn, int64_t turns) const {
    return turn == turns ? lines : int64_t(double(lines) / double(turns) * double(turn));
  }
};

// Blocks of n lines within [begin, end); returns where it stopped. The sum keeps the reads alive.
template <int kRead, int kUpdate, int n>
SK_HD int64_t move_blocks(const Group& group, int64_t begin, int64_t end, StreamCopy past,
                          uint64_t& sum) {
  alignas(kStreamAlign) uint64_t source[n * kWords];
  std::fill(source, source + n * kWords, kWritten);
  const uint64_t* r[kRead + 1];
  uint64_t* u[kUpdate + 1];
  std::copy(group.read.begin(), group.read.end(), r);
  std::copy(group.update.begin(), group.update.end(), u);
  uint64_t* const* w = group.write.data();
  const size_t writes = group.write.size();
  alignas(kStreamAlign) uint64_t total[n * kWords] = {};
  for (; begin + n <= end; begin += n) {
    const int64_t first = begin * kWords;
#pragma omp simd
    for (int i = 0; i < n * kWords; ++i) {
      if constexpr (kRead > 0) total[i] += r[0][first + i];
      if constexpr (kRead > 1) total[i] += r[1][first + i];
      if constexpr (kRead > 2) total[i] += r[2][first + i];
      if constexpr (kUpdate > 0) u[0][first + i] += kAdded;
      if constexpr (kUpdate > 1) u[1][first + i] += kAdded;
      if constexpr (kUpdate > 2) u[2][first + i] += kAdded;
    }
    for (size_t k = 0; k < writes; ++k) {
      if (past) {
        past(w[k] + first, source, n * kLine);
      } else {
        std::copy(source, source + n * kWords, w[k] + first);
      }
    }
  }
  for (uint64_t t : total) sum += t;
  return begin;
}

template <int kRead, int kUpdate>
SK_CLONES void move_lines(const Group& group, int64_t begin, int64_t end, StreamCopy past,
                          uint64_t& sum) {
  begin = move_blocks<kRead, kUpdate, kBlock>(group, begin, end, past, sum);
  move_blocks<kRead, kUpdate, 1>(group, begin, end, past, sum);
}

using Mover = void (*)(const Group&, int64_t, int64_t, StreamCopy, uint64_t&);

Mover mover_of(const Group& group) {
#define SK_ROW(r)                                                          \
  {                                                                        \
    move_lines<r, 0>, move_lines<r, 1>, move_lines<r, 2>, move_lines<r, 3> \
  }
  static const Mover movers[kMost + 1][kMost + 1] = {SK_ROW(0), SK_ROW(1), SK_ROW(2), SK_ROW(3)};
#undef SK_ROW
  return movers[group.read.size()][group.update.size()];
}

Group& group_of(std::vector<Group>& groups, const Listed& t) {
  const int64_t lines = t.numel() * int64_t(t.element_size()) / kLine;
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % kLine == 0, "streams: alignment");
  const auto group =
      std::find_if(groups.begin(), groups.end(), [=](const Group& g) { return g.lines == lines; });
  if (group != groups.end()) return *group;
  groups.push_back(Group{});
  groups.back().lines = lines;
  return groups.back();
}

void add_streams(std::vector<Group>& groups, const TensorList& tensors,
                 std::vector<uint64_t*> Group::* list) {
  for (const auto& t : tensors) {
    Group& group = group_of(groups, t);
    (group.*list).push_back(static_cast<uint64_t*>(t.data_ptr()));
    STD_TORCH_CHECK(group.read.size() <= kMost && group.update.size() <= kMost,
                    "streams: too many arrays of one length");
  }
}

// Reads, updates and writes the lines of the tensors, past the caches where asked to; of the
// touched ones only a share, in runs of so many lines; both stand in the order of the lists, those
// that are read before those that are updated. Returns the bytes moved: an update counts twice.
int64_t move_streams(const TensorList& read, const TensorList& update, const TensorList& write,
                     const TensorList& touch_read, const TensorList& touch_update,
                     const std::vector<double>& shares, const std::vector<int64_t>& runs,
                     bool past) {
  static const StreamCopy stream_copy = pick_stream_copy();
  static volatile uint64_t kept;
  std::vector<Group> groups;
  add_streams(groups, read, &Group::read);
  add_streams(groups, update, &Group::update);
  add_streams(groups, write, &Group::write);
  STD_TORCH_CHECK(
      shares.size() == touch_read.size() + touch_update.size() && runs.size() == shares.size(),
      "streams: a share and a run for every touched array");
  for (size_t i = 0; i < shares.size(); ++i) {
    const bool updates = i >= touch_read.size();
    const Listed& t = updates ? touch_update[i - touch_read.size()] : touch_read[i];
    Group& group = group_of(groups, t);
    (updates ? group.touch_update : group.touch_read)
        .push_back({static_cast<uint64_t*>(t.data_ptr()), &Pattern::of(shares[i], runs[i])});
  }
  int64_t longest = 0;
  std::atomic<int64_t> moved = 0;
  for (const Group& g : groups) {
    longest = std::max(longest, g.lines);
    moved += g.lines * int64_t(g.read.size() + 2 * g.update.size() + g.write.size());
  }
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), longest);
  // whole arrays of one length need no turns but a thread's own
  const bool together = groups.size() == 1 && shares.empty();
  const int64_t turns = together ? threads : std::max(longest / kTurn, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    uint64_t sum = 0;
    int64_t touched = 0;
    for (int64_t turn = turns * first / threads; turn < turns * last / threads; ++turn) {
      for (const Group& g : groups) {
        const int64_t begin = g.before(turn, turns), end = g.before(turn + 1, turns);
        mover_of(g)(g, begin, end, past ? stream_copy : nullptr, sum);
        for (const Scattered& s : g.touch_read) touched += s.touch<false>(begin, end, sum);
        for (const Scattered& s : g.touch_update) touched += 2 * s.touch<true>(begin, end, sum);
      }
    }
    moved += touched;
    if (past) stream_fence();
    kept = sum;
  });
  return moved * kLine;
}

STABLE_TORCH_LIBRARY(sparse_kernels_bench, m) {
  m.def(
      "move_streams(Tensor[] read, Tensor(a!)[] update, Tensor(b!)[] write, Tensor[] touch_read, "
      "Tensor(c!)[] touch_update, float[] shares, int[] runs, bool past) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparse_kernels_bench, CompositeExplicitAutograd, m) {
  m.impl("move_streams", TORCH_BOX(&move_streams));
}

}  // namespace sk::bench
