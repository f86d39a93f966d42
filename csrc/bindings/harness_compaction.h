// The entries of a support in the harness: the block programs of csrc/phases/compaction.h and
// csrc/phases/mask_count.h.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "../phases/compaction.h"
#include "../phases/mask_count.h"
#include "harness.h"

namespace sk::harness {

inline Report live_mask(const Run& run, double lam, bool nonnegative) {
  return for_each(sk::live_mask<float>(lam, nonnegative), run);
}

// Runs block(exec, table, number) for every block of an op of tables of its own; add(ledger, s)
// registers what a segment has.
template <class Op, class Shared, class State, class Add, class Block>
Report each_entries(const char* kernel, const Run& run, const Add& add, const Block& block) {
  const ChunkPlan plan(numels_of(run.segments));
  const auto shared = std::make_unique<Shared>();
  Ledger ledger;
  for (const Segment& s : run.segments) add(ledger, s);
  ledger.add(shared.get(), sizeof(Shared), Kind::kShared);
  ledger.seal();
  std::vector<State> states(phases::kThreads);
  return each_block<Op, false>(
      run, plan, ledger,
      [&](const auto& table, int32_t number) {
        HostBlock<Shared, State> exec{*shared, states, {&ledger}};
        block(exec, table, number);
      },
      kernel);
}

// Of a segment: 32 entries for every word of the mask, and the counts as data[0].
inline Report mask_count(const Run& run) {
  return each_entries<phases::TileCounts, phases::CountShared, phases::CountThread>(
      "count_kernel", run,
      [&](Ledger& ledger, const Segment& s) {
        ledger.add(s.mask, words_of(s.numel) * 4, run.kind());
        ledger.add(s.data[0], tiles_of(s.numel) * 8, run.kind());
      },
      [](auto& exec, const auto& table, int32_t number) {
        phases::count_block(exec, table, number);
      });
}

// Of a segment: the mask and its ranks, the index as data[0] with its capacity.
inline Report mask_index(const Run& run) {
  return each_entries<phases::MaskIndex, phases::Places, phases::EntryThread>(
      "index_kernel", run,
      [&](Ledger& ledger, const Segment& s) {
        ledger.add(s.mask, words_of(s.numel) * 4, run.kind());
        ledger.add(s.data[0], s.capacity * 4, run.kind());
        ledger.add(s.ranks, tiles_of(s.numel) * 8);  // never virtual, as in harness.h
      },
      [](auto& exec, const auto& table, int32_t number) {
        phases::index_block(exec, table, number);
      });
}

// Of a segment: numel values as data[1], input_numel runs of cols elements as data[0], and the
// index as input.
template <class T, bool kScatter>
Report move_entries(const Run& run) {
  using Op = phases::MoveEntries<T, kScatter>;
  return each_entries<Op, phases::EntryThread, phases::EntryThread>(
      "move_kernel", run,
      [&](Ledger& ledger, const Segment& s) {
        constexpr int64_t kBytes = sizeof(T);
        ledger.add(s.data[0], s.input_numel * s.cols * kBytes, run.kind());
        ledger.add(s.data[1], s.numel * kBytes, run.kind());
        ledger.add(s.input, s.numel / s.cols * 4);  // addresses are computed from it
      },
      [](auto& exec, const auto& table, int32_t number) {
        phases::move_block<Op>(exec, table, number);
      });
}

inline Report move_entries(const Run& run, int bytes, bool scatter) {
  if (bytes == 2) {
    return scatter ? move_entries<uint16_t, true>(run) : move_entries<uint16_t, false>(run);
  }
  if (bytes == 4) {
    return scatter ? move_entries<uint32_t, true>(run) : move_entries<uint32_t, false>(run);
  }
  if (bytes == 8) {
    return scatter ? move_entries<uint64_t, true>(run) : move_entries<uint64_t, false>(run);
  }
  throw std::invalid_argument("bytes must be 2, 4 or 8");
}

}  // namespace sk::harness
