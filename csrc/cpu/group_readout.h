// The readout of prox_group's tiles on the CPU: factors to the entries of their groups, theta to
// memory, and what it comes to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../functors/prox_group.h"
#include "block.h"
#include "join_groups.h"

namespace sk::cpu {

// What a part of the call found.
struct Found {
  int64_t live = 0, groups = 0;
  double norms = 0, entries = 0;  // of the value: sum threshold (norm - threshold), sum |theta|

  void add(const Found& o) {
    live += o.live;
    groups += o.groups;
    norms += o.norms;
    entries += o.entries;
  }
};

// Live entries and magnitudes of one block after the other, by lanes.
template <class O>
struct Tally {
  using V = Vector<O, kShort>;
  using B = Vector<Bits<O>, kShort>;
  static constexpr Bits<O> kMagnitude = std::numeric_limits<Bits<O>>::max();  // all but the sign
  static constexpr int kBlocks = int(kTogether / kBlock);  // a lane adds so many in its own type

  V entries{};
  B live{};
  int blocks = 0;

  SK_HD void add(const O* theta) {
    V moved;
    std::memcpy(&moved, theta, sizeof(moved));
    const B magnitude = B(moved) & kMagnitude;
    live -= magnitude != 0;  // true is -1
    entries += V(magnitude);
  }
  SK_HD void end_block(Found& found) {
    if (++blocks == kBlocks) flush(found);
  }
  SK_HD void flush(Found& found) {
    int64_t count = 0;
    for (int i = 0; i < kShort; ++i) count += live[i];
    found.live += count;
    found.entries += double(tree_sum<O, kShort>(entries));
    entries = V{};
    live = B{};
    blocks = 0;
  }
};

// The lines that come after a block, while the caches would idle: half of them in each of two
// passes.
template <class O>
SK_HD void fetch_ahead(const O* next, int half) {
  constexpr int kHalf = int(kBlock * sizeof(O) / 2);
  const char* p = reinterpret_cast<const char*>(next) + half * kHalf;
  for (int i = 0; i < kHalf; i += int(kStreamAlign)) __builtin_prefetch(p + i, 0, 2);
}

constexpr int64_t kPeriod = 8;       // groups that are spread at a time
constexpr int64_t kMostSpread = 64;  // entries of their groups

// Which of the factors of kPeriod groups the entries of these groups take.
struct Periods {
  alignas(kStreamAlign) int32_t of[kMostSpread * kPeriod];
  int64_t entries = 0;  // of the groups that this is for

  const int32_t* for_groups(int64_t width) {
    if (entries != width) {
      for (int64_t i = 0; i < width * kPeriod; ++i) of[i] = int32_t(i / width);
      entries = width;
    }
    return of;
  }
};

// factors[g] to `width` places each. It reads and writes whole periods or lines, further than
// `count` groups.
template <class O>
SK_HD void spread(const O* factors, int64_t count, int64_t width, Periods& periods, O* out) {
  if (std::is_same_v<O, float> && width <= kMostSpread) {
    const int32_t* which = periods.for_groups(width);
    for (int64_t g = 0; g < count; g += kPeriod) {
      Vector<O, kPeriod> own;
      std::memcpy(&own, factors + g, sizeof(own));
      for (int64_t i = 0; i < width; ++i, out += kPeriod) {
        Vector<Bits<O>, kPeriod> from;
        std::memcpy(&from, which + i * kPeriod, sizeof(from));
        const Vector<O, kPeriod> entries = __builtin_shuffle(own, from);
        std::memcpy(out, &entries, sizeof(entries));
      }
    }
    return;
  }
  constexpr int64_t kWide = int64_t(kStreamAlign / sizeof(O));
  for (int64_t g = 0; g < count; ++g, out += width) {
    const O factor = factors[g];
    for (int64_t i = 0; i < width; i += kWide) {
#pragma omp simd
      for (int64_t j = 0; j < kWide; ++j) out[i + j] = factor;
    }
  }
}

// theta of n <= kBlock consecutive entries, and +0.0 up to a whole vector; kShared: all have the
// first factor, which is not 0
template <bool kShared, class Op, class O>
SK_HD void read_out(Op op, const O* duals, const O* factors, int64_t n, O* theta, Tally<O>& tally) {
  const O shared = factors[0];
  for (; n >= kShort; n -= kShort, duals += kShort, theta += kShort) {
#pragma omp simd
    for (int j = 0; j < kShort; ++j) {
      theta[j] =
          kShared ? op.theta(duals[j], shared) : op.readout(duals[j], factors[kShared ? 0 : j]);
    }
    tally.add(theta);
    if (!kShared) factors += kShort;
  }
  if (n == 0) return;
  alignas(kStreamAlign) O last[kShort] = {}, own[kShort] = {};  // dead groups fill the vector
  for (int64_t j = 0; j < n; ++j) {
    last[j] = duals[j];
    own[j] = factors[kShared ? 0 : j];
  }
#pragma omp simd
  for (int j = 0; j < kShort; ++j) theta[j] = op.readout(last[j], own[j]);
  tally.add(theta);
}

// Consecutive entries of one row to memory, through a buffer in L1 so that they can be streamed.
template <bool kShared, class Op, class T, class O>
SK_HD void write_entries(const Op& op, const O* duals, const O* factors, int64_t n, const O* next,
                         T* params, StreamCopy stream, Tally<O>& tally, Found& found) {
  alignas(kStreamAlign) O theta[kBlock];
  alignas(kStreamAlign) T narrow[std::is_same_v<T, O> ? 1 : kBlock];
  const bool dead = kShared && factors[0] == O(0);
  if (dead) std::fill(theta, theta + kBlock, O(0));
  const auto past_line = int64_t(reinterpret_cast<uintptr_t>(params) % kStreamAlign / sizeof(T));
  // the first block ends where a cache line does
  int64_t size = past_line ? int64_t(kStreamAlign / sizeof(T)) - past_line : kBlock;
  for (int64_t first = 0; first < n; first += size, size = kBlock) {
    if (size > n - first) size = n - first;
    const O* factor = kShared ? factors : factors + first;
    fetch_ahead(next + first, 1);
    if (!dead) {
      read_out<kShared>(op, duals + first, factor, size, theta, tally);
      tally.end_block(found);
    }
    const T* out;
    if constexpr (std::is_same_v<T, O>) {
      out = theta;
    } else {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) narrow[i] = store<T>(theta[i]);
      out = narrow;
    }
    // std::copy: the compiler puts a slow string instruction for a memcpy of this size
    constexpr int64_t kLineEntries = int64_t(kStreamAlign / sizeof(T));
    const int64_t whole =
        stream && aligned(params + first) ? size / kLineEntries * kLineEntries : 0;
    if (whole > 0) stream(params + first, out, size_t(whole) * sizeof(T));
    std::copy(out + whole, out + size, params + first + whole);
  }
}

}  // namespace sk::cpu
