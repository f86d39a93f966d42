// live_mask in the elementwise kernel; the block programs of mask_index, gather_entries and
// scatter_entries.
#pragma once

#include <cstdint>

#include "../functors/compaction.h"
#include "for_each.h"

namespace sk::phases {

template <class T>
struct Traits<LiveMask<T>> : DefaultTraits {
  static constexpr bool kInput = true;
  static constexpr int kInputBytes = int(sizeof(T));
};

// Word `index` of a mask from the duals of its tensor.
template <class T, class Functor, class Memory, class Block>
SK_HD uint32_t computed(const LiveMask<T>&, const Functor& functor, const Memory& memory,
                        const Block& block, int64_t index) {
  const auto* duals = reinterpret_cast<const T*>(block.input()) + 32 * index;
  const int64_t left = block.input_numel() - 32 * index;
  uint32_t bits = 0;
  if (left >= 32 && reinterpret_cast<uintptr_t>(duals) % 16 == 0) {
    SK_UNROLL(4)  // all 32 at once would take too many registers
    for (int i = 0; i < 32; i += 4) {
      T x[4];
      load_vector<T, 4>(memory, reinterpret_cast<const char*>(duals + i), x);
      SK_UNROLLED
      for (int j = 0; j < 4; ++j) bits |= uint32_t(functor.live(x[j])) << (i + j);
    }
  } else {
    const int count = int(left < 32 ? left : 32);
    SK_UNROLL(1)
    for (int i = 0; i < count; ++i) bits |= uint32_t(functor.live(memory.load(duals + i))) << i;
  }
  return bits;
}

struct EntryThread {};

// The op of mask_index's tables: masks, ranks, and the index as the tensor of entries.
struct MaskIndex {
  using Lists = StreamList<>;
};

template <bool kMasked>
struct Slots<MaskIndex, kMasked> {
  static constexpr int kNumel = 0, kMask = 1, kBackup = 2, kRanks = 3, kCapacity = 4, kCount = 5;

  template <class Table>
  static void fill(Table& table, int row, const Segment& s) {
    const auto put = [&](int slot, const void* p) {
      table.slots[slot][row] = int64_t(reinterpret_cast<intptr_t>(p));
    };
    table.slots[kNumel][row] = s.numel;
    put(kMask, s.mask);
    put(kBackup, s.data[0]);
    put(kRanks, s.ranks);
    table.slots[kCapacity][row] = s.capacity;
  }
};

using IndexTable = TableOf<MaskIndex, false>;

// The numbers of a chunk's entries with bit 1, tile by tile where the ranks say; none outside of
// the index.
template <class Exec>
SK_HD void index_block(Exec& exec, const IndexTable& table, int32_t number) {
  constexpr int kTileWords = int(kRankTile / 32);
  const View<MaskIndex, false> block(table, number);
  Places* places = &exec.shared;
  count_before(exec, block, places);
  exec.run([&](int thread, EntryThread&) SK_INLINED {
    auto* index = reinterpret_cast<int32_t*>(block.entries());
    const int64_t* ranks = block.rank();
    const int64_t origin = exec.memory.load(ranks - block.begin / kRankTile);
    for (int w = thread; 32 * w < block.size; w += kThreads) {
      uint32_t word = exec.memory.load(block.mask() + w);
      if (word == 0) continue;
      const int tile = w / kTileWords;
      int64_t place = exec.memory.load(ranks + tile) - origin + exec.memory.load(places->ones + w) -
                      exec.memory.load(places->ones + tile * kTileWords);
      for (; word != 0; word &= word - 1, ++place) {
        const int32_t bit = popcount(~word & (word - 1));
        if (place < 0 || place >= block.capacity()) continue;
        exec.memory.store(index + place, int32_t(block.begin + 32 * w) + bit);
      }
    }
  });
}

// The op of the tables of gather_entries and scatter_entries: values, index, length and number of
// the runs, and the tensor as that of the entries.
template <class T, bool kScatters>
struct MoveEntries {
  using Storage = T;
  static constexpr bool kScatter = kScatters;
  using Lists = StreamList<InOut<T>>;
};

template <class T, bool kScatter, bool kMasked>
struct Slots<MoveEntries<T, kScatter>, kMasked> {
  static constexpr int kNumel = 0, kData = 1, kInput = 2, kInputNumel = 3, kCols = 4, kBackup = 5;
  static constexpr int kCount = 6;

  template <class Table>
  static void fill(Table& table, int row, const Segment& s) {
    const auto put = [&](int slot, const void* p) {
      table.slots[slot][row] = int64_t(reinterpret_cast<intptr_t>(p));
    };
    table.slots[kNumel][row] = s.numel;
    put(kData, s.data[1]);
    put(kInput, s.input);
    table.slots[kInputNumel][row] = s.input_numel;
    table.slots[kCols][row] = s.cols;
    put(kBackup, s.data[0]);
  }
};

template <class Op>
using EntryTable = TableOf<Op, false>;

// Where the values of a chunk stand in the tensor.
struct RunCursor {
  int64_t run, runs;      // their length and number in the tensor
  int64_t entry, within;  // of the chunk's first element

  SK_HD RunCursor(int64_t length, int64_t count, int64_t begin)
      : run(length), runs(count), entry(begin / length), within(begin % length) {}

  // of the chunk's element i; -1 where the index leads out of the tensor
  template <class Memory>
  SK_HD int64_t place(const Memory& memory, const int32_t* index, int i) const {
    const int64_t at = within + i;
    int64_t passed = i;  // runs
    if (run > kChunkSize) {
      passed = at >= run;  // a chunk meets two of them at most
    } else if (run != 1) {
      passed = int64_t(uint32_t(at) / uint32_t(run));  // 64 bits would take several times as long
    }
    const int64_t number = memory.load(index + entry + passed);
    return number < 0 || number >= runs ? -1 : number * run + (at - passed * run);
  }
};

template <class Op, class Exec>
SK_HD void move_block(Exec& exec, const EntryTable<Op>& table, int32_t number) {
  using T = typename Op::Storage;
  constexpr int kMoves = 4;  // of a thread in flight
  const View<Op, false> block(table, number);
  const RunCursor cursor(block.cols(), block.input_numel(), block.begin);
  exec.run([&](int thread, EntryThread&) SK_INLINED {
    const auto* index = reinterpret_cast<const int32_t*>(block.input());
    T* tensor = reinterpret_cast<T*>(block.entries());
    T* values = reinterpret_cast<T*>(block.template data<InOut<T>>(0)) + thread;
    SK_UNROLL(1)
    for (int first = 0; first + thread < block.size; first += kMoves * kThreads) {
      int64_t places[kMoves];
      T x[kMoves];
      SK_UNROLLED
      for (int u = 0; u < kMoves; ++u) {
        const int i = first + thread + u * kThreads;
        places[u] = i < block.size ? cursor.place(exec.memory, index, i) : -1;
      }
      SK_UNROLLED
      for (int u = 0; u < kMoves; ++u) {
        const T* from = Op::kScatter ? values + first + u * kThreads : tensor + places[u];
        if (places[u] >= 0) x[u] = exec.memory.load(from);
      }
      SK_UNROLLED
      for (int u = 0; u < kMoves; ++u) {
        T* to = Op::kScatter ? tensor + places[u] : values + first + u * kThreads;
        if (places[u] >= 0) exec.memory.store(to, x[u]);
      }
    }
  });
}

}  // namespace sk::phases
