"""mask_count_: ones of a bit mask, per tile of RANK_TILE entries."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import RANK_TILE, keep_bits


def mask_count_ref(words: list[Tensor], counts: list[Tensor]) -> None:
    for word, count in zip(words, counts, strict=True):
        bits = keep_bits(word, 32 * word.numel())
        padded = torch.nn.functional.pad(bits, (0, count.numel() * RANK_TILE - bits.numel()))
        count.copy_(padded.reshape(-1, RANK_TILE).sum(1))
