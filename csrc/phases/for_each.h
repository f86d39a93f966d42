// The body of the elementwise kernel: one block, one chunk.
//
// A program is a sequence of exec.run(f), f(thread, its state), and exec.barrier(). A CUDA block
// runs f for its own thread and barrier is __syncthreads; the host harness runs f for one thread
// after the other and treats everything between two barriers as one phase.
#pragma once

#include <cstdint>

#include "generate.h"
#include "reduce.h"
#include "step.h"
#include "table.h"

namespace sk::phases {

template <class Op>
SK_HD void clear(MathOf<Op> (*s)[Shape<Op>::V]) {
  SK_UNROLLED
  for (int u = 0; u < Shape<Op>::U; ++u) {
    SK_UNROLLED
    for (int i = 0; i < Shape<Op>::V; ++i) s[u][i] = MathOf<Op>(0);
  }
}

// The normals of the U groups from element `at` of the chunk on.
template <class Op, class Block>
SK_HD void add_directions(const Op& op, uint64_t key, const Block& block, int at,
                          MathOf<Op> (*s)[Shape<Op>::V]) {
  using F = Shape<Op>;
  const int64_t first = block.first() + block.begin + at;
  dispatch_rounds(op.stream, first, [&]<int kRounds>() SK_INLINED {
    add_normals<kRounds, Traits<Op>::kFast, F::V, F::U>(op.stream, key, block.uid(), first,
                                                        F::kStride, s);
  });
}

// Steps [first, end) of a chunk without barriers: no computed input, or one that each thread makes
// for itself.
template <bool kWhole, bool kMasked, class Memory, class Op, class Functor>
SK_HD void walk_steps(const Memory& memory, const Op& op, const View<Op, kMasked>& block,
                      const Functor& functor, uint64_t key,
                      const decltype(Shared<Op>::places)* places, int thread, int first, int end,
                      Thread<Op>& state) {
  using F = Shape<Op>;
  SK_UNROLL(1)
  for (; first < end; first += F::kStep) {
    Step<Op, kMasked, kWhole, Memory> step(memory, block, places, first, thread);
    if (step.idle()) continue;
    step.load(functor);
    if constexpr (Traits<Op>::kRandom) {
      clear<Op>(state.s);
      add_directions(op, key, block, step.at, state.s);
    }
    step.finish(functor, state);
  }
}

template <bool kMasked, class Exec, class Op, class Functor>
SK_HD void walk(Exec& exec, const Op& op, const View<Op, kMasked>& block, const Functor& functor,
                uint64_t key) {
  using F = Shape<Op>;
  const int whole = block.template aligned<F::V>() ? block.size / F::kStep * F::kStep : 0;
  const auto* places = &exec.shared.places;
  exec.run([&](int thread, Thread<Op>& state) SK_INLINED {
    walk_steps<true>(exec.memory, op, block, functor, key, places, thread, 0, whole, state);
    walk_steps<false>(exec.memory, op, block, functor, key, places, thread, whole, block.size,
                      state);
  });
}

// One step that takes its signs from shared memory; where a tile needs several drawings, the last
// one writes.
template <bool kWhole, bool kMasked, class Memory, class Op, class Functor>
SK_HD void sign_step(const Memory& memory, const Op& op, const View<Op, kMasked>& block,
                     const Functor& functor, const SignTiling& tiling, int k, const uint32_t* words,
                     const decltype(Shared<Op>::places)* places, int tile, int first, int thread,
                     Thread<Op>& state) {
  using F = Shape<Op>;
  const bool last = k + tiling.directions() >= op.stream.q;
  Step<Op, kMasked, kWhole, Memory> step(memory, block, places, first, thread);
  if (step.idle()) return;
  if (last) step.load(functor);
  if (k == 0) clear<Op>(state.s);
  add_signs<F::V, F::U>(memory, op.stream, tiling, k, words, step.at - tile, F::kStride, state.s);
  if (last) step.finish(functor, state);
}

// One chunk whose signs are drawn into shared memory, several directions at a time. Where q needs
// more than one drawing, a tile is one step, and s stays in the threads' registers in between.
template <bool kMasked, class Exec, class Op, class Functor>
SK_HD void walk_signs(Exec& exec, const Op& op, const View<Op, kMasked>& block,
                      const Functor& functor, uint64_t key) {
  using F = Shape<Op>;
  const bool aligned = block.template aligned<F::V>();
  const SignTiling tiling(op.stream.q, kChunkSize / F::kStep);
  uint32_t* words = exec.shared.words;
  const auto* places = &exec.shared.places;
  for (int tile = 0; tile < block.size; tile += tiling.elements()) {
    const int end = block.size - tile < tiling.elements() ? block.size : tile + tiling.elements();
    for (int k = 0; k < op.stream.q; k += tiling.directions()) {
      exec.run([&](int thread, Thread<Op>&) SK_INLINED {
        draw_signs(exec.memory, op.stream, key, block, tiling, tile, k, thread, words);
      });
      exec.barrier();
      exec.run([&](int thread, Thread<Op>& state) SK_INLINED {
        SK_UNROLL(1)
        for (int first = tile; first < end; first += F::kStep) {
          if (aligned && first + F::kStep <= end) {
            sign_step<true>(exec.memory, op, block, functor, tiling, k, words, places, tile, first,
                            thread, state);
          } else {
            sign_step<false>(exec.memory, op, block, functor, tiling, k, words, places, tile, first,
                             thread, state);
          }
        }
      });
      exec.barrier();
    }
  }
}

// What is left of a chunk's sum or count, once every thread has walked its elements.
template <class Exec, class Op>
SK_HD void reduce_block(Exec& exec, const Op&, const Outputs& out, int64_t chunk, int32_t tensor) {
  constexpr int kOwn = kLanes / kThreads;
  if constexpr (Op::kReduce == Reduce::kSum) {
    auto* lanes = exec.shared.lanes;
    exec.run([&](int thread, Thread<Op>& state) SK_INLINED {
      SK_UNROLLED
      for (int i = 0; i < kOwn; ++i) exec.memory.store(lanes + kOwn * thread + i, state.lanes[i]);
    });
    exec.barrier();
    join_in_shared(exec, lanes, kLanes);
    exec.run([&](int thread, Thread<Op>&) SK_INLINED {
      if (thread == 0) exec.memory.store(out.partials + chunk, double(exec.memory.load(lanes)));
    });
  }
  if constexpr (Op::kReduce == Reduce::kCount) {
    int32_t* counts = exec.shared.counts;
    exec.run([&](int thread, Thread<Op>& state)
                 SK_INLINED { exec.memory.store(counts + thread, state.count); });
    exec.barrier();
    join_in_shared(exec, counts, kThreads);
    exec.run([&](int thread, Thread<Op>&) SK_INLINED {
      if (thread == 0) exec.memory.add(out.live + tensor, int64_t(exec.memory.load(counts)));
    });
  }
}

template <bool kMasked, class Exec, class Op>
SK_HD void for_each_block(Exec& exec, const Op& op, const TableOf<Op, kMasked>& table,
                          const Outputs& out, int32_t number) {
  const View<Op, kMasked> block(table, number);
  bool fits = true;  // else the chunk is left alone, and adds nothing
  if constexpr (Traits<Op>::kPacked) fits = find_places(exec, block, &exec.shared.places);
  const auto functor = op.bind(block.tensor());
  uint64_t key = 0;
  if constexpr (Traits<Op>::kRandom) key = uint64_t(*op.stream.key);
  exec.run([&](int, Thread<Op>& state) SK_INLINED {
    for (auto& lane : state.lanes) lane = MathOf<Op>(0);
    state.count = 0;
  });
  if (!fits) {
  } else if constexpr (Traits<Op>::kSigns) {
    walk_signs<kMasked>(exec, op, block, functor, key);
  } else {
    walk<kMasked>(exec, op, block, functor, key);
  }
  reduce_block(exec, op, out, table.chunk + number, block.tensor());
}

}  // namespace sk::phases
