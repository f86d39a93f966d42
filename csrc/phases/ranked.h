// What a thread reads in the block programs of a selection: the keys of a group of elements, and
// which of them are candidates.
#pragma once

#include <cstdint>

#include "../functors/ranked.h"
#include "registers.h"
#include "table.h"

namespace sk::phases {

// The op of the tables: scores, candidates, words, and the global index of element 0.
template <class Keys>
struct Ranked {
  using Lists = StreamList<In<typename Keys::Storage>>;
  Keys keys;
  const int64_t* pools;  // prefix or threshold: [1] or [tensors]
  bool single;           // one pool
  bool inverted;         // candidates are the entries with mask bit 0

  SK_HD int64_t pool(int32_t tensor) const { return single ? 0 : tensor; }
  template <class Memory>
  SK_HD typename Keys::Key number(const Memory& memory, int32_t tensor) const {
    return typename Keys::Key(memory.load(pools + pool(tensor)));
  }
};

template <class Keys, bool kMasked>
struct Slots<Ranked<Keys>, kMasked> {
  static constexpr int kNumel = 0, kData = 1, kMask = 2, kWords = 3, kFirst = 4, kCount = 5;

  template <class Table>
  static void fill(Table& table, int row, const Segment& s) {
    const auto put = [&](int slot, const void* p) {
      table.slots[slot][row] = int64_t(reinterpret_cast<intptr_t>(p));
    };
    table.slots[kNumel][row] = s.numel;
    put(kData, s.data[0]);
    put(kMask, s.mask);
    put(kWords, s.data[1]);
    table.slots[kFirst][row] = s.first;
  }
};

template <class Keys>
using RankedTable = TableOf<Ranked<Keys>, false>;  // masks come with or without: a slot of its own
template <class Keys>
using RankedView = View<Ranked<Keys>, false>;

// V consecutive elements of a thread, read by one 16-byte access or drawn by one Philox call.
template <class Keys>
struct KeyGroup {
  using T = typename Keys::Storage;
  using Key = typename Keys::Key;
  static constexpr int V = Keys::kRandom ? 4 : 16 / int(sizeof(T));
  static constexpr int U = Keys::kRandom ? 1 : 16 / V;  // groups of a thread read together
  static constexpr int kStride = kThreads * V;
  static constexpr int kStep = kStride * U;
  static constexpr uint32_t kAll = (1u << V) - 1u;

  int at;         // first element, counted in the chunk
  uint32_t here;  // bits of the candidates
  T scores[V];
  Key keys[V];

  // kWhole: the group exists and is aligned
  template <bool kWhole, class Memory>
  SK_HD void load(const Memory& memory, const Ranked<Keys>& op, const RankedView<Keys>& block,
                  int first) {
    at = first;
    const int left = block.size - at;
    here = kWhole || left >= V ? kAll : (left <= 0 ? 0u : (1u << left) - 1u);
    if (here && block.masked()) {
      const uint32_t word = memory.load(block.mask() + (at >> 5)) ^ (op.inverted ? ~0u : 0u);
      here &= word >> (at & 31);
    }
    if constexpr (!Keys::kRandom) {
      const char* p = block.template data<In<T>>(0) + int64_t(at) * int64_t(sizeof(T));
      if constexpr (kWhole) {
        if (here) load_vector<T, V>(memory, p, scores);
      } else {
        load_elements<T, V>(memory, p, here, scores);
      }
    }
  }
  SK_HD void rank(const Ranked<Keys>& op, const RankedView<Keys>& block) {
    if constexpr (Keys::kRandom) {
      draw(block.first() + block.begin + at, round_keys(uint64_t(*op.keys.key)));
    } else {
      SK_UNROLLED
      for (int i = 0; i < V; ++i) keys[i] = op.keys(scores[i]);
    }
  }

 private:
  // the group may begin within a call's four words: they are moved into place without an index
  SK_HD void draw(int64_t index, const RoundKeys& rounds) {
    const uint64_t call = uint64_t(index) / 4;
    const int in = int(index % 4);
    uint32_t x[8] = {};
    const Words low = RandomKeys::words(call, rounds);
    SK_UNROLLED
    for (int i = 0; i < 4; ++i) x[i] = low.x[i];
    if (in != 0) {
      const Words high = RandomKeys::words(call + 1, rounds);
      SK_UNROLLED
      for (int i = 0; i < 4; ++i) x[4 + i] = high.x[i];
    }
    SK_UNROLLED
    for (int i = 0; i < 7; ++i) x[i] = in & 1 ? x[i + 1] : x[i];
    SK_UNROLLED
    for (int i = 0; i < 6; ++i) x[i] = in & 2 ? x[i + 2] : x[i];
    SK_UNROLLED
    for (int i = 0; i < 4; ++i) keys[i] = x[i];
  }
};

// f(group) for the groups of one thread in steps [first, end) of the chunk; the loads of a step
// come first, to be in flight together. Groups without a candidate have no keys.
template <bool kWhole, class Keys, class Memory, class F>
SK_HD void group_steps(const Memory& memory, const Ranked<Keys>& op, const RankedView<Keys>& block,
                       int thread, int first, int end, const F& f) {
  using Group = KeyGroup<Keys>;
  SK_UNROLL(1)
  for (; first < end; first += Group::kStep) {
    Group groups[Group::U];
    SK_UNROLLED
    for (int u = 0; u < Group::U; ++u) {
      groups[u].template load<kWhole>(memory, op, block,
                                      first + u * Group::kStride + thread * Group::V);
    }
    SK_UNROLLED
    for (int u = 0; u < Group::U; ++u) {
      if (groups[u].at >= block.size) continue;
      if (groups[u].here) groups[u].rank(op, block);
      f(groups[u]);
    }
  }
}

template <class Keys, class Memory, class F>
SK_HD void each_group(const Memory& memory, const Ranked<Keys>& op, const RankedView<Keys>& block,
                      int thread, const F& f) {
  using Group = KeyGroup<Keys>;
  int whole = 0;
  if constexpr (!Keys::kRandom) {
    if (block.template aligned<Group::V>()) whole = block.size / Group::kStep * Group::kStep;
  }
  group_steps<true>(memory, op, block, thread, 0, whole, f);
  group_steps<false>(memory, op, block, thread, whole, block.size, f);
}

}  // namespace sk::phases
