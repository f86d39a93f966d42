// zo_key: the next step key of a random stream, by one thread. key <- K(seed, t, stream), then t
// + 1. The KDF: core/philox.h. Twins: sparse_kernels/reference/zo_key.py,
// sparse_kernels/triton/zo_key.py.
#pragma once

#include <cstdint>

#include "../core/philox.h"

namespace sk::phases {

struct KeyShared {};
struct KeyThread {};

template <class Exec>
SK_HD void key_block(Exec& exec, int64_t* key, int64_t* counter, const int64_t* seed,
                     uint32_t stream) {
  exec.run([&](int thread, KeyThread&) SK_INLINED {
    if (thread != 0) return;
    const auto t = uint64_t(exec.memory.load(counter));
    const auto s = uint64_t(exec.memory.load(seed));
    exec.memory.store(key, int64_t(derive_key(s, t, stream)));
    exec.memory.store(counter, int64_t(t + 1));
  });
}

}  // namespace sk::phases
