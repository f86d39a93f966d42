"""What a selection ranks by: an unsigned integer per entry, larger is better.

``value``: the score in its order, NaN below -inf, -0.0 equal to +0.0. ``abs``: |score|.
``random``: word g mod 4 of Philox block g // 4 under the key, for the global index g of the entry;
of the scores only numel, dtype and device count. Keys have 32 bits, 64 for float64 values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox

_HASH_BLOCKS = 1 << 18  # counter blocks hashed at once
_SIGN64 = torch.iinfo(torch.int64).min


def key_bits(dtype: torch.dtype, kind: str) -> int:
    """Bits of a key for scores of ``dtype``."""
    return 64 if dtype == torch.float64 and kind != "random" else 32


def _random(key: Tensor, first: int, count: int) -> Tensor:
    start, stop = first // 4, -(-(first + count) // 4)
    parts = [
        philox.words(
            key, 0, 0, torch.arange(b, min(b + _HASH_BLOCKS, stop), device=key.device), 10
        ).reshape(-1)
        for b in range(start, stop, _HASH_BLOCKS)
    ]
    words = torch.cat(parts) if parts else key.new_empty(0)
    return words[first - 4 * start :][:count]


def ordered_keys(score: Tensor, kind: str, key: Tensor | None, first: int) -> Tensor:
    """Flat int64 keys of a tensor's entries; the bits of a 64-bit key stand in the int64."""
    if kind == "random":
        assert key is not None
        return _random(key, first, score.numel())
    x = score.reshape(-1)
    x = x if x.dtype == torch.float64 else x.float()
    x = x.abs() if kind == "abs" else x + 0.0  # -0.0 + 0.0 is +0.0
    if x.dtype == torch.float64:
        bits = x.view(torch.int64)
        keys = torch.where(bits < 0, ~bits, bits ^ _SIGN64)
    else:
        bits = x.view(torch.int32).long()
        keys = torch.where(bits < 0, ~bits, bits + 2**31)
    return torch.where(x.isnan(), 0, keys)


def value_of_key(key: Tensor, bits: int) -> Tensor:
    """The score whose key this is: float32 for 32 bits, float64 for 64; NaN for key 0."""
    if bits == 64:
        raw = torch.where(key < 0, key ^ _SIGN64, ~key)
        value = raw.view(torch.float64)
    else:
        raw = torch.where(key >= 2**31, key - 2**31, ~key)
        value = raw.to(torch.int32).view(torch.float32)
    return torch.where(key == 0, torch.nan, value)


def digit(keys: Tensor, shift: int, bits: int) -> Tensor:
    """``bits`` bits of the keys from bit ``shift`` on (a logical shift)."""
    return (keys >> shift) & ((1 << bits) - 1)


def greater(keys: Tensor, threshold: Tensor) -> Tensor:
    """Unsigned comparison."""
    return (keys ^ _SIGN64) > (threshold ^ _SIGN64)
