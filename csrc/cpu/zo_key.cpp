#include <torch/csrc/stable/library.h>

#include "../core/philox.h"
#include "../torch/op_checks.h"

namespace sk::cpu {

void zo_key_cpu(Tensor key, Tensor counter, Tensor seed, int64_t stream) {
  check_zo_key(key, counter, seed, stream);
  auto* t = static_cast<int64_t*>(counter.data_ptr());
  const uint64_t s = uint64_t(*static_cast<const int64_t*>(seed.data_ptr()));
  *static_cast<int64_t*>(key.data_ptr()) = int64_t(derive_key(s, uint64_t(*t), uint32_t(stream)));
  *t = int64_t(uint64_t(*t) + 1);
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) { m.impl("zo_key_", TORCH_BOX(&zo_key_cpu)); }

}  // namespace sk::cpu
