// The ops with a backup in the sanitized harness: whole, whole with masks, packed.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "harness_lists.h"

namespace sk::harness {

enum class Kept { kWhole, kMasked, kPacked };

// A backup of one of the kinds; the packed one in an allocation of exactly as many entries as ones.
template <class T>
struct Saved {
  Masks bits;
  Kept kept;
  List<T> whole;
  std::vector<std::vector<int64_t>> ranks;
  std::vector<T> packed;

  Saved(Kept k, std::mt19937& random) : bits(random), kept(k), whole(0, random) {
    for (size_t t = 0; t < list_sizes.size(); ++t) {
      ranks.emplace_back();
      for (int64_t i = 0; i < list_sizes[t]; ++i) {
        if (i % kRankTile == 0) ranks[t].push_back(int64_t(packed.size()));
        if (mask_bit(bits.words[t].data(), i)) packed.push_back(whole.at(t, i));
      }
    }
  }
  Masks* masks() { return kept == Kept::kWhole ? nullptr : &bits; }
  Run with(Run run) {
    for (size_t t = 0; t < list_sizes.size(); ++t) {
      Segment& s = run.segments[t];
      s.backup = whole.data(t);
      if (kept != Kept::kPacked) continue;
      s.backup = packed.data();
      s.ranks = ranks[t].data();
      s.capacity = int64_t(packed.size());
    }
    return run;
  }
  // what the parameters are without the perturbation
  List<T> unperturbed(const List<T>& params) {
    List<T> out = params;
    each_live(masks(), [&](size_t t, int64_t i) { out.at(t, i) = whole.at(t, i); });
    return out;
  }
};

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

template <class T, bool kAdaptive>
void perturb_and_restore(int shift, Kept kept, float norm, std::mt19937& random) {
  Saved<T> saved(kept, random);
  List<T> params(shift, random), grads(shift, random);
  const List<T> before = params;
  List<T> wanted = params;
  const MaskedPerturb<T, kAdaptive> op{&norm, 0.05f, 0.01f, 0.0f};
  for_each_backed(op, saved.with(run_of(saved.masks(), params, grads)));
  const auto functor = op.bind(0);
  each_live(saved.masks(), [&](size_t t, int64_t i) {
    float x = load(wanted.at(t, i));
    functor(x, load(grads.at(t, i)));
    wanted.at(t, i) = store<T>(x);
  });
  if (!isfinite(norm)) wanted = before;  // saved, but not moved
  expect(params.memory == wanted.memory, "masked_perturb " + name_of<T>());
  for_each_backed(Restore<BitsOf<T>>{}, saved.with(run_of(saved.masks(), params)));
  expect(params.memory == before.memory, "restore " + name_of<T>());
  for_each_backed(op, run_of(saved.masks(), params, grads));
  expect(params.memory == wanted.memory, "masked_perturb without a backup " + name_of<T>());
}

template <class T>
void base_steps(int shift, Kept kept, float skip, std::mt19937& random) {
  Saved<T> saved(kept, random);
  List<T> params(shift, random), grads(shift, random), first(shift, random), second(shift, random);
  each_live(nullptr,
            [&](size_t t, int64_t i) { second.at(t, i) = store<T>(abs(load(second.at(t, i)))); });
  auto x = params, a = first, u = second, w = saved.unperturbed(params), b = first, v = second;
  const float scale = 0.25f;
  const bool open = skip == 0.0f;  // closed: restored, nothing else
  const std::vector<float> steps(list_sizes.size(), 0.1f), roots(list_sizes.size(), 0.7f);
  const RestoreSgd<T, true> sgd{{&skip, &scale, true}, 0.1f, 0.9f, 0.7f, 0.02f, true, false};
  const RestoreAdamw<T> adamw{{open ? nullptr : &skip, &scale, false},
                              steps.data(),
                              roots.data(),
                              0.1f,
                              0.99f,
                              0.01f,
                              1e-4f,
                              0.02f,
                              0.998f};
  const RestoreSgd<T, false> plain{{&skip, &scale, true}, 0.1f, 0.0f, 1.0f, 0.02f, false, false};
  for_each_backed(plain, saved.with(run_of(saved.masks(), x, grads)));
  each_live(nullptr, [&](size_t t, int64_t i) {
    if (!open) return;
    float param = load(w.at(t, i));
    plain.bind(int64_t(t))(param, load(grads.at(t, i)));
    w.at(t, i) = store<T>(param);
  });
  expect(x.memory == w.memory, "restore_sgd without momentum " + name_of<T>());
  x = params, w = saved.unperturbed(params);
  for_each_backed(sgd, saved.with(run_of(saved.masks(), x, grads, a)));
  each_live(nullptr, [&](size_t t, int64_t i) {
    if (!open) return;
    float param = load(w.at(t, i)), buffer = load(b.at(t, i));
    sgd.bind(int64_t(t))(param, load(grads.at(t, i)), buffer);
    w.at(t, i) = store<T>(param);
    b.at(t, i) = store<T>(buffer);
  });
  expect(x.memory == w.memory && a.memory == b.memory, "restore_sgd " + name_of<T>());
  x = params, a = b = first, w = saved.unperturbed(params);
  for_each_backed(adamw, saved.with(run_of(saved.masks(), x, grads, a, u)));
  each_live(nullptr, [&](size_t t, int64_t i) {
    if (!open) return;
    float param = load(w.at(t, i)), mean = load(b.at(t, i)), square = load(v.at(t, i));
    adamw.bind(int64_t(t))(param, load(grads.at(t, i)), mean, square);
    w.at(t, i) = store<T>(param);
    b.at(t, i) = store<T>(mean);
    v.at(t, i) = store<T>(square);
  });
  expect(x.memory == w.memory && a.memory == b.memory && u.memory == v.memory,
         "restore_adamw " + name_of<T>());
}

template <class T>
void backed_ops(int shift, std::mt19937& random) {
  for (const Kept kept : {Kept::kWhole, Kept::kMasked, Kept::kPacked}) {
    for (const float norm : {2.0f, INFINITY}) {
      perturb_and_restore<T, false>(shift, kept, norm, random);
      perturb_and_restore<T, true>(shift, kept, norm, random);
    }
    for (const float skip : {0.0f, 1.0f}) base_steps<T>(shift, kept, skip, random);
  }
}

}  // namespace sk::harness
