// Every op of the harness under AddressSanitizer and UBSan: sizes around a chunk, misaligned and
// masked, compared with a plain loop over the functor. Prints what differs and returns 1.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "harness_backup.h"
#include "harness_bregman.h"
#include "harness_choices.h"
#include "harness_entries.h"
#include "harness_lists.h"
#include "harness_tiles.h"
#include "harness_zo.h"

namespace {

using namespace sk;
using namespace sk::harness;

// term(i) of all entries added as csrc/core/reduce.h says, against the op over the run.
template <class Op, class Term>
void sum(const Op& op, const Masks* masks, const Run& run, const Term& term,
         const std::string& what) {
  std::vector<std::vector<float>> lanes;
  const ChunkPlan plan(list_sizes);
  each_live(masks, [&](size_t t, int64_t i) {
    const auto chunk = size_t(plan.first_chunk[t] + i / kChunkSize);
    if (lanes.size() <= chunk) lanes.resize(chunk + 1, std::vector<float>(kLanes));
    float& lane = lanes[chunk][size_t(i % kLanes)];
    lane = lane + term(t, i);
  });
  double total = 0;
  for (auto& chunk : lanes) total += double(join_lanes(chunk.data()));
  const Sum ours = for_each_sum(op, run);
  expect(ours.total == total && ours.root == float(std::sqrt(total)), what);
}

template <class T>
void sums(int shift, bool masked, std::mt19937& random) {
  Masks bits(random), *masks = masked ? &bits : nullptr;
  List<T> grads(shift, random), weights(shift, random);
  const auto square = [&](size_t t, int64_t i) {
    return SquaredNorm<T>{}.bind(0)(load(grads.at(t, i)));
  };
  sum(SquaredNorm<T>{}, masks, run_of(masks, grads), square, "norm " + name_of<T>());
  const WeightedSquaredNorm<T> op{0.01f};
  const auto weighted = [&](size_t t, int64_t i) {
    return op.bind(0)(load(grads.at(t, i)), load(weights.at(t, i)));
  };
  sum(op, masks, run_of(masks, grads, weights), weighted, "weighted norm " + name_of<T>());
}

// shift: bytes by which the bools, words by which the masks are moved off a 16-byte boundary
void masks_both_ways(size_t shift, std::mt19937& random) {
  Masks bits(random);
  Run pack, unpack;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<std::vector<uint32_t>> words;
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    bytes.emplace_back(shift + size_t(list_sizes[t]), uint8_t(7));
    words.emplace_back(shift + bits.words[t].size(), 0xdeadbeefu);
  }
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    Segment s;
    s.numel = list_sizes[t];
    s.data[0] = bytes[t].data() + shift;
    s.input = bits.words[t].data();
    s.input_numel = words_of(list_sizes[t]);
    unpack.segments.push_back(s);
    s.numel = words_of(list_sizes[t]);
    s.data[0] = words[t].data() + shift;
    s.input = bytes[t].data() + shift;
    s.input_numel = list_sizes[t];
    pack.segments.push_back(s);
  }
  for_each(MaskUnpack{}, unpack);
  for_each(MaskPack{}, pack);
  for (auto& w : words) w.erase(w.begin(), w.begin() + ptrdiff_t(shift));
  expect(words == bits.words, "mask_pack of mask_unpack");
}

// Every op, at sizes around a chunk, then with more tensors than a table holds.
void around_a_chunk(std::mt19937& random) {
  for (const bool masked : {false, true}) {
    for (const int shift : {0, 1}) {
      sums<float>(4 * shift, masked, random);
      sums<bf16>(2 * shift, masked, random);
      bregman_steps<float>(4 * shift, masked, random);
      adabreg_step<f16, Dual::kShrunk, true>(2 * shift, masked, random);
      linbreg_step<bf16, Dual::kShrunk, true>(2 * shift, masked, random);
      linbreg_step<f16, Dual::kGiven, true>(2 * shift, masked, random);
      random_sums<phases::FastNormals>(4 * shift, masked, 2, 3, random);
      for (const int q : {1, 2, 19}) {
        if (q == 19 && shift) continue;  // the gram of 190 pairs takes long
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
    random_sums_of_sources(2 * shift, random);
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
    masks_both_ways(size_t(shift), random);
  }
  step_key();
}

void many(std::mt19937& random) {
  list_sizes.clear();
  for (int64_t t = 0; t < 1700; ++t) list_sizes.push_back(t % 9);
  list_sizes.front() = list_sizes.back() = kChunkSize + 1;
  for (const bool masked : {false, true}) {
    sums<float>(4, masked, random);
    bregman_steps<float>(4, masked, random);
    random_sums<phases::Normals>(4, masked, 1, 3, random);
    random_sums<phases::FastNormals>(4, masked, 1, 3, random);
    random_sums<phases::Signs>(4, masked, 1, 3, random);
  }
  backed_ops<float>(4, random);
  random_sources<float>(4, random);
  random_sums_of_sources(2, random);
  ranked_ops<float>(4, random);
  prox_groups<float>(4, random);
  count_masks(1, random);
  apply_masks<uint32_t>(4, random);
  entries(1, random);
  masks_both_ways(1, random);
}

}  // namespace

int main() {
  std::mt19937 random(1);
  around_a_chunk(random);
  many(random);
  for (const auto& [kernel, walk] : walks) {
    std::printf("ran %s:%s%s%s%s\n", kernel.c_str(), walk.vector ? " vector" : "",
                walk.tail ? " tail" : "", walk.misaligned ? " misaligned" : "",
                walk.tables ? " tables" : "");
  }
  std::printf("%d differences\n", failures);
  return failures != 0;
}
