"""zo_key_: the next step key of a random stream, by one program.

Twins: reference/zo_key.py, derive_key in csrc/core/philox.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..reference.philox import KDF_DIRECTION
from . import philox
from ._launch import launch

_RESERVED: tl.constexpr = tl.constexpr(KDF_DIRECTION)


@triton.jit(do_not_specialize=["key_ptr", "counter_ptr", "seed_ptr", "stream"])
def _zo_key_kernel(key_ptr, counter_ptr, seed_ptr, stream):
    t = tl.load(counter_ptr)
    k0, k1 = philox.key_words(seed_ptr)
    low, high = t.to(tl.uint32), (t >> 32).to(tl.uint32)
    reserved = tl.full((), _RESERVED, tl.uint32)
    x0, x1, _, _ = philox.philox4x32(low, high, stream.to(tl.uint32), reserved, k0, k1, 10)
    key = x0.to(tl.uint64) | (x1.to(tl.uint64) << 32)
    tl.store(key_ptr, key.to(tl.int64, bitcast=True))
    tl.store(counter_ptr, t + 1)


def zo_key_triton(key: Tensor, counter: Tensor, seed: Tensor, stream: int) -> None:
    """Write the key of step ``counter`` and add one to it, one launch."""
    word = stream - 2**32 if stream >= 2**31 else stream  # one argument type for every stream
    launch(_zo_key_kernel, (1,), key.device, key, counter, seed, word)
