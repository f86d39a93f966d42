// prox_group in the sanitized harness: groups of every size, compared with a loop over the entries.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "harness_groups.h"
#include "harness_lists.h"

namespace sk::harness {

// Columns, height and width of the tiles of the lists' tensors: rows, tiles with edges, one group.
using Cut = std::array<int64_t, 3>;
inline const std::vector<std::vector<Cut>> kCuts{
    {{1, 1, 1}, {1, 1, 1}, {7, 1, 7}, {255, 1, 255}, {256, 1, 64}, {65537, 1, 65537}},
    {{5, 2, 3}, {1, 4, 1}, {7, 4, 3}, {255, 4, 7}, {256, 16, 16}, {65537, 1, 3000}},
    {{9, 1, 9}, {1, 9, 1}, {1, 7, 1}, {3, 21845, 2}, {4, 9999, 4}, {65537, 1, 9}}};

// Writes what a group becomes, and adds to live, groups and value.
template <class T>
void prox_group_by_entries(const ProxGroup<float>& op, const Tile& tile, int64_t cols,
                           const float* duals, float threshold, double lam, double delta, T* params,
                           uint8_t& alive, int64_t& live, int64_t& groups, double& value) {
  const auto place = [&](int64_t i) {
    return (tile.row + i / tile.width) * cols + tile.col + i % tile.width;
  };
  double total = 0;
  for (int64_t begin = 0; begin < tile.entries(); begin += kChunkSize) {
    std::vector<float> lanes(kLanes);
    const int64_t end = std::min(tile.entries(), begin + kChunkSize);
    for (int64_t i = begin; i < end; ++i) lanes[size_t(i % kLanes)] += op.square(duals[place(i)]);
    total += double(join_lanes(lanes.data()));
  }
  const float norm = float(std::sqrt(total)), factor = op.factor(norm, threshold);
  alive = factor != 0.0f;
  groups += alive;
  value += delta * op.value(norm, threshold, factor);
  for (int64_t i = 0; i < tile.entries(); ++i) {
    const float theta = op.readout(duals[place(i)], factor);
    params[place(i)] = store<T>(theta);
    live += theta != 0.0f;
    value += lam * double(abs(theta));
  }
}

template <class T>
void prox_groups(int shift, std::mt19937& random) {
  const double lam = 0.1, delta = 1.5;
  const auto op = prox_group_functor<float>(lam, delta, shift != 0);
  for (const auto& cuts : kCuts) {
    List<float> duals(shift ? 4 : 0, random);
    List<T> params(shift, random), wanted = params;
    const size_t count = list_sizes.size();
    std::vector<float> thresholds;
    std::vector<std::vector<uint8_t>> alive, flags;
    std::vector<int64_t> live(count), groups(count), wanted_live(count), wanted_groups(count);
    std::vector<double> value(count), wanted_value(count);
    Run run = run_of(nullptr, params, duals);
    for (size_t t = 0; t < count; ++t) {
      const int64_t all = std::max(list_sizes[t], int64_t(1));  // of many tensors each is a group
      const auto [cols, height, width] = many_tensors() ? Cut{all, 1, all} : cuts[t];
      const Tiling tiling = make_tiling(list_sizes[t], cols, height, width);
      alive.emplace_back(size_t(tiling.groups()), uint8_t(9));
      flags.emplace_back(alive[t]);
      for (int kind = 0; kind < 4; ++kind) {
        thresholds.push_back(0.9f * std::sqrt(float(height * width)) / float(1 + kind));
      }
      for (int64_t g = 0; g < tiling.groups(); ++g) {
        const Tile tile = tiling.tile(g);
        prox_group_by_entries(
            op, tile, tiling.cols, duals.data(t), thresholds[4 * t + size_t(tile.kind)], lam, delta,
            wanted.data(t), flags[t][size_t(g)], wanted_live[t], wanted_groups[t], wanted_value[t]);
      }
      Segment& s = run.segments[t];
      s.data[2] = alive[t].data();
      s.cols = cols;
      s.height = height;
      s.width = width;
    }
    prox_group(run, name_of<T>(), thresholds.data(), lam, delta, shift != 0,
               {live.data(), groups.data(), value.data()});
    bool close = true;  // sums of floats of one sign, at most 64 roundings each
    for (size_t t = 0; t < count; ++t) {
      close &= std::fabs(value[t] - wanted_value[t]) <= 64 * 0x1p-24 * wanted_value[t];
    }
    expect(params.memory == wanted.memory && alive == flags && live == wanted_live &&
               groups == wanted_groups && close,
           "prox_group " + name_of<T>());
  }
}

}  // namespace sk::harness
