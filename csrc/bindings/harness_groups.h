// prox_group in the harness: the launches of csrc/cuda/prox_group.cu.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../phases/prox_blocks.h"
#include "harness_ops.h"

namespace sk::harness {

// The ranges of a report are those of one launch after the other.
struct ProxResults {
  int64_t *live, *groups;  // [tensors], zeroed
  double* value;           // [tensors]
};

template <class T>
Report prox_lists(const phases::ProxLists<T>& op, const Run& run, const ProxResults& results) {
  using Lists = phases::ProxLists<T>;
  using phases::ProxShared, phases::ProxThread, phases::ProxTable;
  const ChunkPlan plan = phases::prox_plan(run.segments);
  const auto tensors = int64_t(run.segments.size());
  std::vector<double> sums(size_t(plan.chunks()), std::nan("")), values(sums);
  const phases::ProxOutputs out{sums.data(), values.data(), results.live, results.groups};
  const auto shared = std::make_unique<ProxShared>();
  std::vector<ProxThread> states(phases::kThreads);
  const phases::ProxSizes sizes(run.segments);
  Report report;
  // every launch has a ledger of its own: it may read what the one before wrote
  const auto launch = [&](const char* kernel, bool wanted, const auto& program) {
    if (!wanted) return;
    Ledger ledger;
    for (const Segment& s : run.segments) {
      register_streams(ledger, s, run.kind(), typename Lists::Lists{});
      const int64_t groups = make_tiling(s.numel, s.cols, s.height, s.width).groups();
      if (s.data[2]) ledger.add(s.data[2], groups, run.kind());
    }
    ledger.add(shared.get(), sizeof(*shared), Kind::kShared);
    ledger.add(op.thresholds, 16 * tensors);
    ledger.add(sums.data(), plan.chunks() * 8);
    ledger.add(values.data(), plan.chunks() * 8);
    ledger.add(results.live, tensors * 8);
    ledger.add(results.groups, tensors * 8);
    ledger.seal();
    const Report one = each_block<Lists, false>(
        run, plan, ledger,
        [&](const ProxTable<T>& table, int32_t number) {
          HostBlock<ProxShared, ProxThread> block{*shared, states, {&ledger}};
          program(block, table, number);
        },
        kernel);
    report.launches += one.launches;
    report.blocks += one.blocks;
    report.ranges.insert(report.ranges.end(), one.ranges.begin(), one.ranges.end());
  };
  launch("prox_small_kernel", sizes.small,
         [&](auto& block, const ProxTable<T>& table, int32_t number) {
           phases::prox_small_block(block, op, table, out, number);
         });
  launch("prox_group_kernel", sizes.single,
         [&](auto& block, const ProxTable<T>& table, int32_t number) {
           phases::prox_group_block(block, op, table, out, number);
         });
  launch("prox_large_kernel", sizes.large,
         [&](auto& block, const ProxTable<T>& table, int32_t number) {
           phases::prox_large_block(block, op, table, out, number);
         });
  phases::for_each_table<Lists, false>(run.segments, plan, [&](const ProxTable<T>& table) {
    ++report.launches;
    for (int32_t row = 0; row < table.tensors; ++row) {
      finish("prox_value_kernel", values.data(), plan.chunks(), [&](Ledger& totals, auto& exec) {
        totals.add(results.value, tensors * 8);
        totals.seal();
        phases::prox_value_block<T>(exec, table, values.data(), results.value, row);
      });
    }
  });
  return report;
}

inline Report prox_group(const Run& run, const std::string& dtype, const float* thresholds,
                         double lam, double delta, bool nonnegative, const ProxResults& results) {
  return dispatch_dtype(dtype, [&]<class T>() {
    const phases::ProxLists<T> op{prox_group_functor<float>(lam, delta, nonnegative), thresholds,
                                  lam, delta};
    return prox_lists(op, run, results);
  });
}

}  // namespace sk::harness
