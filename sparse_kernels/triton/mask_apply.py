"""mask_apply_: +0.0 where the mask bit is 0; nothing is read but the mask.

Twins: reference/mask_apply.py, csrc/functors/mask_apply.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._backup import bits_type
from ._launch import TILE, address_table, launch, locate, make_plan, pointer_to
from ._masks import mask_bits


@triton.jit
def _mask_apply_kernel(
    tensors_ptr, masks_ptr, rows_ptr, numels_ptr, BITS: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    target_ptr = pointer_to(tensors_ptr, tensor, first, BITS)
    words_ptr = pointer_to(masks_ptr, tensor, first // 32, tl.int32)
    for block in range(0, count, BLOCK):
        offsets = block + tl.arange(0, BLOCK)
        inside = offsets < count
        dead = inside & ~mask_bits(words_ptr, offsets, inside)
        tl.store(target_ptr + offsets, tl.zeros((BLOCK,), BITS), mask=dead)


def mask_apply_triton(tensors: list[Tensor], masks: list[Tensor]) -> None:
    """Zero in place, one launch for the list."""
    plan = make_plan(tensors, TILE)
    if plan.programs:
        launch(
            _mask_apply_kernel, (plan.programs,), tensors[0].device, address_table(tensors),
            address_table(masks), plan.rows, plan.numels, BITS=bits_type(tensors[0].dtype),
            SIZE=TILE, BLOCK=2048, num_warps=8,
        )  # fmt: skip
