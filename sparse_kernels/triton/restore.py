"""restore_: copy the backup back, bit for bit, where the mask bit is 1.

Integers of the element's size are copied, so that no NaN payload can change on the way.
Twins: reference/restore.py, csrc/functors/restore.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._backup import backup_of, bits_type, packed_size, places_of
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
from ._masks import mask_bits


@triton.jit(do_not_specialize=["packed"])
def _restore_kernel(
    params_ptr,
    masks_ptr,
    backup_ptr,
    ranks_ptr,
    packed: tl.int64,
    rows_ptr,
    numels_ptr,
    BITS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PACKED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    param_ptr = pointer_to(params_ptr, tensor, first, BITS)
    saved_ptr, left = backup_of(backup_ptr, ranks_ptr, packed, tensor, first, SIZE, BITS, PACKED)
    lanes = tl.arange(0, BLOCK)
    done, before = 0, 0
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
        places, keep, before = places_of(offsets, keep, before, left, PACKED)
        saved = tl.load(saved_ptr + places, mask=keep, other=0)
        tl.store(param_ptr + offsets, saved, mask=keep)


def restore_triton(
    params: list[Tensor], masks: list[Tensor], backup: list[Tensor], ranks: list[Tensor]
) -> None:
    """Copy ``backup`` into ``params``, in place, one launch for the list."""
    plan = make_plan(params, TILE)
    if plan.programs == 0:
        return
    launch(
        _restore_kernel, (plan.programs,), params[0].device,
        address_table(params), address_table(masks), address_table(backup), address_table(ranks),
        packed_size(backup, ranks), plan.rows, plan.numels, BITS=bits_type(params[0].dtype),
        HAS_MASK=bool(masks), PACKED=bool(ranks), SIZE=TILE, BLOCK=1024 if ranks else 2048,
        num_warps=8,
    )  # fmt: skip
