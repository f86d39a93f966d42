// mask_count: one block counts the eight tiles of a chunk, a thread four words of the mask.
#pragma once

#include <cstdint>

#include "registers.h"
#include "table.h"

namespace sk::phases {

// The op of the tables: masks, 32 entries for every word, and the counts as the tensor of entries.
struct TileCounts {
  using Lists = StreamList<>;
};

template <bool kMasked>
struct Slots<TileCounts, kMasked> {
  static constexpr int kNumel = 0, kMask = 1, kBackup = 2, kCount = 3;

  template <class Table>
  static void fill(Table& table, int row, const Segment& s) {
    table.slots[kNumel][row] = s.numel;
    table.slots[kMask][row] = int64_t(reinterpret_cast<intptr_t>(s.mask));
    table.slots[kBackup][row] = int64_t(reinterpret_cast<intptr_t>(s.data[0]));
  }
};

using CountTable = TableOf<TileCounts, false>;

constexpr int kTileThreads = int(kThreads * kRankTile / kChunkSize);  // threads of a tile

struct CountShared {
  int32_t ones[kThreads];
};
struct CountThread {};

template <class Exec>
SK_HD void count_block(Exec& exec, const CountTable& table, int32_t number) {
  const View<TileCounts, false> block(table, number);
  int32_t* ones = exec.shared.ones;
  exec.run([&](int thread, CountThread&) SK_INLINED {
    const auto* words = reinterpret_cast<const char*>(block.mask() + kOwnWords * thread);
    const int left = block.size / 32 - kOwnWords * thread;
    uint32_t own[kOwnWords] = {};
    if (left >= kOwnWords && reinterpret_cast<uintptr_t>(words) % 16 == 0) {
      load_vector<uint32_t, kOwnWords>(exec.memory, words, own);
    } else if (left > 0) {
      const uint32_t bits = left >= kOwnWords ? (1u << kOwnWords) - 1u : (1u << left) - 1u;
      load_elements<uint32_t, kOwnWords>(exec.memory, words, bits, own);
    }
    int32_t count = 0;
    SK_UNROLLED
    for (int i = 0; i < kOwnWords; ++i) count += popcount(own[i]);
    exec.memory.store(ones + thread, count);
  });
  exec.barrier();
  for (int width = kTileThreads / 2; width > 0; width /= 2) {
    exec.run([&](int thread, CountThread&) SK_INLINED {
      if (thread % kTileThreads >= width) return;
      exec.memory.store(ones + thread,
                        exec.memory.load(ones + thread) + exec.memory.load(ones + thread + width));
    });
    exec.barrier();
  }
  exec.run([&](int thread, CountThread&) SK_INLINED {
    const int64_t tile = thread / kTileThreads;
    if (thread % kTileThreads != 0 || tile * kRankTile >= block.size) return;
    auto* counts = reinterpret_cast<int64_t*>(block.entries()) + block.begin / kRankTile;
    exec.memory.store(counts + tile, int64_t(exec.memory.load(ones + thread)));
  });
}

}  // namespace sk::phases
