// The block programs of a selection: one block, one chunk of scores.
//   histogram   digits of the candidates' keys, in shared memory, then to the pool's histogram
//   write       bits of the keys above the threshold, and how many are equal to it
//   ties        the bits of the first of these
// Threads read scores in groups that fill an access, so they leave the bits of a group in shared
// memory, from where one thread takes those of a mask word together.
#pragma once

#include <cstdint>

#include "ranked.h"
#include "reduce.h"

namespace sk::phases {

struct RankedThread {
  uint32_t ties[kOwnWords];
};

// histogram ------------------------------------------------------------------------------------

// Copies of a bin, side by side: the lanes of a warp that meet in a bin share it among them.
constexpr int kBinCopies = 4;

struct HistogramShared {
  alignas(16) int32_t bins[kBinCopies << kDigitBits];
};
// counts[pool << digit.bits ...] += the chunk's digits
template <class Keys, class Exec>
SK_HD void histogram_block(Exec& exec, const Ranked<Keys>& op, const Digit& digit,
                           const RankedTable<Keys>& table, int64_t* counts, int32_t number) {
  using Key = typename Keys::Key;
  const RankedView<Keys> block(table, number);
  const int64_t pool = op.pool(block.tensor());
  const Key prefix = op.number(exec.memory, block.tensor());
  const int size = 1 << digit.bits;
  int32_t* bins = exec.shared.bins;
  exec.run([&](int thread, RankedThread&) SK_INLINED {
    for (int b = thread; b < size; b += kThreads) {
      exec.memory.store(reinterpret_cast<Packet<16>*>(bins + kBinCopies * b), Packet<16>{});
    }
  });
  exec.barrier();
  exec.run([&](int thread, RankedThread&) SK_INLINED {
    each_group(exec.memory, op, block, thread, [&](const KeyGroup<Keys>& group) SK_INLINED {
      SK_UNROLLED
      for (int i = 0; i < KeyGroup<Keys>::V; ++i) {
        if (!((group.here >> i) & 1u) || !digit.follows(group.keys[i], prefix)) continue;
        const int bin = kBinCopies * digit.of(group.keys[i]) + thread % kBinCopies;
        exec.memory.add(bins + bin, int32_t(1));
      }
    });
  });
  exec.barrier();
  exec.run([&](int thread, RankedThread&) SK_INLINED {
    for (int b = thread; b < size; b += kThreads) {
      const auto copies =
          exec.memory.load(reinterpret_cast<const Packet<16>*>(bins + kBinCopies * b));
      int64_t sum = 0;
      SK_UNROLLED
      for (int c = 0; c < kBinCopies; ++c) sum += copies.words[c];
      if (sum) exec.memory.add(counts + (pool << digit.bits) + b, sum);
    }
  });
}

// bits -----------------------------------------------------------------------------------------

// Of each four elements, the bits above the threshold and, in the upper half of a byte, those equal
// to it.
struct MarksShared {
  alignas(16) uint8_t marks[kChunkSize / 4];
  int32_t counts[2][kThreads];
};

struct Marks {
  uint32_t above, ties;
};

// Writes the marks of the groups that exist.
template <class Keys, class Exec>
SK_HD void mark(Exec& exec, const Ranked<Keys>& op, const RankedView<Keys>& block,
                typename Keys::Key threshold) {
  using Group = KeyGroup<Keys>;
  uint8_t* marks = exec.shared.marks;
  exec.run([&](int thread, RankedThread&) SK_INLINED {
    each_group(exec.memory, op, block, thread, [&](const Group& group) SK_INLINED {
      uint32_t above = 0, ties = 0;
      if (group.here) {
        SK_UNROLLED
        for (int i = 0; i < Group::V; ++i) {
          above |= uint32_t(group.keys[i] > threshold) << i;
          ties |= uint32_t(group.keys[i] == threshold) << i;
        }
      }
      above &= group.here;
      ties &= group.here;
      SK_UNROLLED
      for (int i = 0; i < Group::V; i += 4) {
        const uint32_t both = ((above >> i) & 15u) | ((ties >> i) & 15u) << 4;
        exec.memory.store(marks + (group.at + i) / 4, uint8_t(both));
      }
    });
  });
  exec.barrier();
}

// The marks of mask word w of the chunk; groups beyond the last element were not written.
template <class Memory>
SK_HD Marks marks_of(const Memory& memory, const uint8_t* marks, int w, int size) {
  const auto packet = memory.load(reinterpret_cast<const Packet<8>*>(marks + 8 * w));
  Marks out{0, 0};
  SK_UNROLLED
  for (int i = 0; i < 8; ++i) {
    const uint32_t byte = (packet.words[i / 4] >> (8 * (i % 4))) & 0xffu;
    out.above |= (byte & 15u) << (4 * i);
    out.ties |= (byte >> 4) << (4 * i);
  }
  const int left = size - 32 * w;
  const uint32_t exist = left >= 32 ? ~0u : (1u << left) - 1u;
  out.above &= exist;
  out.ties &= exist;
  return out;
}

// ties[chunk] <- keys of the chunk that are equal to the threshold
template <class Keys, class Exec>
SK_HD void write_block(Exec& exec, const Ranked<Keys>& op, const RankedTable<Keys>& table,
                       bool accumulate, int64_t* ties, int32_t number) {
  const RankedView<Keys> block(table, number);
  int32_t* counts = exec.shared.counts[0];
  mark(exec, op, block, op.number(exec.memory, block.tensor()));
  exec.run([&](int thread, RankedThread&) SK_INLINED {
    int32_t count = 0;
    for (int w = thread; w * 32 < block.size; w += kThreads) {
      const Marks found = marks_of(exec.memory, exec.shared.marks, w, block.size);
      uint32_t* word = block.words() + w;
      count += popcount(found.ties);
      exec.memory.store(word, accumulate ? exec.memory.load(word) | found.above : found.above);
    }
    exec.memory.store(counts + thread, count);
  });
  exec.barrier();
  join_in_shared(exec, counts, kThreads);
  exec.run([&](int thread, RankedThread&) SK_INLINED {
    if (thread == 0) {
      exec.memory.store(ties + table.chunk + number, int64_t(exec.memory.load(counts)));
    }
  });
}

// How many ties there are in each chunk and before it in its pool, and how many a pool takes.
struct TieCounts {
  const int64_t *counts, *before;  // [chunks]
  const int64_t* take;             // [pools]
};

// Sums of the threads' numbers up to and with each thread, from the numbers in counts[0]; rounds go
// from one array to the other, so that no thread waits for a neighbour to have read.
template <class Exec>
SK_HD int32_t* running_sums(Exec& exec, int32_t (*counts)[kThreads]) {
  int from = 0;
  for (int width = 1; width < kThreads; width *= 2, from = 1 - from) {
    exec.run([&](int thread, RankedThread&) SK_INLINED {
      const int32_t own = exec.memory.load(counts[from] + thread);
      const int32_t left = thread < width ? 0 : exec.memory.load(counts[from] + thread - width);
      exec.memory.store(counts[1 - from] + thread, own + left);
    });
    exec.barrier();
  }
  return counts[from];
}

template <class Keys, class Exec>
SK_HD void ties_block(Exec& exec, const Ranked<Keys>& op, const RankedTable<Keys>& table,
                      const TieCounts& tie, int32_t number) {
  const RankedView<Keys> block(table, number);
  const int64_t chunk = table.chunk + number;
  const int64_t take =
      exec.memory.load(tie.take + op.pool(block.tensor())) - exec.memory.load(tie.before + chunk);
  if (take <= 0 || exec.memory.load(tie.counts + chunk) == 0) return;  // the whole block leaves
  mark(exec, op, block, op.number(exec.memory, block.tensor()));
  exec.run([&](int thread, RankedThread& state) SK_INLINED {
    int32_t count = 0;
    SK_UNROLLED
    for (int i = 0; i < kOwnWords; ++i) {
      const int w = kOwnWords * thread + i;
      state.ties[i] = 0;
      if (w * 32 < block.size) {
        state.ties[i] = marks_of(exec.memory, exec.shared.marks, w, block.size).ties;
      }
      count += popcount(state.ties[i]);
    }
    exec.memory.store(exec.shared.counts[0] + thread, count);
  });
  exec.barrier();
  const int32_t* sums = running_sums(exec, exec.shared.counts);
  exec.run([&](int thread, RankedThread& state) SK_INLINED {
    int64_t left = take - (thread == 0 ? 0 : exec.memory.load(sums + thread - 1));
    SK_UNROLLED
    for (int i = 0; i < kOwnWords; ++i) {
      uint32_t* word = block.words() + kOwnWords * thread + i;
      const uint32_t chosen = first_ones(state.ties[i], left);
      if (chosen) exec.memory.store(word, exec.memory.load(word) | chosen);
      left -= popcount(state.ties[i]);
    }
  });
}

}  // namespace sk::phases
