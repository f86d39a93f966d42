// The block programs of prox_group. A block takes
//   small groups (at most kLanes entries): a batch of them, kept in registers, their squares joined
//     in shared memory, all groups at once
//   one group of at most a chunk: lanes in registers, as norm adds, then the group once more
//   a chunk of a larger group: its sum in one launch, its readout in the next one
// Blocks leave their part of a tensor's value, which a last launch adds in order.
#pragma once

#include <cstdint>

#include "../functors/prox_group.h"
#include "reduce.h"
#include "registers.h"

namespace sk::phases {

constexpr int kQuad = 4;                          // consecutive entries of a thread
constexpr int kHeld = 2;                          // quads that a thread keeps of small groups
constexpr int kBatch = kThreads * kQuad * kHeld;  // entries of a block of small groups
static_assert(kThreads * kQuad == kLanes);

// The op of the tables: params, duals, alive, and the tiles.
template <class T>
struct ProxLists {
  using Lists = StreamList<Out<T>, In<float>>;
  ProxGroup<float> functor;
  const float* thresholds;  // [tensors, 4]
  double lam, delta;
};

struct ProxOutputs {
  double* sums;            // [blocks] of squares, of parts of large groups
  double* values;          // [blocks]
  int64_t *live, *groups;  // [tensors], zeroed
};

template <class T, bool kMasked>
struct Slots<ProxLists<T>, kMasked> {
  static constexpr int kData = 0, kAlive = 2, kRows = 3, kCols = 4, kHeight = 5, kWidth = 6;
  static constexpr int kNarrow = 7, kCount = 8;

  template <class Table>
  static void fill(Table& table, int row, const Segment& s) {
    const Tiling tiling = make_tiling(s.numel, s.cols, s.height, s.width);
    for (int i = 0; i < 3; ++i) {
      table.slots[kData + i][row] = int64_t(reinterpret_cast<intptr_t>(s.data[i]));
    }
    table.slots[kRows][row] = tiling.rows;
    table.slots[kCols][row] = tiling.cols;
    table.slots[kHeight][row] = tiling.height;
    table.slots[kWidth][row] = tiling.width;
    table.slots[kNarrow][row] = tiling.narrow;
  }
};

template <class T>
using ProxTable = TableOf<ProxLists<T>, false>;

// Groups of n entries that a block of small groups takes; eight or more such that the next block's
// begin with a 16-byte access.
SK_HD int groups_of_batch(int n) {
  const int groups = kBatch / n;
  return groups >= 8 ? groups / 8 * 8 : groups;
}

// Blocks of one tensor. Chunks of large groups are numbered as if all groups were whole.
inline int64_t prox_blocks(const Tiling& tiling) {
  const int64_t groups = tiling.groups(), n = tiling.entries();
  if (n > kLanes) return groups * chunks_of(n);
  const int64_t together = groups_of_batch(int(n));
  return (groups + together - 1) / together;
}

// Which launches a list needs.
struct ProxSizes {
  bool small = false, single = false, large = false;

  explicit ProxSizes(const std::vector<Segment>& segments) {
    for (const Segment& s : segments) {
      const int64_t n = make_tiling(s.numel, s.cols, s.height, s.width).entries();
      (n <= kLanes ? small : single) = true;
      large |= n > kChunkSize;
    }
  }
};

// The plan of the tables: a chunk for every block.
inline ChunkPlan prox_plan(const std::vector<Segment>& segments) {
  std::vector<int64_t> numels;
  for (const Segment& s : segments) {
    numels.push_back(prox_blocks(make_tiling(s.numel, s.cols, s.height, s.width)) * kChunkSize);
  }
  return ChunkPlan(numels);
}

// What a thread or a block found.
struct alignas(16) Tally {
  double value;
  int32_t live, groups;

  SK_HD Tally operator+(const Tally& o) const {
    return {value + o.value, live + o.live, groups + o.groups};
  }
};

struct ProxShared {
  alignas(16) float x[kBatch];  // squares, then in the first place of each group its factor
  Tally tallies[kThreads];
  double values[kThreads];  // of finish_block
  double total;
};

struct ProxThread : FinishThread {
  float lanes[kQuad * kHeld];  // sums of squares; small groups: duals
  float entries;               // sum of |theta|
  double norms;
  int32_t live, groups;
};

struct Quotient {
  int64_t whole, rest;
};
SK_HD Quotient divide(int64_t x, int64_t by) {
  if (x < by) return {0, x};
  if (x <= 0xffffffff) {  // the 64-bit division is a call
    const uint32_t whole = uint32_t(x) / uint32_t(by);
    return {int64_t(whole), int64_t(uint32_t(x) - whole * uint32_t(by))};
  }
  return {x / by, x % by};
}

// One tensor of the table. Like View it reads its numbers where they are used.
template <class T>
struct ProxView {
  using S = Slots<ProxLists<T>, false>;

  const ProxTable<T>& table;
  int32_t row;

  SK_HD ProxView(const ProxTable<T>& t, int32_t block)
      : table(t), row(find_tensor(t.first_chunk, t.tensors, block)) {}

  SK_HD int32_t tensor() const { return table.tensor + row; }
  SK_HD int64_t slot(int number) const { return table.slots[number][row]; }
  SK_HD Tiling tiling() const {
    return {slot(S::kRows), slot(S::kCols), slot(S::kHeight), slot(S::kWidth),
            int(slot(S::kNarrow))};
  }
  SK_HD T* params() const { return reinterpret_cast<T*>(intptr_t(slot(S::kData))); }
  SK_HD const float* duals() const {
    return reinterpret_cast<const float*>(intptr_t(slot(S::kData + 1)));
  }
  SK_HD uint8_t* alive() const { return reinterpret_cast<uint8_t*>(intptr_t(slot(S::kAlive))); }
  // the entry at `place` and three more can be accessed at once
  SK_HD bool aligned(int64_t place) const {
    return place % kQuad == 0 && slot(S::kData) % int64_t(kQuad * sizeof(T)) == 0 &&
           slot(S::kData + 1) % 16 == 0;
  }
};

// Up to four consecutive entries in the group's or the batch's numbering, and where they stand.
struct Quad {
  int64_t place[kQuad];
  uint32_t bits;  // which exist
  bool together;  // one access
};

// Entries of one tile from `at` on, before `end`.
template <class T>
SK_HD Quad quad_of(const ProxView<T>& view, const Tile& tile, int64_t at, int64_t end) {
  const int64_t cols = view.slot(ProxView<T>::S::kCols), first = tile.row * cols + tile.col;
  Quad quad;
  quad.bits = 0;
  Quotient in = divide(at, tile.width);
  quad.together = at + kQuad <= end && in.rest + kQuad <= tile.width;
  SK_UNROLLED
  for (int i = 0; i < kQuad; ++i) {
    quad.place[i] = first + in.whole * cols + in.rest;
    if (at + i < end) quad.bits |= 1u << i;
    if (++in.rest == tile.width) {
      in.rest = 0;
      ++in.whole;
    }
  }
  quad.together = quad.together && view.aligned(quad.place[0]);
  return quad;
}

// Entries [at, at + 4) of a batch of small groups, the first of which is `group`; every group has
// as many places as a whole one.
template <class T>
SK_HD Quad quad_of_batch(const ProxView<T>& view, const Tiling& tiling, int64_t group, int count,
                         int at) {
  const int n = int(tiling.entries());
  Quad quad;
  quad.bits = 0;
  quad.together = false;
  if (tiling.rows == 1 && tiling.height == 1) {  // no gaps
    const int64_t place = group * n + at, left = tiling.cols - place;
    const int here = count * n - at;
    SK_UNROLLED
    for (int i = 0; i < kQuad; ++i) {
      quad.place[i] = place + i;
      if (i < here && i < left) quad.bits |= 1u << i;
    }
    quad.together = quad.bits == (1u << kQuad) - 1u && view.aligned(place);
    return quad;
  }
  int number = at / n, in = at - number * n;
  if (number < count) {
    const Tile tile = tiling.tile(group + number);
    if (in + kQuad <= n) return quad_of(view, tile, in, tile.entries());
  }
  SK_UNROLL(1)
  for (int i = 0; i < kQuad && number < count; ++i) {
    const Tile tile = tiling.tile(group + number);
    if (in < tile.entries()) {
      const int64_t r = in / int(tile.width);
      const int64_t place = (tile.row + r) * tiling.cols + tile.col + (in - r * tile.width);
      SK_UNROLLED
      for (int j = 0; j < kQuad; ++j) {
        if (j == i) quad.place[j] = place;  // an index of its own would put places into memory
      }
      quad.bits |= 1u << i;
    }
    if (++in == n) {
      in = 0;
      ++number;
    }
  }
  return quad;
}

template <class T, class Memory>
SK_HD void load_quad(const Memory& memory, const ProxView<T>& view, const Quad& quad, float* out) {
  const float* duals = view.duals();
  if (quad.together) {
    return load_vector<float, kQuad>(memory, reinterpret_cast<const char*>(duals + quad.place[0]),
                                     out);
  }
  SK_UNROLLED
  for (int i = 0; i < kQuad; ++i) {
    out[i] = 0.0f;
    if ((quad.bits >> i) & 1u) out[i] = memory.load(duals + quad.place[i]);
  }
}

// theta <- to memory, and what it adds to the tally
template <class T, class Memory>
SK_HD void store_quad(const Memory& memory, const ProxView<T>& view, const Quad& quad,
                      const float* theta, ProxThread& state) {
  T out[kQuad];
  SK_UNROLLED
  for (int i = 0; i < kQuad; ++i) {
    out[i] = sk::store<T>(theta[i]);
    if (((quad.bits >> i) & 1u) == 0) continue;
    state.live += theta[i] != 0.0f;
    state.entries += abs(theta[i]);
  }
  T* params = view.params();
  if (quad.together) {
    return store_vector<T, kQuad>(memory, reinterpret_cast<char*>(params + quad.place[0]), out);
  }
  SK_UNROLLED
  for (int i = 0; i < kQuad; ++i) {
    if ((quad.bits >> i) & 1u) memory.store(params + quad.place[i], out[i]);
  }
}

// The factor of a group, by one thread: what it adds to the tally, and the flag.
template <class T, class Memory>
SK_HD float tally_group(const Memory& memory, const ProxLists<T>& op, const ProxView<T>& view,
                        int64_t group, int kind, float norm, ProxThread& state) {
  const float threshold = memory.load(op.thresholds + 4 * int64_t(view.tensor()) + kind);
  const float factor = op.functor.factor(norm, threshold);
  state.norms += op.functor.value(norm, threshold, factor);
  state.groups += factor != 0.0f;
  if (uint8_t* alive = view.alive()) memory.store(alive + group, uint8_t(factor != 0.0f));
  return factor;
}

template <class Exec>
SK_HD void clear_tally(Exec& exec) {
  exec.run([&](int, ProxThread& state) SK_INLINED {
    state.entries = 0.0f;
    state.norms = 0.0;
    state.live = state.groups = 0;
  });
}

// The threads' tallies to the block's place among the values, and to the tensor's counts.
template <class T, class Exec>
SK_HD void reduce_tally(Exec& exec, const ProxLists<T>& op, const ProxOutputs& out, int64_t block,
                        int32_t tensor) {
  Tally* tallies = exec.shared.tallies;
  exec.run([&](int thread, ProxThread& state) SK_INLINED {
    const double value = op.delta * state.norms + op.lam * double(state.entries);
    exec.memory.store(tallies + thread, Tally{value, state.live, state.groups});
  });
  exec.barrier();
  join_in_shared(exec, tallies, kThreads);
  exec.run([&](int thread, ProxThread&) SK_INLINED {
    if (thread != 0) return;
    const Tally all = exec.memory.load(tallies);
    exec.memory.store(out.values + block, all.value);
    if (all.live) exec.memory.add(out.live + tensor, int64_t(all.live));
    if (all.groups) exec.memory.add(out.groups + tensor, int64_t(all.groups));
  });
}

}  // namespace sk::phases
