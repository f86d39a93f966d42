// zo_combine: tensors <- alpha * src + gamma * s,  s = sum_k coef[k] z_k, z_k regenerated.
//   s starts at 0 and takes fma(coef[k], z_k, s), k ascending; then one add and one rounding.
// Source: ZO-SAM, arXiv 2603.13115; MeZO, arXiv 2305.17333, algorithm 1. The stream: core/philox.h.
// Lists: tensors[T] mutated; src, if any: [T] or [Math] const, or the packed entries of the
// tensors. Reduces s^2 where kSumsq. zo_norm2 is the same sum without touching a tensor. Twins:
// sparse_kernels/reference/zo_combine.py, sparse_kernels/triton/zo_combine.py.
#pragma once

#include <type_traits>

#include "streams.h"

namespace sk {

// Which random numbers: everything a generator needs besides the element index and the uid.
template <class Math>
struct Directions {
  const int64_t* key;         // one element: the 64-bit stream key's bits
  const Math* coef;           // [q]; null where the op does not combine
  const int64_t* directions;  // [q], or null for first_direction + k
  int64_t first_direction;
  int32_t q;
  int32_t rounds;  // 10 or 7
  bool signs;      // rademacher instead of normal
  bool fast;       // normals from the hardware's approximate functions, where there are any

  SK_HD uint32_t direction(int k) const {
    return uint32_t(directions ? directions[k] : first_direction + k);
  }
};

struct InPlace {};      // the tensors are the source
struct FromEntries {};  // a packed backup is

// Source: InPlace, FromEntries, or what the elements of a list of its own are stored as.
template <class T, class Source>
struct CombinedLists {
  using type = StreamList<Out<T>, In<Source>>;
};
template <class T>
struct CombinedLists<T, InPlace> {
  using type = StreamList<InOut<T>>;
};
template <class T>
struct CombinedLists<T, FromEntries> {
  using type = StreamList<InOut<T>>;
};

template <class T, class Source, bool kSumsq>
struct ZoCombine {
  using Math = opmath_t<T>;
  using Lists = typename CombinedLists<T, Source>::type;
  static constexpr Reduce kReduce = kSumsq ? Reduce::kSum : Reduce::kNone;
  static constexpr bool kGenerated = true;
  static constexpr Backup kBackup =
      std::is_same_v<Source, FromEntries> ? Backup::kFeeds : Backup::kSaves;
  using Result = std::conditional_t<kSumsq, Math, void>;

  Directions<Math> stream;
  const Math* alpha;  // [tensors] or null for 1
  const Math* gamma;

  struct Functor : AlwaysEnabled {
    Math alpha, gamma;
    SK_HD Result apply(Math s, Math& dst, Math src) const {
      dst = alpha * src + gamma * s;  // a factor of 1 is exact
      if constexpr (kSumsq) return s * s;
    }
    SK_HD Result operator()(Math s, Math& dst) const { return apply(s, dst, dst); }
    SK_HD Result operator()(Math s, Math& dst, Math src) const { return apply(s, dst, src); }
  };
  SK_HD Functor bind(int64_t t) const {
    Functor f;
    f.alpha = alpha ? alpha[t] : Math(1);
    f.gamma = gamma ? gamma[t] : Math(1);
    return f;
  }
};

template <class T>
struct ZoNorm2 {
  using Math = opmath_t<T>;
  using Lists = StreamList<>;
  static constexpr Reduce kReduce = Reduce::kSum;
  static constexpr bool kGenerated = true;

  Directions<Math> stream;

  struct Functor : AlwaysEnabled {
    SK_HD Math operator()(Math s) const { return s * s; }
  };
  SK_HD Functor bind(int64_t) const { return {}; }
};

}  // namespace sk
