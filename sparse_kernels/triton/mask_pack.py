"""mask_pack_, mask_unpack_: bool tensors to one bit an element, and back.

Bit i (least significant first) of word w is element 32 w + i; padding bits are 0.
Twins: reference/mask_pack.py, csrc/functors/mask_pack.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._backup import load_block, store_block
from ._launch import (
    TILE,
    address_table,
    is_aligned,
    launch,
    locate,
    make_plan,
    pointer_to,
    whole_blocks,
)
from ._masks import mask_words, pack_bits, spread_bits


@triton.jit
def _mask_pack_kernel(
    masks_ptr, words_ptr, rows_ptr, numels_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    mask_ptr = pointer_to(masks_ptr, tensor, first, tl.uint8)
    word_ptr = pointer_to(words_ptr, tensor, first // 32, tl.int32)
    words = tl.arange(0, BLOCK // 32)
    done = whole_blocks(count, is_aligned(mask_ptr), BLOCK)
    for block in range(0, done, BLOCK):
        flags = load_block(mask_ptr, block, count, BLOCK, True)
        tl.store(word_ptr + block // 32 + words, pack_bits(flags != 0))
    for block in range(done, count, BLOCK):
        flags = load_block(mask_ptr, block, count, BLOCK, False)
        here = block + 32 * words < count
        tl.store(word_ptr + block // 32 + words, pack_bits(flags != 0), mask=here)


@triton.jit
def _mask_unpack_kernel(
    words_ptr, masks_ptr, rows_ptr, numels_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    mask_ptr = pointer_to(masks_ptr, tensor, first, tl.uint8)
    word_ptr = pointer_to(words_ptr, tensor, first // 32, tl.int32)
    done = whole_blocks(count, is_aligned(mask_ptr), BLOCK)
    for block in range(0, done, BLOCK):
        flags = spread_bits(mask_words(word_ptr, block, count, BLOCK)).to(tl.uint8)
        store_block(mask_ptr, flags, block, count, BLOCK, True)
    for block in range(done, count, BLOCK):
        flags = spread_bits(mask_words(word_ptr, block, count, BLOCK)).to(tl.uint8)
        store_block(mask_ptr, flags, block, count, BLOCK, False)


def mask_pack_triton(masks: list[Tensor], words: list[Tensor]) -> None:
    """Pack ``masks`` into ``words``, one launch for the list."""
    plan = make_plan(masks, TILE)
    if plan.programs:
        launch(
            _mask_pack_kernel, (plan.programs,), masks[0].device, address_table(masks),
            address_table(words), plan.rows, plan.numels, SIZE=TILE, BLOCK=2048, num_warps=4,
        )  # fmt: skip


def mask_unpack_triton(words: list[Tensor], masks: list[Tensor]) -> None:
    """Unpack ``words`` into ``masks``, one launch for the list."""
    plan = make_plan(masks, TILE)
    if plan.programs:
        launch(
            _mask_unpack_kernel, (plan.programs,), masks[0].device, address_table(words),
            address_table(masks), plan.rows, plan.numels, SIZE=TILE, BLOCK=2048, num_warps=4,
        )  # fmt: skip
