"""mask_pack_, mask_unpack_: bool tensors to one bit an element, and back.

Bit i (least significant first) of word w is element 32 w + i; padding bits are 0.
Twins: reference/mask_pack.py, csrc/functors/mask_pack.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import TILE, address_table, launch, locate, make_plan, pack_bits, pointer_to


@triton.jit
def _mask_pack_kernel(
    masks_ptr, words_ptr, rows_ptr, numels_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    mask_ptr = pointer_to(masks_ptr, tensor, first, tl.uint8)
    word_ptr = pointer_to(words_ptr, tensor, first // 32, tl.int32)
    lanes, words = tl.arange(0, BLOCK), tl.arange(0, BLOCK // 32)
    for block in range(0, count, BLOCK):
        flags = tl.load(mask_ptr + block + lanes, mask=block + lanes < count, other=0)
        here = block + 32 * words < count
        tl.store(word_ptr + block // 32 + words, pack_bits(flags != 0), mask=here)


@triton.jit
def _mask_unpack_kernel(
    words_ptr, masks_ptr, rows_ptr, numels_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    mask_ptr = pointer_to(masks_ptr, tensor, first, tl.uint8)
    word_ptr = pointer_to(words_ptr, tensor, first // 32, tl.int32)
    lanes = tl.arange(0, BLOCK)
    for block in range(0, count, BLOCK):
        offsets = block + lanes
        inside = offsets < count
        words = tl.load(word_ptr + (offsets >> 5), mask=inside, other=0)
        tl.store(mask_ptr + offsets, ((words >> (offsets & 31)) & 1).to(tl.uint8), mask=inside)


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
            address_table(masks), plan.rows, plan.numels, SIZE=TILE, BLOCK=2048, num_warps=8,
        )  # fmt: skip
