// zo_gram on the CPU: all pairs of q directions, in one pass over the random stream.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "../core/reduce.h"
#include "for_each.h"
#include "generate.h"

namespace sk::cpu {

struct GramScratch {
  std::vector<float> z;      // [q][kNoise] normals of the block
  std::vector<float> lanes;  // [pairs][kLanes]
  std::vector<uint32_t> words;
  int64_t tile = -1;
};

SK_CLONES inline void multiply_add_lanes(const float* a, const float* b, const uint32_t* keep,
                                         int n, float* lanes) {
#pragma omp simd
  for (int i = 0; i < n; ++i) lanes[i] = lanes[i] + (keep[i] ? a[i] * b[i] : 0.0f);
}

// sums[pair] of one chunk of normals, in the order of core/reduce.h
inline void gram_chunk_normal(const Directions<float>& stream, const RoundKeys& keys,
                              const Segment& segment, int64_t begin, int64_t end,
                              GramScratch& scratch, double* sums) {
  const int q = stream.q;
  const int pairs = q * (q + 1) / 2;
  scratch.z.resize(size_t(q) * kNoise);
  scratch.lanes.assign(size_t(pairs) * kLanes, 0.0f);
  uint32_t keep[kBlock];
  std::fill(keep, keep + kBlock, 1u);
  for (int64_t first = begin; first < end; first += kBlock) {
    const int n = int(std::min<int64_t>(kBlock, end - first));
    if (segment.mask) expand_mask(segment.mask + first / 32, n, keep);
    const float* z = nullptr;  // of direction 0; the others follow
    for (int k = q - 1; k >= 0; --k) {
      z = draw_normals(stream, keys, segment, k, first, n, scratch.z.data() + size_t(k) * kNoise);
    }
    float* lanes = scratch.lanes.data() + first % kLanes;
    for (int j = 0; j < q; ++j) {
      for (int k = 0; k <= j; ++k, lanes += kLanes) {
        multiply_add_lanes(z + size_t(j) * kNoise, z + size_t(k) * kNoise, keep, n, lanes);
      }
    }
  }
  for (int p = 0; p < pairs; ++p) sums[p] = join_lanes(&scratch.lanes[size_t(p) * kLanes]);
}

// Signs need no sum of products: <z_j, z_k> = live - 2 popcount((bits_j xor bits_k) and mask).
inline void gram_chunk_signs(const Directions<float>& stream, const RoundKeys& keys,
                             const Segment& segment, int64_t begin, int64_t end,
                             GramScratch& scratch, double* sums) {
  const int q = stream.q;
  std::vector<int64_t> differ(size_t(q) * (q + 1) / 2, 0);
  int64_t live = 0;
  for (int64_t first = begin; first < end; first += 32) {
    draw_tile(stream, keys, segment, first, scratch);
    const int64_t left = end - first;
    uint32_t mask = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
    if (segment.mask) mask &= segment.mask[first / 32];
    live += std::popcount(mask);
    const uint32_t* words = scratch.words.data() + (first % kTile) / 32;
    size_t pair = 0;
    for (int j = 0; j < q; ++j) {
      for (int k = 0; k <= j; ++k, ++pair) {
        differ[pair] += std::popcount((words[j * kTileWords] ^ words[k * kTileWords]) & mask);
      }
    }
  }
  for (size_t pair = 0; pair < differ.size(); ++pair) sums[pair] = double(live - 2 * differ[pair]);
}

// gram[q][q], symmetric; chunks are added in order
inline void gram_matrix(const Directions<float>& stream, const std::vector<Segment>& segments,
                        double* gram) {
  const std::vector<int64_t> numels = numels_of(segments);
  const ChunkPlan plan(numels);
  const RoundKeys keys = round_keys(uint64_t(*stream.key));
  const int q = stream.q;
  const int64_t pairs = int64_t(q) * (q + 1) / 2;
  std::vector<double> sums(size_t(plan.chunks() * pairs), 0.0);
  for_each_chunk<GramScratch>(
      plan, numels, [&](int t, int64_t begin, int64_t end, int64_t chunk, GramScratch& scratch) {
        scratch.tile = -1;
        const auto run = stream.signs ? gram_chunk_signs : gram_chunk_normal;
        run(stream, keys, segments[t], begin, end, scratch, &sums[size_t(chunk * pairs)]);
      });
  int64_t pair = 0;
  for (int j = 0; j < q; ++j) {
    for (int k = 0; k <= j; ++k, ++pair) {
      double total = 0;
      for (int64_t c = 0; c < plan.chunks(); ++c) total += sums[size_t(c * pairs + pair)];
      gram[j * q + k] = gram[k * q + j] = total;
    }
  }
}

}  // namespace sk::cpu
