// Runs the CUDA kernels' block programs on host memory: every launch, block, phase and thread.
#pragma once

#include <cxxabi.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <typeinfo>
#include <vector>

#include "../phases/for_each.h"
#include "../phases/gram.h"
#include "host_block.h"

namespace sk::harness {

using phases::Outputs;
using phases::TableOf;
using phases::Total;

struct Run {
  std::vector<Segment> segments;
  bool backed = true;           // false: the segments' addresses have no memory behind them
  std::vector<int64_t> chunks;  // which chunks to run; empty: all

  Kind kind() const { return backed ? Kind::kGlobal : Kind::kVirtual; }
};

struct Report {
  int64_t launches = 0;
  int64_t blocks = 0;
  std::vector<Range> ranges;
};

// How a kernel's program was run so far; tests/native/test_sanitized.py wants all of it of all.
struct Walk {
  bool vector = false, tail = false, misaligned = false, tables = false;
};
inline std::map<std::string, Walk> walks;

// The op that walks the tables, behind the kernel's name where it has one of its own.
template <class Op>
std::string kernel_name(const char* kernel, bool masked) {
  char* demangled = abi::__cxa_demangle(typeid(Op).name(), nullptr, nullptr, nullptr);
  const std::string op = demangled;
  std::free(demangled);
  const std::string own = kernel ? std::string(kernel) + " " : "";
  return own + op + (masked ? " masked" : "");
}
inline void walked(const std::string& kernel, const Run& run, const Report& report, size_t widest) {
  Walk& walk = walks[kernel];
  const auto off = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 != 0; };
  walk.vector |= widest >= 8;
  walk.tables |= report.launches > 1;
  for (const Segment& s : run.segments) {
    if (s.numel == 0) continue;
    walk.tail |= s.numel % kChunkSize != 0;
    walk.misaligned |= off(s.data[0]) || off(s.data[1]) || off(s.input) || off(s.mask);
  }
}

template <class... S>
void register_streams(Ledger& ledger, [[maybe_unused]] const Segment& s, [[maybe_unused]] Kind kind,
                      StreamList<S...>) {
  [[maybe_unused]] int i = 0;
  (ledger.add(s.data[i++], s.numel * int64_t(sizeof(typename S::Storage)), kind), ...);
}

template <class Op, bool kMasked>
void register_segment(Ledger& ledger, const Segment& s, Kind kind) {
  using Traits [[maybe_unused]] = phases::Traits<Op>;
  register_streams(ledger, s, kind, typename Op::Lists{});
  if constexpr (kMasked) ledger.add(s.mask, words_of(s.numel) * 4, kind);
  if constexpr (backup_of<Op>() != Backup::kNone) {
    using Storage = typename Op::Lists::template At<0>::Storage;
    const int64_t entries = Traits::kPacked ? s.capacity : s.numel;
    if (s.backup) ledger.add(s.backup, entries * int64_t(sizeof(Storage)), kind);
  }
  // never virtual: the kernel computes addresses from what it reads there
  if constexpr (Traits::kPacked) ledger.add(s.ranks, tiles_of(s.numel) * 8);
  if constexpr (Traits::kInput) ledger.add(s.input, s.input_numel * Traits::kInputBytes, kind);
}

// Calls block(table, number) for the blocks of every launch that `run` asks for.
template <class Op, bool kMasked, class F>
Report each_block(const Run& run, const ChunkPlan& plan, Ledger& ledger, const F& block,
                  const char* kernel = nullptr) {
  Report report;
  const std::set<int64_t> wanted(run.chunks.begin(), run.chunks.end());
  phases::for_each_table<Op, kMasked>(run.segments, plan, [&](const TableOf<Op, kMasked>& table) {
    ++report.launches;
    const auto one = [&](int64_t chunk) {
      ++report.blocks;
      ledger.next_block();
      block(table, int32_t(chunk - table.chunk));
    };
    if (wanted.empty()) {
      for (int32_t b = 0; b < table.blocks(); ++b) one(table.chunk + b);
    } else {
      auto at = wanted.lower_bound(table.chunk);
      for (; at != wanted.end() && *at < table.chunk + table.blocks(); ++at) one(*at);
    }
  });
  report.ranges = ledger.ranges();
  walked(kernel_name<Op>(kernel, kMasked), run, report, ledger.widest());
  return report;
}

template <class Op, bool kMasked>
Report for_each_masked(const Op& op, const Run& run, double* partials, int64_t* live) {
  const ChunkPlan plan(numels_of(run.segments));
  Ledger ledger;
  const auto shared = std::make_unique<phases::Shared<Op>>();
  for (const Segment& s : run.segments) register_segment<Op, kMasked>(ledger, s, run.kind());
  ledger.add(shared.get(), sizeof(*shared), Kind::kShared);
  if (partials) ledger.add(partials, plan.chunks() * 8);
  if (live) ledger.add(live, int64_t(run.segments.size()) * 8);
  ledger.seal();
  std::vector<phases::Thread<Op>> states(phases::kThreads);
  return each_block<Op, kMasked>(
      run, plan, ledger, [&](const TableOf<Op, kMasked>& table, int32_t number) {
        HostBlock<phases::Shared<Op>, phases::Thread<Op>> block{*shared, states, {&ledger}};
        phases::for_each_block<kMasked>(block, op, table, Outputs{partials, live}, number);
      });
}

template <class Op>
Report for_each(const Op& op, const Run& run, double* partials = nullptr, int64_t* live = nullptr) {
  if constexpr (!phases::Traits<Op>::kInput) {
    if (phases::kMaskAlways<Op> || phases::any_masked(run.segments)) {
      return for_each_masked<Op, true>(op, run, partials, live);
    }
  }
  if constexpr (phases::kMaskAlways<Op>) {
    return {};
  } else {
    return for_each_masked<Op, false>(op, run, partials, live);
  }
}

// An op with a backup, whole or packed.
template <class Op>
Report for_each_backed(const Op& op, const Run& run) {
  if (phases::any_packed(run.segments)) return for_each(phases::packed(op), run);
  return for_each(op, run);
}

template <class F>
void finish(const char* kernel, const double* partials, int64_t count, const F& program) {
  walks[kernel];
  Ledger ledger;
  phases::FinishShared shared;
  std::vector<phases::FinishThread> states(phases::kThreads);
  ledger.add(&shared, sizeof(shared), Kind::kShared);
  ledger.add(partials, count * 8);
  HostBlock<phases::FinishShared, phases::FinishThread> block{shared, states, {&ledger}};
  program(ledger, block);
}

// The kernels of a sum: the total as a double, and its root as a float.
struct Sum {
  double total = 0;
  float root = 0;
  Report report;
};

template <class Op>
Sum for_each_sum(const Op& op, const Run& run) {
  const ChunkPlan plan(numels_of(run.segments));
  std::vector<double> partials(size_t(plan.chunks()), std::nan(""));
  Sum sum;
  sum.report = for_each(op, run, partials.data());
  finish("finish_sum_kernel", partials.data(), plan.chunks(), [&](Ledger& ledger, auto& block) {
    ledger.add(&sum.total, sizeof(sum.total));
    ledger.add(&sum.root, sizeof(sum.root));
    ledger.seal();
    phases::finish_block(block, partials.data(), plan.chunks(),
                         Total{&sum.total, nullptr, &sum.root});
  });
  return sum;
}

template <bool kMasked, class Numbers>
Report gram_masked(const phases::Gram<Numbers>& op, const Run& run, double* gram) {
  using Op = phases::Gram<Numbers>;
  const ChunkPlan plan(numels_of(run.segments));
  const int64_t pairs = int64_t(op.stream.q) * (op.stream.q + 1) / 2;
  std::vector<double> sums(size_t(pairs * plan.chunks()), std::nan(""));
  Ledger ledger;
  const auto shared = std::make_unique<phases::GramShared<Numbers>>();
  for (const Segment& s : run.segments) register_segment<Op, kMasked>(ledger, s, run.kind());
  ledger.add(shared.get(), sizeof(*shared), Kind::kShared);
  ledger.add(sums.data(), int64_t(sums.size()) * 8);
  ledger.seal();
  std::vector<phases::GramThread> states(phases::kThreads);
  const Report report = each_block<Op, kMasked>(
      run, plan, ledger,
      [&](const TableOf<Op, kMasked>& table, int32_t number) {
        for (int64_t pair = 0; pair < pairs; ++pair) {
          ledger.next_block();
          HostBlock<phases::GramShared<Numbers>, phases::GramThread> block{
              *shared, states, {&ledger}};
          phases::gram_block<kMasked>(block, op, table, sums.data(), plan.chunks(), pair, number);
        }
      },
      "gram_kernel");
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const auto* own = sums.data() + pair * plan.chunks();
    finish("finish_gram_kernel", own, plan.chunks(), [&](Ledger& totals, auto& block) {
      totals.add(gram, int64_t(op.stream.q) * op.stream.q * 8);
      totals.seal();
      phases::finish_gram(block, sums.data(), plan.chunks(), op.stream.q, gram, pair);
    });
  }
  return report;
}

template <class Numbers>
Report gram(const Directions<float>& stream, const Run& run, double* out) {
  const phases::Gram<Numbers> op{stream};
  return phases::any_masked(run.segments) ? gram_masked<true>(op, run, out)
                                          : gram_masked<false>(op, run, out);
}

}  // namespace sk::harness
