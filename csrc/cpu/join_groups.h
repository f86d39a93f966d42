// Tree sums of many small groups, in the order of core/reduce.h. A tree over 2,048 lanes of which
// all but the first n hold +0.0 is one over the next power of two.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "../core/reduce.h"
#include "../core/simd_store.h"

namespace sk::cpu {

// Small groups are worked on together, so many that their duals, squares and factors stay in L1.
constexpr int64_t kTogether = 2048;  // entries, and the most that a small group has
constexpr int kShort = 16;           // groups up to here are joined in registers
static_assert(kTogether <= kLanes);

// Which entries of a group have one `half` further on: 1 or 0.
template <class O>
struct Partners {
  alignas(kStreamAlign) O exists[kTogether];
  int64_t entries = 0;  // of the groups that this is for

  const O* of(int64_t n, int64_t half) {
    if (entries != n) {
      for (int64_t i = 0; i < std::max<int64_t>(half, kShort); ++i) exists[i] = O(i + half < n);
      entries = n;
    }
    return exists;
  }
};

// N numbers in registers, of which halves are added.
template <class O, int N>
struct VectorOf {
  typedef O type __attribute__((vector_size(N * sizeof(O))));
};
template <class O, int N>
using Vector = typename VectorOf<O, N>::type;

template <class O, int N>
SK_HD O tree_sum(const Vector<O, N>& x) {
  if constexpr (N == 2) {
    return x[0] + x[1];
  } else {
    Vector<O, N / 2> low, high;
    std::memcpy(&low, &x, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof(low), sizeof(high));
    return tree_sum<O, N / 2>(low + high);
  }
}

// Groups of n entries with N / 2 < n <= N; partner[i] is 1 for i < n.
template <int N, class O>
SK_HD void join_short(const O* x, int64_t count, int64_t n, const O* partner, O* sums) {
  for (int64_t g = 0; g < count; ++g) {
    Vector<O, N> own, exists;
    std::memcpy(&own, x + g * n, sizeof(own));
    std::memcpy(&exists, partner, sizeof(exists));
    sums[g] = tree_sum<O, N>(exists != O(0) ? own : Vector<O, N>{});
  }
}

// sums[g] <- the tree sum of group g, x[g n .. g n + n), for `count` groups; x is overwritten.
template <class O>
SK_HD void join_groups(O* x, int64_t count, int64_t n, Partners<O>& partners, O* sums) {
  const int64_t half = n <= kShort ? 0 : int64_t(std::bit_ceil(uint64_t(n))) / 2;
  const O* partner = partners.of(n, half);
  if (n == 1) {
    std::copy(x, x + count, sums);
  } else if (n == 2) {
    join_short<2>(x, count, n, partner, sums);
  } else if (n <= 4) {
    join_short<4>(x, count, n, partner, sums);
  } else if (n <= 8) {
    join_short<8>(x, count, n, partner, sums);
  } else if (n <= kShort) {
    join_short<kShort>(x, count, n, partner, sums);
  } else {
    for (int64_t g = 0; g < count; ++g, x += n) {
      for (int64_t i = 0; i < n - half; i += kShort) {
#pragma omp simd
        for (int64_t j = i; j < i + kShort; ++j) {
          const O other = x[j + half];
          x[j] = x[j] + (partner[j] != O(0) ? other : O(0));
        }
      }
      for (int64_t width = half / 2; width >= kShort; width /= 2) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) x[i] = x[i] + x[i + width];
      }
      Vector<O, kShort> last;
      std::memcpy(&last, x, sizeof(last));
      sums[g] = tree_sum<O, kShort>(last);
    }
  }
}

}  // namespace sk::cpu
