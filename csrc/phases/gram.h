// zo_gram: one block adds z_j z_k over one chunk for one pair of directions, in the order of
// core/reduce.h. Both directions are drawn again for every pair: nothing is stored.
#pragma once

#include <cstdint>

#include "for_each.h"

namespace sk::phases {

// Pairs (j, k), k <= j, numbered row by row.
struct DirectionPair {
  int j, k;
};

SK_HD DirectionPair direction_pair(int64_t number) {
  int j = 0;
  while (int64_t(j + 1) * (j + 2) / 2 <= number) ++j;
  return {j, int(number - int64_t(j) * (j + 1) / 2)};
}

// The op of the tables: numel, mask and uid, no streams.
template <class Numbers>
struct Gram {
  using Math = float;
  using Lists = StreamList<>;
  static constexpr Reduce kReduce = Reduce::kNone;
  Directions<float> stream;
};
template <class Numbers>
struct Traits<Gram<Numbers>> : RandomTraits<Numbers> {};

template <class Numbers>
struct GramShared {
  static constexpr bool kSigns = std::is_same_v<Numbers, Signs>;
  using Lane = std::conditional_t<kSigns, int32_t, float>;
  Lane lanes[kSigns ? kThreads : kLanes];
};
struct GramThread {};

// live - 2 (bits that differ), of 128 elements from `first`
template <bool kMasked, class Memory, class Block>
SK_HD int32_t sign_products(const Memory& memory, const Directions<float>& stream,
                            const RoundKeys& keys, const Block& block, DirectionPair pair,
                            int first) {
  const uint32_t directions[2] = {stream.direction(pair.j), stream.direction(pair.k)};
  Words w[2];
  SK_UNROLLED
  for (int d = 0; d < 2; ++d) {
    w[d] =
        sign_words(stream, keys, block.uid(), directions[d], block.first() + block.begin + first);
  }
  int32_t sum = 0;
  SK_UNROLLED
  for (int i = 0; i < 4; ++i) {
    const int element = first + 32 * i;
    if (element >= block.size) break;
    const int left = block.size - element;
    uint32_t mask = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
    if constexpr (kMasked) mask &= memory.load(block.mask() + element / 32);
    sum += popcount(mask) - 2 * popcount((w[0].x[i] ^ w[1].x[i]) & mask);
  }
  return sum;
}

template <int kRounds, bool kFast, bool kMasked, class Memory, class Block>
SK_HD void normal_products(const Memory& memory, const Directions<float>& stream,
                           const RoundKeys& keys, const Block& block, DirectionPair pair,
                           int thread, float* lanes) {
  SK_UNROLL(1)
  for (int first = 4 * thread; first < block.size; first += kLanes) {
    const int left = block.size - first;
    uint32_t bits = left >= 4 ? 15u : (1u << left) - 1u;
    if constexpr (kMasked) bits &= memory.load(block.mask() + first / 32) >> (first % 32);
    if (bits == 0) continue;
    const int64_t number = block.first() + block.begin + first;
    float z[2][1][4] = {};  // 1 z + 0 is z
    SK_UNROLLED
    for (int d = 0; d < 2; ++d) {
      const uint32_t direction = stream.direction(d ? pair.k : pair.j);
      if constexpr (kRounds == 0) {
        add_split_calls<kFast, 4, 1>(1.0f, stream.rounds, keys, block.uid(), direction, number, 0,
                                     z[d]);
      } else {
        const uint64_t call = uint64_t(number) / kNormalsPerBlock;
        normals_of<kFast>(philox<kRounds>(call, block.uid(), direction, keys), z[d][0]);
      }
    }
    SK_UNROLLED
    for (int i = 0; i < 4; ++i) {
      if ((bits >> i) & 1u) lanes[i] = lanes[i] + z[0][0][i] * z[1][0][i];
    }
  }
}

// sums[pair * stride + chunk] of chunk `number` of the table
template <bool kMasked, class Numbers, class Exec>
SK_HD void gram_block(Exec& exec, const Gram<Numbers>& op,
                      const TableOf<Gram<Numbers>, kMasked>& table, double* sums, int64_t stride,
                      int64_t number_of_pair, int32_t number) {
  using T = Traits<Gram<Numbers>>;
  const View<Gram<Numbers>, kMasked> block(table, number);
  const RoundKeys keys = round_keys(uint64_t(*op.stream.key));
  const DirectionPair pair = direction_pair(number_of_pair);
  auto* lanes = exec.shared.lanes;
  exec.run([&](int thread, GramThread&) SK_INLINED {
    if constexpr (T::kSigns) {
      const int first = thread * kSignsPerBlock;
      const bool any = first < block.size;
      exec.memory.store(
          lanes + thread,
          any ? sign_products<kMasked>(exec.memory, op.stream, keys, block, pair, first) : 0);
    } else {
      float own[4] = {0, 0, 0, 0};
      dispatch_rounds(op.stream, block.first(), [&]<int kRounds>() SK_INLINED {
        normal_products<kRounds, T::kFast, kMasked>(exec.memory, op.stream, keys, block, pair,
                                                    thread, own);
      });
      SK_UNROLLED
      for (int i = 0; i < 4; ++i) exec.memory.store(lanes + 4 * thread + i, own[i]);
    }
  });
  exec.barrier();
  join_in_shared(exec, lanes, T::kSigns ? kThreads : kLanes);
  exec.run([&](int thread, GramThread&) SK_INLINED {
    if (thread != 0) return;
    exec.memory.store(sums + number_of_pair * stride + table.chunk + number,
                      double(exec.memory.load(lanes)));
  });
}

// Finishing block of one pair: both halves of the symmetric matrix gram[q][q].
template <class Exec>
SK_HD void finish_gram(Exec& exec, const double* sums, int64_t chunks, int q, double* gram,
                       int64_t number_of_pair) {
  const DirectionPair pair = direction_pair(number_of_pair);
  const Total out{gram + int64_t(pair.j) * q + pair.k, gram + int64_t(pair.k) * q + pair.j,
                  nullptr};
  finish_block(exec, sums + number_of_pair * chunks, chunks, out);
}

}  // namespace sk::phases
