#include "../functors/prox_group.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../torch/dispatch.h"
#include "../torch/op_checks.h"
#include "groups.h"
#include "results.h"

namespace sk::cpu {

// Groups of a tensor that a task takes at a time: about a chunk.
int64_t groups_together(const Tiling& tiling) { return whole_lines(kChunkSize / tiling.entries()); }

// Groups [group, end) of a tensor whose groups have at most a chunk.
template <class Op, class T>
void span_of_groups(const ProxCall<Op>& call, const ProxTensor<T>& x, int64_t group, int64_t end,
                    ProxScratch<opmath_t<T>>& scratch, Found& found) {
  using O = opmath_t<T>;
  const Tiling& tiling = x.tiling;
  while (group < end) {
    const Tile tile = tiling.tile(group);
    const int64_t n = tile.entries(), first = tile.row * tiling.cols + tile.col;
    int64_t count = 1;
    if (n > kTogether) {
      O norm =
          sk::sqrt(sum_entries(call.op, x.duals + first, tile, tiling.cols, 0, n, scratch.lanes));
      factors_of(call.op, x.thresholds[tile.kind], 1, &norm, x.alive ? x.alive + group : nullptr,
                 found);
      write_group(call.op, x.duals + first, tile, tiling.cols, 0, n, norm, x.params + first,
                  call.stream, found);
    } else {
      if (tile.width == tiling.width) {
        // of several rows at least a block of each
        const int64_t across =
            tile.height > 1 ? std::min<int64_t>(kBlock, kMostTogether / tile.height) : 0;
        const int64_t together =
            std::max({whole_lines(kTogether / n), kLine / tile.width, across / tile.width});
        const int64_t whole = (tiling.cols - tile.col) / tile.width;
        count = std::clamp(together, int64_t(1), std::min(whole, end - group));
      }
      small_groups(call, x, group, tile, count, scratch, found);
    }
    group += count;
  }
}

// A group of more than a chunk: its chunks are summed in parallel, and read out in parallel.
template <class O>
struct LargeGroup {
  int64_t tensor, group;
  Tile tile;
  O factor;
};

template <class Op, class T>
void large_groups(const ProxCall<Op>& call, const std::vector<ProxTensor<T>>& tensors,
                  std::vector<LargeGroup<opmath_t<T>>>& groups, std::vector<Found>& found) {
  using O = opmath_t<T>;
  std::vector<int64_t> numels;
  for (const auto& g : groups) numels.push_back(g.tile.entries());
  const ChunkPlan plan(numels);
  std::vector<O> sums(size_t(plan.chunks()));
  std::vector<Found> parts(sums.size());
  const auto first_of = [&](const LargeGroup<O>& g) {
    return g.tile.row * tensors[size_t(g.tensor)].tiling.cols + g.tile.col;
  };
  for_each_chunk<ProxScratch<O>>(
      plan, numels, [&](int i, int64_t begin, int64_t end, int64_t chunk, auto& scratch) {
        const auto& x = tensors[size_t(groups[size_t(i)].tensor)];
        sums[size_t(chunk)] =
            sum_entries(call.op, x.duals + first_of(groups[size_t(i)]), groups[size_t(i)].tile,
                        x.tiling.cols, begin, end, scratch.lanes);
      });
  for (size_t i = 0; i < groups.size(); ++i) {
    auto& g = groups[i];
    const auto& x = tensors[size_t(g.tensor)];
    double total = 0;
    for (int64_t c = plan.first_chunk[i]; c < plan.first_chunk[i + 1]; ++c) {
      total += double(sums[size_t(c)]);
    }
    g.factor = O(sk::sqrt(total));
    factors_of(call.op, x.thresholds[g.tile.kind], 1, &g.factor,
               x.alive ? x.alive + g.group : nullptr, found[size_t(g.tensor)]);
  }
  struct Nothing {};
  for_each_chunk<Nothing>(
      plan, numels, [&](int i, int64_t begin, int64_t end, int64_t chunk, Nothing&) {
        const auto& g = groups[size_t(i)];
        const auto& x = tensors[size_t(g.tensor)];
        write_group(call.op, x.duals + first_of(g), g.tile, x.tiling.cols, begin, end, g.factor,
                    x.params + first_of(g), call.stream, parts[size_t(chunk)]);
        if (call.stream) stream_fence();
      });
  for (size_t i = 0; i < groups.size(); ++i) {
    for (int64_t c = plan.first_chunk[i]; c < plan.first_chunk[i + 1]; ++c) {
      found[size_t(groups[i].tensor)].add(parts[size_t(c)]);
    }
  }
}

// What every tensor holds afterwards; parts are added in an order that no thread count changes.
template <class T, class Op>
std::vector<Found> prox_lists(const ProxCall<Op>& call, const std::vector<Segment>& segments) {
  using O = opmath_t<T>;
  std::vector<ProxTensor<T>> tensors;
  std::vector<LargeGroup<O>> large;
  std::vector<int64_t> spans;  // a chunk of these for every span of groups
  for (size_t t = 0; t < segments.size(); ++t) {
    const auto& x = tensors.emplace_back(segments[t], call.thresholds, int64_t(t));
    const Tiling& tiling = x.tiling;
    const int64_t groups = tiling.groups(), together = groups_together(tiling);
    if (tiling.entries() > kChunkSize) {
      for (int64_t g = 0; g < groups; ++g) large.push_back({int64_t(t), g, tiling.tile(g), O(0)});
      spans.push_back(0);
    } else {
      const int64_t rest = std::min(groups % together * tiling.entries(), segments[t].numel);
      spans.push_back(groups / together * kChunkSize + rest);
    }
  }
  const ChunkPlan plan(spans);
  std::vector<Found> found(segments.size()), parts(size_t(plan.chunks()));
  for_each_chunk<ProxScratch<O>>(
      plan, spans, [&](int t, int64_t begin, int64_t, int64_t chunk, auto& scratch) {
        const auto& x = tensors[size_t(t)];
        const int64_t together = groups_together(x.tiling);
        const int64_t group = begin / kChunkSize * together;
        span_of_groups(call, x, group, std::min(group + together, x.tiling.groups()), scratch,
                       parts[size_t(chunk)]);
        if (call.stream) stream_fence();
      });
  for (size_t t = 0; t < segments.size(); ++t) {
    for (int64_t c = plan.first_chunk[t]; c < plan.first_chunk[t + 1]; ++c) {
      found[t].add(parts[size_t(c)]);
    }
  }
  if (!large.empty()) large_groups(call, tensors, large, found);
  return found;
}

std::tuple<Tensor, Tensor, Tensor> prox_group_cpu(const TensorList& params, const TensorList& duals,
                                                  const TensorList& alive,
                                                  const std::vector<int64_t>& cols,
                                                  const std::vector<int64_t>& heights,
                                                  const std::vector<int64_t>& widths,
                                                  Tensor thresholds, double lam, double delta,
                                                  bool nonnegative) {
  constexpr const char* kOp = "prox_group_";
  const int64_t count = int64_t(params.size());
  Tensor live = torch::stable::empty({count}, ScalarType::Long);
  Tensor groups = torch::stable::empty({count}, ScalarType::Long);
  Tensor value = torch::stable::empty({count}, ScalarType::Double);
  if (params.empty()) return {live, groups, value};
  const ScalarType dtype =
      check_prox_group(params, duals, alive, cols, heights, widths, thresholds);
  const auto segments = tiled_segments(params, duals, alive, cols, heights, widths);
  dispatch_float<true>(kOp, dtype, [&]<class T>() {
    using O = opmath_t<T>;
    static const StreamCopy stream_copy = pick_stream_copy();
    int64_t bytes = 0;
    bool own = false;  // what was just read is written: it is in the caches
    for (const Segment& s : segments) {
      bytes += s.numel * int64_t(sizeof(T) + sizeof(O));
      own |= s.data[0] == s.data[1];
    }
    const StreamCopy stream = bytes > kStreamBytes && !own ? stream_copy : nullptr;
    const auto found = dispatch_bool(lam != 0 || nonnegative, [&]<bool kEntries>() {
      const auto op = prox_group_functor<O, kEntries>(lam, delta, nonnegative);
      return prox_lists<T>(ProxCall{op, static_cast<const O*>(thresholds.data_ptr()), stream},
                           segments);
    });
    for (size_t t = 0; t < found.size(); ++t) {
      static_cast<int64_t*>(live.data_ptr())[t] = found[t].live;
      static_cast<int64_t*>(groups.data_ptr())[t] = found[t].groups;
      static_cast<double*>(value.data_ptr())[t] = delta * found[t].norms + lam * found[t].entries;
    }
  });
  return {live, groups, value};
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("prox_group_", TORCH_BOX(&prox_group_cpu));
}

}  // namespace sk::cpu
