// Tree sums of many small groups, in the order of core/reduce.h. A tree over 2,048 lanes of which
// all but the first n hold +0.0 is one over the next power of two.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/reduce.h"
#include "../core/simd_store.h"

namespace sk::cpu {

// Small groups are worked on together, so many that their duals, squares and factors stay in L1.
constexpr int64_t kTogether = 2048;               // entries, and the most that a small group has
constexpr int64_t kMostTogether = 4 * kTogether;  // where that makes longer runs of entries
constexpr int kShort = 16;                        // groups up to here are joined in registers
static_assert(kTogether <= kLanes);

// N numbers in registers, of which halves are added.
template <class O, int N>
struct VectorOf {
  typedef O type __attribute__((vector_size(N * sizeof(O))));
};
template <class O, int N>
using Vector = typename VectorOf<O, N>::type;

// As wide as O. Chosen by bits: g++ 12 takes 512-bit comparisons of numbers apart.
template <class O>
using Bits = std::conditional_t<sizeof(O) == 8, int64_t, int32_t>;

// Which entries of a group have one `half` further on: all bits or none.
template <class O>
struct Partners {
  alignas(kStreamAlign) Bits<O> exists[kTogether];
  int64_t entries = 0;  // of the groups that this is for

  const Bits<O>* of(int64_t n, int64_t half) {
    if (entries != n) {
      for (int64_t i = 0; i < std::max<int64_t>(half, kShort); ++i)
        exists[i] = -Bits<O>(i + half < n);
      entries = n;
    }
    return exists;
  }
};

// Vectors are not returned: g++ warns of that where one is wider than the baseline's.

// The first levels of the tree over N lanes: four are left.
template <class O, int N>
SK_HD void to_four(const Vector<O, N>& x, Vector<O, 4>& four) {
  if constexpr (N == 4) {
    four = x;
  } else {
    Vector<O, N / 2> low, high;
    std::memcpy(&low, &x, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof(low), sizeof(high));
    to_four<O, N / 2>(low + high, four);
  }
}

// The trees of four groups at a time.
template <class O, int N>
SK_HD void join_four(const Vector<O, N> (&lanes)[4], O* sums) {
  Vector<O, 4> x[4];
  for (int k = 0; k < 4; ++k) to_four<O, N>(lanes[k], x[k]);
  const Vector<O, 4> low = __builtin_shufflevector(x[0], x[1], 0, 1, 4, 5) +
                           __builtin_shufflevector(x[0], x[1], 2, 3, 6, 7);
  const Vector<O, 4> high = __builtin_shufflevector(x[2], x[3], 0, 1, 4, 5) +
                            __builtin_shufflevector(x[2], x[3], 2, 3, 6, 7);
  const Vector<O, 4> joined = __builtin_shufflevector(low, high, 0, 2, 4, 6) +
                              __builtin_shufflevector(low, high, 1, 3, 5, 7);
  std::memcpy(sums, &joined, sizeof(joined));
}

template <class O, int N>
SK_HD O tree_sum(const Vector<O, N>& lanes) {
  Vector<O, 4> x;
  to_four<O, N>(lanes, x);
  return (x[0] + x[2]) + (x[1] + x[3]);
}

// sums[g] <- the tree sum of the lanes that lanes_of(g, lanes) sets, for `count` groups
template <int N, class O, class F>
SK_HD void join_lanes_of(int64_t count, O* sums, const F& lanes_of) {
  Vector<O, N> lanes[4];
  int64_t g = 0;
  for (; g + 4 <= count; g += 4) {
    for (int k = 0; k < 4; ++k) lanes_of(g + k, lanes[k]);
    join_four<O, N>(lanes, sums + g);
  }
  for (; g < count; ++g) {
    lanes_of(g, lanes[0]);
    sums[g] = tree_sum<O, N>(lanes[0]);
  }
}

// Groups of n entries with N / 2 < n <= N; partner[i] has all bits for i < n.
template <int N, class O>
SK_HD void join_short(const O* x, int64_t count, int64_t n, const Bits<O>* partner, O* sums) {
  Vector<Bits<O>, N> exists;
  std::memcpy(&exists, partner, sizeof(exists));
  join_lanes_of<N>(count, sums, [&](int64_t g, Vector<O, N>& lanes) SK_INLINED {
    Vector<Bits<O>, N> own;
    std::memcpy(&own, x + g * n, sizeof(own));
    lanes = Vector<O, N>(own & exists);
  });
}

// A group of more than kShort entries, of which x is overwritten: kShort lanes are left.
template <class O>
SK_HD void to_short(O* x, int64_t n, int64_t half, const Bits<O>* partner,
                    Vector<O, kShort>& lanes) {
  for (int64_t i = 0; i < n - half; i += kShort) {
#pragma omp simd
    for (int64_t j = i; j < i + kShort; ++j) {
      const O other = x[j + half];
      x[j] = x[j] + (partner[j] ? other : O(0));
    }
  }
  int64_t width = half;
  for (; width >= 4 * kShort; width /= 4) {  // two levels at a time
    const int64_t q = width / 4;
#pragma omp simd
    for (int64_t i = 0; i < q; ++i) {
      x[i] = (x[i] + x[i + 2 * q]) + (x[i + q] + x[i + 3 * q]);
    }
  }
  std::memcpy(&lanes, x, sizeof(lanes));
  if (width > kShort) {
    Vector<O, kShort> others;
    std::memcpy(&others, x + kShort, sizeof(others));
    lanes += others;
  }
}

// sums[g] <- the tree sum of group g, x[g n .. g n + n), for `count` groups; x is overwritten.
template <class O>
SK_HD void join_groups(O* x, int64_t count, int64_t n, Partners<O>& partners, O* sums) {
  const int64_t half = n <= kShort ? 0 : int64_t(std::bit_ceil(uint64_t(n))) / 2;
  const Bits<O>* partner = partners.of(n, half);
  if (n == 1) {
    std::copy(x, x + count, sums);
  } else if (n == 2) {
#pragma omp simd
    for (int64_t g = 0; g < count; ++g) sums[g] = x[2 * g] + x[2 * g + 1];
  } else if (n == 3) {
#pragma omp simd
    for (int64_t g = 0; g < count; ++g) sums[g] = (x[3 * g] + x[3 * g + 2]) + x[3 * g + 1];
  } else if (n == 4) {
#pragma omp simd
    for (int64_t g = 0; g < count; ++g) {
      sums[g] = (x[4 * g] + x[4 * g + 2]) + (x[4 * g + 1] + x[4 * g + 3]);
    }
  } else if (n <= 8) {
    join_short<8>(x, count, n, partner, sums);
  } else if (n <= kShort) {
    join_short<kShort>(x, count, n, partner, sums);
  } else {
    join_lanes_of<kShort>(count, sums, [&](int64_t g, Vector<O, kShort>& lanes) SK_INLINED {
      to_short(x + g * n, n, half, partner, lanes);
    });
  }
}

// Rows of `across` entries, `pitch` apart: the levels of the tree that join whole rows of tiles
// whose width is a power of two. The first row is left.
template <class O>
SK_HD void join_rows(O* rows, int64_t pitch, int64_t across, int64_t height) {
  for (int64_t half = int64_t(std::bit_ceil(uint64_t(height))) / 2, to = height - half; half > 0;
       half /= 2, to = half) {
    for (int64_t r = 0; r < to; ++r) {
      O* own = rows + r * pitch;
      const O* other = own + half * pitch;
#pragma omp simd
      for (int64_t i = 0; i < across; ++i) own[i] = own[i] + other[i];
    }
  }
}

}  // namespace sk::cpu
