// The tiles of prox_group on the CPU: squares joined in the order of core/reduce.h, then the
// readout.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

#include "../core/segment.h"
#include "group_readout.h"

namespace sk::cpu {

constexpr int64_t kLine = 32;  // groups of any size that fill whole cache lines

// At most `groups`, and if possible such that what follows begins with a cache line.
inline int64_t whole_lines(int64_t groups) {
  return groups >= kLine ? groups / kLine * kLine : std::max<int64_t>(1, groups);
}

template <class Op>
struct ProxCall {
  Op op;
  const typename Op::Math* thresholds;  // [tensors, 4]
  StreamCopy stream;                    // null: plain stores
};

// One tensor of the call.
template <class T>
struct ProxTensor {
  using O = opmath_t<T>;
  Tiling tiling;
  T* params;
  const O* duals;
  uint8_t* alive;  // or null
  const O* thresholds;

  ProxTensor(const Segment& s, const O* all_thresholds, int64_t tensor)
      : tiling(make_tiling(s.numel, s.cols, s.height, s.width)),
        params(static_cast<T*>(s.data[0])),
        duals(static_cast<const O*>(s.data[1])),
        alive(static_cast<uint8_t*>(s.data[2])),
        thresholds(all_thresholds + 4 * tensor) {}
};

// Cache lines of numbers, with one more behind the last: loops end on whole lines.
template <class O>
struct Lines {
  static constexpr int64_t kWide = int64_t(kStreamAlign / sizeof(O));
  struct alignas(kStreamAlign) Line {
    O x[kWide];
  };
  std::vector<Line> lines;

  O* sized(int64_t n) {
    const size_t needed = size_t(n / kWide + 2);
    if (lines.size() < needed) lines.resize(needed);
    return lines.data()->x;
  }
};

template <class O>
struct ProxScratch {
  Lines<O> squares, rows, factors, norms;
  alignas(kStreamAlign) O lanes[kLanes];
  Partners<O> partners;
  Periods periods;
};

// next: of duals that are wanted afterwards
template <class Op, class O>
SK_HD void squares_of(Op op, const O* duals, int64_t n, const O* next, O* out) {
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t end = n - first < kBlock ? n : first + kBlock;
    fetch_ahead(next + first, 0);
#pragma omp simd
    for (int64_t i = first; i < end; ++i) out[i] = op.square(duals[i]);
  }
}

// Rows of `count` tiles side by side to one tile after the other. What is copied beyond the end of
// a row is overwritten by the next one.
template <class O>
SK_HD void by_tile(const O* rows, int64_t pitch, int64_t count, int64_t height, int64_t width,
                   O* out) {
  constexpr int64_t kWide = Lines<O>::kWide;
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t r = 0; r < height; ++r, out += width) {
      const O* from = rows + r * pitch + t * width;
      for (int64_t i = 0; i < width; i += kWide) std::memcpy(out + i, from + i, kStreamAlign);
    }
  }
}

// norms -> factors, in place
template <class Op, class O>
SK_HD void factors_of(const Op& op, O threshold, int64_t count, O* norms, uint8_t* alive,
                      Found& found) {
  double value = 0;
  Bits<O> groups = 0;  // as wide as what is compared
#pragma omp simd reduction(+ : value, groups)
  for (int64_t g = 0; g < count; ++g) {
    const O norm = norms[g], factor = op.factor(norm, threshold);
    value += op.value(norm, threshold, factor);
    groups += factor != O(0) ? 1 : 0;
    norms[g] = factor;
  }
  found.norms += value;
  found.groups += groups;
  for (int64_t g = 0; alive && g < count; ++g) alive[g] = norms[g] != O(0);
}

// f(entry, place, n) for the runs of consecutive entries of a tile, [begin, end) of its own
// numbering; place counts from its first entry
template <class F>
SK_HD void each_run(const Tile& tile, int64_t cols, int64_t begin, int64_t end, const F& f) {
  int64_t row = begin / tile.width, col = begin - row * tile.width;
  for (int64_t at = begin; at < end; ++row, col = 0) {
    const int64_t left = tile.width - col, n = left < end - at ? left : end - at;
    f(at, row * cols + col, n);
    at += n;
  }
}

// Sum of the squares of entries [begin, end): at most a chunk, begin a multiple of one.
template <class Op, class O>
SK_CLONES O sum_entries(Op op, const O* duals, const Tile& tile, int64_t cols, int64_t begin,
                        int64_t end, O* lanes) {
  for (int64_t i = end - begin; i < kLanes; ++i) lanes[i] = O(0);
  each_run(tile, cols, begin, end, [&](int64_t at, int64_t place, int64_t n) SK_INLINED {
    for (int64_t i = 0; i < n;) {
      O* lane = lanes + (at + i) % kLanes;
      const int64_t room = kBlock - (at + i) % kBlock, m = room < n - i ? room : n - i;
      const O* x = duals + place + i;
      const Op own = op;
      fetch_ahead(x + n, 0);
      if (at + i < begin + kLanes) {
#pragma omp simd
        for (int64_t j = 0; j < m; ++j) lane[j] = own.square(x[j]);
      } else {
#pragma omp simd
        for (int64_t j = 0; j < m; ++j) lane[j] = lane[j] + own.square(x[j]);
      }
      i += m;
    }
  });
  return join_lanes(lanes);
}

// The readout of entries [begin, end) of a tile; duals and params point to its first one.
template <class Op, class T, class O>
SK_CLONES void write_group(const Op& op, const O* duals, const Tile& tile, int64_t cols,
                           int64_t begin, int64_t end, O factor, T* params, StreamCopy stream,
                           Found& found) {
  Tally<O> tally;
  each_run(tile, cols, begin, end, [&](int64_t, int64_t place, int64_t n) SK_INLINED {
    write_entries<true>(op, duals + place, &factor, n, duals + place + n, params + place, stream,
                        tally, found);
  });
  tally.flush(found);
}

// `count` whole tiles side by side, or one that is cut, of at most kTogether entries each.
template <class Op, class T, class O>
SK_CLONES void small_groups(const ProxCall<Op>& call, const ProxTensor<T>& x, int64_t group,
                            const Tile& tile, int64_t count, ProxScratch<O>& scratch,
                            Found& found) {
  const Op& op = call.op;
  const int64_t cols = x.tiling.cols, n = tile.entries(), across = count * tile.width;
  const int64_t first = tile.row * cols + tile.col;
  const O *duals = x.duals + first, *next = duals + across;
  O* factors = scratch.norms.sized(count);
  if (count == 1 || tile.height == 1) {
    O* squares = scratch.squares.sized(count * n + kShort);
    for (int64_t r = 0; r < tile.height; ++r) {
      squares_of(op, duals + r * cols, across, next + r * cols, squares + r * across);
    }
    join_groups(squares, count, n, scratch.partners, factors);
  } else {
    const int64_t pitch = across + Lines<O>::kWide;
    O* rows = scratch.rows.sized(tile.height * pitch);
    for (int64_t r = 0; r < tile.height; ++r) {
      squares_of(op, duals + r * cols, across, next + r * cols, rows + r * pitch);
    }
    if (std::has_single_bit(uint64_t(tile.width))) {
      join_rows(rows, pitch, across, tile.height);
      join_groups(rows, count, tile.width, scratch.partners, factors);
    } else {
      O* squares = scratch.squares.sized(count * n + kShort);
      by_tile(rows, pitch, count, tile.height, tile.width, squares);
      join_groups(squares, count, n, scratch.partners, factors);
    }
  }
#pragma omp simd
  for (int64_t g = 0; g < count; ++g) factors[g] = sk::sqrt(factors[g]);
  factors_of(op, x.thresholds[tile.kind], count, factors, x.alive ? x.alive + group : nullptr,
             found);
  const O* spreads = factors;
  if (tile.width > 1) {
    O* out = scratch.factors.sized(across + kPeriod * tile.width);
    spread(factors, count, tile.width, scratch.periods, out);
    spreads = out;
  }
  Tally<O> tally;
  for (int64_t r = 0; r < tile.height; ++r) {
    write_entries<false>(op, duals + r * cols, spreads, across, next + r * cols,
                         x.params + first + r * cols, call.stream, tally, found);
  }
  tally.flush(found);
}

}  // namespace sk::cpu
