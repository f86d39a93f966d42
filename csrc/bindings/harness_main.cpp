// Every op of the harness under AddressSanitizer and UBSan: sizes around a chunk, misaligned and
// masked, compared with a plain loop over the functor. Prints what differs and returns 1.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "harness_backup.h"
#include "harness_choices.h"
#include "harness_entries.h"
#include "harness_lists.h"
#include "harness_tiles.h"
#include "harness_zo.h"

namespace {

using namespace sk;
using namespace sk::harness;

template <class T>
void sums(int shift, bool masked, std::mt19937& random) {
  Masks bits(random), *masks = masked ? &bits : nullptr;
  List<T> grads(shift, random);
  const std::string dtype = name_of<T>();
  std::vector<std::vector<float>> lanes;
  each_live(masks, [&](size_t t, int64_t i) {
    const size_t chunk = t * 2 + size_t(i / kChunkSize);  // no tensor here has more than two
    if (lanes.size() <= chunk) lanes.resize(chunk + 1, std::vector<float>(kLanes));
    const float x = load(grads.at(t, i));
    float& lane = lanes[chunk][size_t(i % kLanes)];
    lane = lane + x * x;
  });
  double total = 0;
  for (auto& chunk : lanes) total += double(join_lanes(chunk.data()));
  const Sum ours = for_each_sum(SquaredNorm<T>{}, run_of(masks, grads));
  expect(ours.total == total && ours.root == float(std::sqrt(total)), "norm " + dtype);
}

// The lists of a Bregman step, all of them mutated but grads.
template <class T>
struct BregmanLists {
  List<T> params, grads;
  List<float> duals, first, second;
  List<int32_t> counts;

  BregmanLists(int shift, std::mt19937& random)
      : params(shift, random),
        grads(shift, random),
        duals(shift ? 4 : 0, random),
        first(duals.shift, random),
        second(duals.shift, random),
        counts(duals.shift, random) {
    each_live(nullptr, [&](size_t t, int64_t i) {
      counts.at(t, i) &= 3;
      second.at(t, i) = abs(second.at(t, i));
    });
  }
  bool operator==(const BregmanLists& o) const {
    return params.memory == o.params.memory && duals.memory == o.duals.memory &&
           first.memory == o.first.memory && second.memory == o.second.memory &&
           counts.memory == o.counts.memory;
  }
};

template <class T>
void adabreg_step(int shift, bool masked, std::mt19937& random) {
  Masks bits(random), *masks = masked ? &bits : nullptr;
  BregmanLists<T> x(shift, random);
  auto y = x;
  const std::vector<float> steps{0, 0.1f, 0.2f, 0.3f}, roots{1, 0.5f, 0.7f, 0.9f};
  AdaBregStep<T, Dual::kShrunk, true> op;
  op.functor.readout = {0.3f, -0.3f, 1.5f, 0.01f, 0.1f, 3.0f};
  op.functor.sign = 1.0f;
  op.functor.one_minus_beta1 = 0.1f;
  op.functor.beta2 = 0.99f;
  op.functor.one_minus_beta2 = 0.01f;
  op.functor.eps = 1e-4f;
  op.functor.step_sizes = steps.data();
  op.functor.bias2_sqrts = roots.data();
  op.functor.last_row = 3;
  std::vector<int64_t> live(kSizes.size()), wanted(kSizes.size());
  each_live(masks, [&](size_t t, int64_t i) {
    float w = 0;
    wanted[t] += op.functor(w, load(y.grads.at(t, i)), y.duals.at(t, i), y.first.at(t, i),
                            y.second.at(t, i), y.counts.at(t, i));
    y.params.at(t, i) = store<T>(w);
  });
  for_each(op, run_of(masks, x.params, x.grads, x.duals, x.first, x.second, x.counts), nullptr,
           live.data());
  expect(x == y && live == wanted, "adabreg_step " + name_of<T>());
}

template <class T, Dual kDual>
void linbreg_step(int shift, bool masked, std::mt19937& random) {
  Masks bits(random), *masks = masked ? &bits : nullptr;
  BregmanLists<T> x(shift, random);
  auto y = x;
  LinBregStep<T, kDual, true> op;
  op.functor.readout = {0.3f, -0.3f, 1.5f, 0.01f, 0.1f, 1.0f};
  op.functor.sign = -1.0f;
  op.functor.beta = 0.9f;
  op.functor.gain = 0.1f;
  op.functor.step = 0.05f;
  op.functor.nesterov = true;
  std::vector<int64_t> live(kSizes.size()), wanted(kSizes.size());
  each_live(masks, [&](size_t t, int64_t i) {
    float w = load(y.params.at(t, i));
    wanted[t] += op.functor(w, load(y.grads.at(t, i)), y.duals.at(t, i), y.first.at(t, i));
    if (kDual == Dual::kShrunk) y.params.at(t, i) = store<T>(w);
  });
  for_each(op, run_of(masks, x.params, x.grads, x.duals, x.first), nullptr, live.data());
  expect(x == y && live == wanted, "linbreg_step " + name_of<T>());
}

void masks_both_ways(std::mt19937& random) {
  Masks bits(random);
  Run pack, unpack;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<std::vector<uint32_t>> words;
  for (size_t t = 0; t < kSizes.size(); ++t) {
    bytes.emplace_back(size_t(kSizes[t]), uint8_t(7));
    words.emplace_back(bits.words[t].size(), 0xdeadbeefu);
  }
  for (size_t t = 0; t < kSizes.size(); ++t) {
    Segment s;
    s.numel = kSizes[t];
    s.data[0] = bytes[t].data();
    s.input = bits.words[t].data();
    s.input_numel = words_of(kSizes[t]);
    unpack.segments.push_back(s);
    s.numel = words_of(kSizes[t]);
    s.data[0] = words[t].data();
    s.input = bytes[t].data();
    s.input_numel = kSizes[t];
    pack.segments.push_back(s);
  }
  for_each(MaskUnpack{}, unpack);
  for_each(MaskPack{}, pack);
  expect(words == bits.words, "mask_pack of mask_unpack");
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const bool masked : {false, true}) {
    for (const int shift : {0, 1}) {
      sums<float>(4 * shift, masked, random);
      sums<bf16>(2 * shift, masked, random);
      adabreg_step<float>(4 * shift, masked, random);
      adabreg_step<f16>(2 * shift, masked, random);
      linbreg_step<float, Dual::kShrunk>(4 * shift, masked, random);
      linbreg_step<bf16, Dual::kShrunk>(2 * shift, masked, random);
      linbreg_step<f16, Dual::kGiven>(2 * shift, masked, random);
      random_sums<phases::FastNormals>(4 * shift, masked, 2, 3, random);
      for (const int q : {1, 2, 19}) {
        for (const int64_t first : {int64_t(0), (int64_t(1) << 32) - 129}) {
          random_sums<phases::Normals>(4 * shift, masked, q, first, random);
          random_sums<phases::Signs>(4 * shift, masked, q, first, random);
        }
      }
    }
  }
  for (const int shift : {0, 1}) {
    backed_ops<float>(4 * shift, random);
    backed_ops<bf16>(2 * shift, random);
    backed_ops<f16>(2 * shift, random);
    random_sources<float>(4 * shift, random);
    random_sources<bf16>(2 * shift, random);
    random_sources<f16>(2 * shift, random);
    ranked_ops<float>(4 * shift, random);
    ranked_ops<bf16>(2 * shift, random);
    ranked_ops<f16>(2 * shift, random);
    prox_groups<float>(4 * shift, random);
    prox_groups<bf16>(2 * shift, random);
    prox_groups<f16>(2 * shift, random);
    count_masks(size_t(shift), random);
    apply_masks<uint16_t>(2 * shift, random);
    apply_masks<uint32_t>(4 * shift, random);
    apply_masks<uint64_t>(8 * shift, random);
    entries(shift, random);
  }
  masks_both_ways(random);
  step_key();
  std::printf("%d differences\n", failures);
  return failures != 0;
}
