"""zo_key_: the next step key of a random stream, on the device."""

from __future__ import annotations

from torch import Tensor

from .philox import KDF_DIRECTION, MASK32, philox4x32


def zo_key_ref(key: Tensor, counter: Tensor, seed: Tensor, stream: int) -> None:
    t, s = counter.reshape(()), seed.reshape(())
    words = philox4x32(
        (t & MASK32, (t >> 32) & MASK32, stream, KDF_DIRECTION), (s & MASK32, (s >> 32) & MASK32)
    )
    key.copy_((words[0] | words[1] << 32).reshape(key.shape))
    counter.add_(1)
