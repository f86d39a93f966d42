"""restore_: copy the backup back, bit for bit, where the mask bit is 1.

Integers of the element's size are copied, so that no NaN payload can change on the way.
Twins: reference/restore.py, csrc/functors/restore.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import (
    TILE,
    address_table,
    is_aligned,
    launch,
    locate,
    make_plan,
    mask_bits,
    pointer_to,
    storage_type,
    whole_blocks,
)


@triton.jit
def _restore_kernel(
    params_ptr,
    backup_ptr,
    masks_ptr,
    rows_ptr,
    numels_ptr,
    TYPE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    param_ptr = pointer_to(params_ptr, tensor, first, TYPE)
    saved_ptr = pointer_to(backup_ptr, tensor, first, TYPE)
    lanes = tl.arange(0, BLOCK)
    done = 0
    if not HAS_MASK:
        done = whole_blocks(count, is_aligned(param_ptr) & is_aligned(saved_ptr), BLOCK)
        for block in range(0, done, BLOCK):
            p16 = tl.multiple_of(param_ptr + block, 16)
            s16 = tl.multiple_of(saved_ptr + block, 16)
            tl.store(p16 + lanes, tl.load(s16 + lanes))
    for block in range(done, count, BLOCK):
        offsets = block + lanes
        keep = offsets < count
        if HAS_MASK:
            words_ptr = pointer_to(masks_ptr, tensor, first // 32, tl.int32)
            keep = mask_bits(words_ptr, offsets, keep)
        saved = tl.load(saved_ptr + offsets, mask=keep, other=0)
        tl.store(param_ptr + offsets, saved, mask=keep)


def restore_triton(
    params: list[Tensor], masks: list[Tensor], backup: list[Tensor], ranks: list[Tensor]
) -> None:
    """Copy ``backup`` into ``params``, in place, one launch for the list."""
    plan = make_plan(params, TILE)
    if plan.programs == 0:
        return
    wide = storage_type(params[0].dtype) == tl.float32
    launch(
        _restore_kernel, (plan.programs,), params[0].device,
        address_table(params), address_table(backup), address_table(masks), plan.rows, plan.numels,
        TYPE=tl.int32 if wide else tl.int16, HAS_MASK=bool(masks), SIZE=TILE, BLOCK=2048,
        num_warps=8,
    )  # fmt: skip
