// Sums in the order of core/reduce.h: lanes of a chunk joined by a tree in shared memory, chunk
// partials added one after the other in double.
#pragma once

#include <cstdint>

#include "../core/math.h"
#include "table.h"

namespace sk::phases {

// lanes[0] <- the tree sum of `count` lanes (a power of two); lanes are written before, and a
// barrier has passed.
template <class Exec, class T>
SK_HD void join_in_shared(Exec& exec, T* lanes, int count) {
  for (int width = count / 2; width > 0; width /= 2) {
    exec.run([&](int thread, auto&) SK_INLINED {
      for (int i = thread; i < width; i += kThreads) {
        exec.memory.store(lanes + i,
                          exec.memory.load(lanes + i) + exec.memory.load(lanes + i + width));
      }
    });
    exec.barrier();
  }
}

// Where a finishing block puts its total.
struct Total {
  double* wide;       // the sum; null where not wanted
  double* transpose;  // once more (zo_gram), or null
  float* root;        // its square root, rounded to float, or null
};

struct FinishShared {
  double values[kThreads];
};
struct FinishThread {
  double total;
};

// One block: partials[0 .. count) added in order. All threads fetch, the first one adds.
template <class Exec>
SK_HD void finish_block(Exec& exec, const double* partials, int64_t count, const Total& out) {
  double* values = exec.shared.values;
  exec.run([&](int, FinishThread& state) SK_INLINED { state.total = 0; });
  for (int64_t first = 0; first < count; first += kThreads) {
    exec.run([&](int thread, FinishThread&) SK_INLINED {
      if (first + thread < count) {
        exec.memory.store(values + thread, exec.memory.load(partials + first + thread));
      }
    });
    exec.barrier();
    exec.run([&](int thread, FinishThread& state) SK_INLINED {
      if (thread != 0) return;
      const int here = int(count - first < kThreads ? count - first : int64_t(kThreads));
      for (int i = 0; i < here; ++i) state.total = state.total + exec.memory.load(values + i);
    });
    exec.barrier();
  }
  exec.run([&](int thread, FinishThread& state) SK_INLINED {
    if (thread != 0) return;
    if (out.wide) exec.memory.store(out.wide, state.total);
    if (out.transpose && out.transpose != out.wide) exec.memory.store(out.transpose, state.total);
    if (out.root) exec.memory.store(out.root, float(sk::sqrt(state.total)));
  });
}

}  // namespace sk::phases
