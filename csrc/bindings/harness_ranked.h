// The ops on masks and scores of the harness: the block programs of csrc/phases/topk.h, and the
// elementwise ops that count, apply and choose bits.
#pragma once

#include <cstdint>
#include <string>

#include "../phases/mask_nm.h"
#include "../phases/topk.h"
#include "harness_ops.h"

namespace sk::harness {

using phases::HistogramShared;
using phases::MarksShared;
using phases::Ranked;
using phases::RankedTable;
using phases::RankedThread;
using phases::TieCounts;

inline Report mask_apply(const Run& run, int bytes) {
  if (bytes == 2) return for_each(MaskApply<uint16_t>{}, run);
  if (bytes == 4) return for_each(MaskApply<uint32_t>{}, run);
  if (bytes == 8) return for_each(MaskApply<uint64_t>{}, run);
  throw std::invalid_argument("bytes must be 2, 4 or 8");
}

// What a selection ranks by, and the numbers of its pools.
struct Selection {
  std::string dtype, kind;
  const int64_t* key;    // kind random
  const int64_t* pools;  // prefix or threshold
  bool single, inverted;

  // f(keys)
  template <class F>
  auto dispatch(const F& f) const {
    if (kind == "random") return f(RandomKeys{key});
    return dispatch_dtype(dtype, [&]<class T>() { return f(score_keys<T>(kind == "abs")); });
  }
};

inline Report mask_nm(const Run& run, const Selection& selection, int64_t n, int64_t m,
                      bool along_rows) {
  return selection.dispatch([&]<class Keys>(const Keys& keys) {
    MaskNm<Keys> op;
    op.keys = keys;
    op.groups = {n, m, along_rows};
    return for_each(op, run);
  });
}

// Calls block(exec, op, table, number) for every block of a selection; add(ledger, plan, pools)
// registers what the op has besides its lists.
template <class Shared, class Add, class Block>
Report each_ranked(const char* kernel, const Run& run, const Selection& selection, const Add& add,
                   const Block& block) {
  return selection.dispatch([&]<class Keys>(const Keys& keys) {
    const Ranked<Keys> op{keys, selection.pools, selection.single, selection.inverted};
    const ChunkPlan plan(numels_of(run.segments));
    const int64_t pools = op.single ? 1 : int64_t(run.segments.size());
    const auto shared = std::make_unique<Shared>();
    Ledger ledger;
    for (const Segment& s : run.segments) {
      if constexpr (!Keys::kRandom) {
        ledger.add(s.data[0], s.numel * int64_t(sizeof(typename Keys::Storage)), run.kind());
      }
      if (s.data[1]) ledger.add(s.data[1], words_of(s.numel) * 4, run.kind());
      if (s.mask) ledger.add(s.mask, words_of(s.numel) * 4, run.kind());
    }
    ledger.add(shared.get(), sizeof(Shared), Kind::kShared);
    ledger.add(op.pools, pools * 8);
    add(ledger, plan, pools);
    ledger.seal();
    std::vector<RankedThread> states(phases::kThreads);
    return each_block<Ranked<Keys>, false>(
        run, plan, ledger,
        [&](const RankedTable<Keys>& table, int32_t number) {
          HostBlock<Shared, RankedThread> exec{*shared, states, {&ledger}};
          block(exec, op, table, number);
        },
        kernel);
  });
}

inline Report topk_histogram(const Run& run, const Selection& selection, int shift, int bits,
                             int64_t* counts) {
  const Digit digit{shift, bits};
  return each_ranked<HistogramShared>(
      "histogram_kernel", run, selection,
      [&](Ledger& ledger, const ChunkPlan&, int64_t pools) {
        ledger.add(counts, (pools << bits) * 8);
      },
      [&](auto& exec, const auto& op, const auto& table, int32_t number) {
        phases::histogram_block(exec, op, digit, table, counts, number);
      });
}

inline Report topk_write(const Run& run, const Selection& selection, bool accumulate,
                         int64_t* ties) {
  return each_ranked<MarksShared>(
      "write_kernel", run, selection,
      [&](Ledger& ledger, const ChunkPlan& plan, int64_t) { ledger.add(ties, plan.chunks() * 8); },
      [&](auto& exec, const auto& op, const auto& table, int32_t number) {
        phases::write_block(exec, op, table, accumulate, ties, number);
      });
}

inline Report topk_ties(const Run& run, const Selection& selection, const TieCounts& tie) {
  return each_ranked<MarksShared>(
      "ties_kernel", run, selection,
      [&](Ledger& ledger, const ChunkPlan& plan, int64_t pools) {
        ledger.add(tie.counts, plan.chunks() * 8);
        ledger.add(tie.before, plan.chunks() * 8);
        ledger.add(tie.take, pools * 8);
      },
      [&](auto& exec, const auto& op, const auto& table, int32_t number) {
        phases::ties_block(exec, op, table, tie, number);
      });
}

}  // namespace sk::harness
