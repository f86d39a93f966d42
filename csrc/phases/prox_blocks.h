// The three sizes of groups in prox_group's blocks, see prox_group.h.
#pragma once

#include "prox_group.h"

namespace sk::phases {

// x[g n] <- the tree sums of `count` groups of n entries
template <class Exec>
SK_HD void join_batch(Exec& exec, float* x, int count, int n) {
  int shift = 0;
  while ((2 << shift) < n) ++shift;
  for (int width = n > 1 ? 1 << shift : 0; width > 0; width /= 2, --shift) {
    exec.run([&](int thread, ProxThread&) SK_INLINED {
      SK_UNROLL(1)
      for (int item = thread; item < count << shift; item += kThreads) {
        const int in = item & (width - 1);
        if (in + width >= n) continue;  // in the first round alone
        float* own = x + (item >> shift) * n + in;
        exec.memory.store(own, exec.memory.load(own) + exec.memory.load(own + width));
      }
    });
    exec.barrier();
  }
}

template <class T, class Exec>
SK_HD void small_groups(Exec& exec, const ProxLists<T>& op, const ProxView<T>& view,
                        const Tiling& tiling, int64_t number) {
  const int n = int(tiling.entries());
  const int64_t group = number * groups_of_batch(n), left = tiling.groups() - group;
  const int count = left < groups_of_batch(n) ? int(left) : groups_of_batch(n);
  float* x = exec.shared.x;
  exec.run([&](int thread, ProxThread& state) SK_INLINED {
    SK_UNROLLED
    for (int u = 0; u < kHeld; ++u) {
      const int at = (u * kThreads + thread) * kQuad;
      float* own = state.lanes + u * kQuad;
      if (at >= count * n) continue;
      load_quad(exec.memory, view, quad_of_batch(view, tiling, group, count, at), own);
      float squares[kQuad];
      SK_UNROLLED
      for (int i = 0; i < kQuad; ++i) squares[i] = op.functor.square(own[i]);
      store_vector<float, kQuad>(exec.memory, reinterpret_cast<char*>(x + at), squares);
    }
  });
  exec.barrier();
  join_batch(exec, x, count, n);
  exec.run([&](int thread, ProxThread& state) SK_INLINED {
    SK_UNROLL(1)
    for (int g = thread; g < count; g += kThreads) {
      const float norm = sk::sqrt(exec.memory.load(x + g * n));
      const int kind = tiling.tile(group + g).kind;
      exec.memory.store(x + g * n,
                        tally_group(exec.memory, op, view, group + g, kind, norm, state));
    }
  });
  exec.barrier();
  exec.run([&](int thread, ProxThread& state) SK_INLINED {
    SK_UNROLLED
    for (int u = 0; u < kHeld; ++u) {
      const int at = (u * kThreads + thread) * kQuad;
      if (at >= count * n) continue;
      float theta[kQuad];
      int g = at / n, in = at - g * n;
      SK_UNROLLED
      for (int i = 0; i < kQuad; ++i) {
        const float factor = g < count ? exec.memory.load(x + g * n) : 0.0f;
        theta[i] = op.functor.readout(state.lanes[u * kQuad + i], factor);
        if (++in == n) {
          in = 0;
          ++g;
        }
      }
      const Quad quad = quad_of_batch(view, tiling, group, count, at);
      store_quad(exec.memory, view, quad, theta, state);
    }
  });
}

// x[0] <- the sum of squares of entries [begin, end) of a tile, at most a chunk
template <class T, class Exec>
SK_HD void sum_part(Exec& exec, const ProxLists<T>& op, const ProxView<T>& view, const Tile& tile,
                    int64_t begin, int64_t end) {
  float* x = exec.shared.x;
  exec.run([&](int thread, ProxThread& state) SK_INLINED {
    SK_UNROLLED
    for (int i = 0; i < kQuad; ++i) state.lanes[i] = 0.0f;
    SK_UNROLL(1)
    for (int64_t at = begin + kQuad * thread; at < end; at += kLanes) {
      float own[kQuad];
      load_quad(exec.memory, view, quad_of(view, tile, at, end), own);
      SK_UNROLLED
      for (int i = 0; i < kQuad; ++i) state.lanes[i] = state.lanes[i] + op.functor.square(own[i]);
    }
    store_vector<float, kQuad>(exec.memory, reinterpret_cast<char*>(x + kQuad * thread),
                               state.lanes);
  });
  exec.barrier();
  join_in_shared(exec, x, kLanes);
}

// The readout of entries [begin, end) of a tile; `first`: this block stands for the group.
template <class T, class Exec>
SK_HD void read_part(Exec& exec, const ProxLists<T>& op, const ProxView<T>& view, const Tile& tile,
                     int64_t group, int64_t begin, int64_t end, float norm, bool first) {
  exec.run([&](int thread, ProxThread& state) SK_INLINED {
    const float threshold =
        exec.memory.load(op.thresholds + 4 * int64_t(view.tensor()) + tile.kind);
    const float factor = op.functor.factor(norm, threshold);
    if (first && thread == 0) {
      tally_group(exec.memory, op, view, group, tile.kind, norm, state);
    }
    SK_UNROLL(1)
    for (int64_t at = begin + kQuad * thread; at < end; at += kLanes) {
      const Quad quad = quad_of(view, tile, at, end);
      float theta[kQuad];
      load_quad(exec.memory, view, quad, theta);
      SK_UNROLLED
      for (int i = 0; i < kQuad; ++i) theta[i] = op.functor.readout(theta[i], factor);
      store_quad(exec.memory, view, quad, theta, state);
    }
  });
}

// Small groups; blocks of other tensors have nothing to do.
template <class T, class Exec>
SK_HD void prox_small_block(Exec& exec, const ProxLists<T>& op, const ProxTable<T>& table,
                            const ProxOutputs& out, int32_t number) {
  const ProxView<T> view(table, number);
  const Tiling tiling = view.tiling();
  if (tiling.entries() > kLanes) return;
  clear_tally(exec);
  small_groups(exec, op, view, tiling, number - table.first_chunk[view.row]);
  reduce_tally(exec, op, out, table.chunk + number, view.tensor());
}

// All of a group of at most a chunk, the sum of a chunk of a larger one.
template <class T, class Exec>
SK_HD void prox_group_block(Exec& exec, const ProxLists<T>& op, const ProxTable<T>& table,
                            const ProxOutputs& out, int32_t number) {
  const ProxView<T> view(table, number);
  const Tiling tiling = view.tiling();
  if (tiling.entries() <= kLanes) return;
  const int64_t block = number - table.first_chunk[view.row];
  const int64_t chunks = chunks_of(tiling.entries()), group = divide(block, chunks).whole;
  const Tile tile = tiling.tile(group);
  const int64_t begin = (block - group * chunks) * kChunkSize, left = tile.entries() - begin;
  sum_part(exec, op, view, tile, begin, begin + (left < kChunkSize ? left : kChunkSize));
  const float sum = exec.memory.load(exec.shared.x);
  if (chunks > 1) {
    exec.run([&](int thread, ProxThread&) SK_INLINED {
      if (thread == 0) exec.memory.store(out.sums + table.chunk + number, double(sum));
    });
    return;
  }
  clear_tally(exec);
  read_part(exec, op, view, tile, group, 0, tile.entries(), sk::sqrt(sum), true);
  reduce_tally(exec, op, out, table.chunk + number, view.tensor());
}

// Afterwards: the readout of a chunk of a group of more than one.
template <class T, class Exec>
SK_HD void prox_large_block(Exec& exec, const ProxLists<T>& op, const ProxTable<T>& table,
                            const ProxOutputs& out, int32_t number) {
  const ProxView<T> view(table, number);
  const Tiling tiling = view.tiling();
  const int64_t block = number - table.first_chunk[view.row], n = tiling.entries();
  if (n <= kChunkSize) return;
  const int64_t chunks = chunks_of(n), group = divide(block, chunks).whole;
  const int64_t chunk = block - group * chunks;
  const Tile tile = tiling.tile(group);
  const int64_t begin = chunk * kChunkSize, left = tile.entries() - begin;
  finish_block(exec, out.sums + table.chunk + number - chunk, chunks_of(tile.entries()),
               {&exec.shared.total, nullptr, nullptr});
  exec.barrier();
  clear_tally(exec);
  const float norm = float(sk::sqrt(exec.memory.load(&exec.shared.total)));
  read_part(exec, op, view, tile, group, begin, begin + (left < kChunkSize ? left : kChunkSize),
            norm, chunk == 0);
  reduce_tally(exec, op, out, table.chunk + number, view.tensor());
}

// The last launch: a block per tensor of the table adds the values of its blocks.
template <class T, class Exec>
SK_HD void prox_value_block(Exec& exec, const ProxTable<T>& table, const double* values,
                            double* value, int32_t row) {
  const int32_t first = table.first_chunk[row];
  finish_block(exec, values + table.chunk + first, table.first_chunk[row + 1] - first,
               {value + table.tensor + row, nullptr, nullptr});
}

}  // namespace sk::phases
