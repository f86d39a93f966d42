// prox_group: the readout of duals whose regulariser couples the entries of a group.
//   s      = shrink(dual, lam)
//   norm   = |s_g|, squares added in the order of core/reduce.h over the group's own entries
//   factor = 1 - threshold / norm where not norm <= threshold, else 0: the group is dead
//   theta  = delta (s factor), +0.0 in dead groups
//   value  = delta sum_g threshold (norm - threshold) + lam sum |theta|, over live groups
// A tensor is a matrix rows x cols, row-major, cut into tiles from the top left corner; those at
// the far edges may be smaller. A tile is a group, its entries row-major. Source: Bungert, Roith,
// Tenbrinck, Burger, arXiv 2105.04319, section on regularisers; Yuan and Lin 2006; Simon et al.
// 2013. Symbols: dual = v, theta = param, threshold = lam_groups sqrt(n_g). Lists: params[T]
// mutated, duals[T] const (float, double for double), alive[T] uint8 per group. Units: lam >= 0,
// delta > 0. One rounding on store. NaN makes its group NaN. Twins:
// sparse_kernels/reference/prox_group.py, sparse_kernels/triton/prox_group.py.
#pragma once

#include <limits>

#include "bregman_step.h"

namespace sk {

struct Tile {
  int64_t row, col;  // of its first entry
  int64_t height, width;
  int kind;  // 0 whole, 1 narrow, 2 low, 3 both: column of the thresholds

  SK_HD int64_t entries() const { return height * width; }
};

struct Tiling {
  int64_t rows, cols, height, width;
  int narrow = 1;  // kind of the tiles that are cut on the right

  SK_HD int64_t across() const { return (cols + width - 1) / width; }
  SK_HD int64_t groups() const { return (rows + height - 1) / height * across(); }
  SK_HD int64_t entries() const { return height * width; }  // of a whole tile
  SK_HD Tile tile(int64_t group) const {
    const int64_t band = group / across();
    Tile t{band * height, (group - band * across()) * width, height, width, 0};
    if (t.width > cols - t.col) {
      t.width = cols - t.col;
      t.kind += narrow;
    }
    if (t.height > rows - t.row) {
      t.height = rows - t.row;
      t.kind += 2;
    }
    return t;
  }
};

// Groups without gaps become the tiles of a matrix of one row, in the same order.
SK_HD Tiling make_tiling(int64_t numel, int64_t cols, int64_t height, int64_t width) {
  const int64_t rows = numel / cols;
  if (height > rows) height = rows + 1;  // low, and small enough to be multiplied
  if (width == cols) return {1, numel, 1, height * cols, 2};
  if (height == 1 && cols % width == 0) return {1, numel, 1, width, 1};
  return {rows, cols, height, width, 1};
}

// kEntries: whether entries have a threshold of their own, or a sign that they must not have.
template <class O, bool kEntries = true>
struct ProxGroup {
  using Math = O;
  O lam, lower, delta;  // lower = -lam, or -inf where theta must not be negative

  SK_HD O shrunk(O dual) const {
    return kEntries ? shrink(dual, lower, lam) : dual + O(0);  // -0.0 becomes +0.0 either way
  }
  // 0 says that the group is dead: 1 - threshold / norm of a live one is not 0
  static SK_HD O factor(O norm, O threshold) {
    const O kept = O(1) - threshold / norm;
    return norm <= threshold ? O(0) : kept;  // NaN is alive
  }
  SK_HD O theta(O dual, O factor) const { return delta * (shrunk(dual) * factor); }  // if live
  SK_HD O readout(O dual, O factor) const {
    const O moved = theta(dual, factor);  // not inside the choice: the loop would not vectorise
    return factor != O(0) ? moved : O(0);
  }
  SK_HD O square(O dual) const {
    const O s = shrunk(dual);
    return s * s;
  }
  // of a group's part of the value, without delta
  static SK_HD double value(O norm, O threshold, O factor) {
    // choices among floats: SSE2 has none among doubles by a comparison of floats. Both are
    // chosen: the threshold of a dead group may be infinite
    const O bound = factor != O(0) ? threshold : O(0);
    const O reached = factor != O(0) ? norm : O(0);
    return double(bound) * (double(reached) - double(bound));
  }
};

template <class O, bool kEntries = true>
ProxGroup<O, kEntries> prox_group_functor(double lam, double delta, bool nonnegative) {
  const O bound = O(lam);
  return {bound, nonnegative ? -std::numeric_limits<O>::infinity() : -bound, O(delta)};
}

}  // namespace sk
