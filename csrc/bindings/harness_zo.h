// The ops of random directions in the sanitized harness: every source, shards, sums, the step key.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "harness_backup.h"
#include "harness_lists.h"
#include "harness_ops.h"

namespace sk::harness {

using phases::Drawn;

constexpr int64_t kStreamKey = 0x123456789abcdef;

// Number `i` of direction k, from the one call that holds it.
inline float direction(const Directions<float>& stream, const RoundKeys& keys, uint32_t uid, int k,
                       int64_t i) {
  const int per_call = stream.signs ? kSignsPerBlock : kNormalsPerBlock;
  const auto call = uint64_t(i / per_call);
  const Words w = stream.rounds == 7 ? philox<7>(call, uid, stream.direction(k), keys)
                                     : philox<10>(call, uid, stream.direction(k), keys);
  const int in = int(i % per_call);
  if (stream.signs) return (w.x[in / 32] >> (in % 32)) & 1u ? -1.0f : 1.0f;
  const NormalPair pair = box_muller(w.x[in / 2 * 2], w.x[in / 2 * 2 + 1]);
  return in % 2 ? pair.odd : pair.even;
}

// q directions, and what they add up to.
template <class Numbers>
struct Coefficients {
  std::vector<float> coef;
  Directions<float> stream;
  RoundKeys keys = round_keys(uint64_t(kStreamKey));

  explicit Coefficients(int q) {
    for (int k = 0; k < q; ++k) coef.push_back(0.5f + float(k));
    constexpr bool kSigns = phases::RandomTraits<Numbers>::kSigns;
    constexpr bool kFast = phases::RandomTraits<Numbers>::kFast;
    stream = {&kStreamKey, coef.data(), nullptr, 1, q, q % 2 ? 7 : 10, kSigns, kFast};
  }
  float sum(size_t t, int64_t i) const {
    float s = 0;
    for (int k = 0; k < stream.q; ++k) {
      s = fma(coef[size_t(k)], direction(stream, keys, uint32_t(t), k, i), s);
    }
    return s;
  }
};

// Tensor t begins at number first + 37 t of its stream: every position in a call of Philox.
inline Run placed(Run run, int64_t first) {
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    run.segments[t].first = first ? first + 37 * int64_t(t) : 0;
  }
  return run;
}

template <class Numbers>
void random_sums(int shift, bool masked, int q, int64_t first, std::mt19937& random) {
  Masks bits(random), *masks = masked ? &bits : nullptr;
  List<float> tensors(shift, random);
  auto wanted = tensors;
  const Coefficients<Numbers> drawn(q);
  const Run run = placed(run_of(masks, tensors, tensors), first);
  each_live(masks, [&](size_t t, int64_t i) {
    wanted.at(t, i) = wanted.at(t, i) + drawn.sum(t, run.segments[t].first + i);
  });
  const Drawn<ZoCombine<float, float, true>, Numbers> op{{drawn.stream, nullptr, nullptr}};
  const double sum = for_each_sum(op, run).total;
  expect(tensors.memory == wanted.memory, "zo_combine");
  const Drawn<ZoNorm2<float>, Numbers> norm2{{drawn.stream}};
  expect(for_each_sum(norm2, run).total == sum, "zo_norm2");
  std::vector<double> matrix(size_t(q) * size_t(q));
  gram<Numbers>(drawn.stream, run, matrix.data());
  expect(matrix[size_t(q - 1)] == matrix[size_t(q) * size_t(q - 1)], "zo_gram");
}

// A packed backup is taken, then is the source; a list of floats is the source.
template <class T, class Numbers, bool kSumsq>
void random_sources(int shift, int64_t first, std::mt19937& random) {
  Saved<T> saved(Kept::kPacked, random);
  List<T> params(shift, random);
  const List<T> before = params;
  const Coefficients<Numbers> drawn(2);
  const Run run = saved.with(placed(run_of(saved.masks(), params), first));
  const auto walk = [&]<class Source>(const std::string& what, const auto& pack, const Run& lists) {
    const Drawn<ZoCombine<T, Source, kSumsq>, Numbers> op{{drawn.stream, nullptr, nullptr}};
    const double sum = for_each_drawn(pack(op), lists).total;
    if (!kSumsq) return;
    const Drawn<ZoNorm2<float>, Numbers> norm2{{drawn.stream}};
    expect(sum == for_each_sum(norm2, lists).total, "sum of squares of zo_combine " + what);
  };
  const auto packed = [](const auto& op) { return phases::packed(op); };
  auto wanted = saved.unperturbed(params);
  const auto move = [&](List<T>& list) {
    each_live(saved.masks(), [&](size_t t, int64_t i) {
      list.at(t, i) = store<T>(load(list.at(t, i)) + drawn.sum(t, run.segments[t].first + i));
    });
  };
  move(wanted);
  walk.template operator()<FromEntries>("from entries", packed, run);
  expect(params.memory == wanted.memory, "zo_combine from entries " + name_of<T>());
  params = before;
  wanted = before;
  move(wanted);
  const Run again = saved.with(placed(run_of(saved.masks(), params), first));
  walk.template operator()<InPlace>("with packed backup", packed, again);
  expect(params.memory == wanted.memory, "zo_combine with packed backup " + name_of<T>());
  std::vector<T> entries;
  auto old = before;
  each_live(saved.masks(), [&](size_t t, int64_t i) { entries.push_back(old.at(t, i)); });
  expect(std::memcmp(entries.data(), saved.packed.data(), entries.size() * sizeof(T)) == 0,
         "packed backup " + name_of<T>());
  List<float> masters(shift ? 4 : 0, random);
  for (Masks* masks : {static_cast<Masks*>(nullptr), saved.masks()}) {
    each_live(masks, [&](size_t t, int64_t i) {
      const float x = masters.at(t, i) + drawn.sum(t, run.segments[t].first + i);
      wanted.at(t, i) = store<T>(x);
    });
    const auto whole = [](const auto& op) { return op; };
    const Run lists = placed(run_of(masks, params, masters), first);
    params = wanted;
    each_live(masks, [&](size_t t, int64_t i) { params.at(t, i) = T{}; });
    walk.template operator()<float>("from floats", whole, lists);
    expect(params.memory == wanted.memory, "zo_combine from floats " + name_of<T>());
  }
}

template <class T>
void random_sources(int shift, std::mt19937& random) {
  for (const int64_t first : {int64_t(0), int64_t(3)}) {
    random_sources<T, phases::Normals, false>(shift, first, random);
    random_sources<T, phases::Signs, false>(shift, first, random);
  }
}

// What the ops above leave out, once: the sums of squares, and fast normals.
inline void random_sums_of_sources(int shift, std::mt19937& random) {
  random_sources<bf16, phases::Normals, true>(shift, 3, random);
  random_sources<bf16, phases::Signs, true>(shift, 3, random);
  random_sources<bf16, phases::FastNormals, false>(shift, 3, random);
  random_sources<bf16, phases::FastNormals, true>(shift, 3, random);
}

inline void step_key() {
  int64_t key = 0, counter = 0xffffffff;
  const int64_t seed = kStreamKey;
  zo_key(&key, &counter, &seed, 5);
  expect(uint64_t(key) == derive_key(uint64_t(seed), 0xffffffffu, 5) && counter == 0x100000000,
         "zo_key");
}

}  // namespace sk::harness
