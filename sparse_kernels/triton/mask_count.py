"""mask_count_: ones of a bit mask, per tile of RANK_TILE entries.

Twins: reference/mask_count.py, csrc/functors/mask_count.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import TILE, address_table, launch, locate, make_plan, pointer_to

_WORDS = TILE // 32  # words of a tile
_TILES = 8  # tiles of a program


@triton.jit
def _ones(words):
    """Bits set in uint32 words: sums of 2, 4 and 8 neighbours in place, then of the four bytes."""
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    return (words * 0x01010101) >> 24


@triton.jit
def _mask_count_kernel(
    words_ptr, counts_ptr, rows_ptr, numels_ptr, WORDS: tl.constexpr, TILES: tl.constexpr
):
    tensor, first, count = locate(rows_ptr, numels_ptr, TILES * WORDS)
    word_ptr = pointer_to(words_ptr, tensor, first, tl.uint32)
    count_ptr = pointer_to(counts_ptr, tensor, first // WORDS, tl.int64)
    tiles = tl.arange(0, TILES)
    offsets = tiles[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    ones = _ones(tl.load(word_ptr + offsets, mask=offsets < count, other=0))
    total = tl.sum(ones.to(tl.int32), axis=1).to(tl.int64)
    tl.store(count_ptr + tiles, total, mask=tiles * WORDS < count)


def mask_count_triton(words: list[Tensor], counts: list[Tensor]) -> None:
    """Write ``counts``, one launch for the list."""
    plan = make_plan(words, _TILES * _WORDS)
    if plan.programs:
        launch(
            _mask_count_kernel, (plan.programs,), words[0].device, address_table(words),
            address_table(counts), plan.rows, plan.numels, WORDS=_WORDS, TILES=_TILES, num_warps=4,
        )  # fmt: skip
