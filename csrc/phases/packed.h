// Where the entries of a chunk stand in a packed backup (core/mask.h): the ones before each word of
// its mask, summed in shared memory before the chunk is walked.
#pragma once

#include <cstdint>

#include "../core/mask.h"
#include "table.h"

namespace sk::phases {

struct Places {
  int64_t first;              // place of the chunk's first entry
  int32_t ones[kChunkWords];  // of the chunk before each word
  int32_t sums[2][kThreads];  // of a thread's words; then of these and all before
};

// places->ones <- ones of the chunk before each of its words; returns those of all of them.
template <class Exec, class Block>
SK_HD int32_t count_before(Exec& exec, const Block& block, Places* places) {
  exec.run([&](int thread, auto&) SK_INLINED {
    int32_t ones = 0;
    SK_UNROLLED
    for (int i = 0; i < kOwnWords; ++i) {
      const int word = thread * kOwnWords + i;
      const int left = block.size - 32 * word;
      exec.memory.store(places->ones + word, ones);
      if (left > 0) ones += popcount(existing_bits(exec.memory.load(block.mask() + word), left));
    }
    exec.memory.store(places->sums[0] + thread, ones);
  });
  exec.barrier();
  int from = 0;
  for (int distance = 1; distance < kThreads; distance *= 2, from ^= 1) {
    exec.run([&](int thread, auto&) SK_INLINED {
      int32_t sum = exec.memory.load(places->sums[from] + thread);
      if (thread >= distance) sum += exec.memory.load(places->sums[from] + thread - distance);
      exec.memory.store(places->sums[from ^ 1] + thread, sum);
    });
    exec.barrier();
  }
  exec.run([&](int thread, auto&) SK_INLINED {
    const int32_t before = thread == 0 ? 0 : exec.memory.load(places->sums[from] + thread - 1);
    SK_UNROLLED
    for (int i = 0; i < kOwnWords; ++i) {
      int32_t* ones = places->ones + thread * kOwnWords + i;
      exec.memory.store(ones, exec.memory.load(ones) + before);
    }
  });
  exec.barrier();
  return exec.memory.load(places->sums[from] + kThreads - 1);
}

// Fills `places`. False where the entries do not all have a place: the chunk is then left alone.
template <class Exec, class Op, bool kMasked>
SK_HD bool find_places(Exec& exec, const View<Op, kMasked>& block, Places* places) {
  exec.run([&](int thread, auto&) SK_INLINED {
    if (thread == 0) exec.memory.store(&places->first, exec.memory.load(block.rank()));
  });
  const int32_t all = count_before(exec, block, places);
  return places_exist(exec.memory.load(&places->first), all, block.capacity());
}

}  // namespace sk::phases
