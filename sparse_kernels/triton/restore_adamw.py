"""restore_adamw_: the Adam(W) step from the unperturbed parameters, with the gradient at w + e.

    w = the bits that restore_ would copy back
    w <- (1 - lr weight_decay) w  (decoupled),  or  g <- g + weight_decay w
    a <- a + (1 - beta1)(g - a),  u <- beta2 u + (1 - beta2) g^2
    param = w - step_size a / (sqrt(u) / bias2_sqrt + eps)

Source: AdamW, arXiv 1711.05101, fused with the restore of SAM, arXiv 2010.01412. Twins:
reference/restore_adamw.py, csrc/functors/restore_adamw.h; equal bits in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._backup import (
    backup_of,
    bits_from,
    bits_type,
    direction,
    floats_of,
    load_block,
    original_bits,
    packed_size,
    store_block,
)
from ._launch import (
    TILE,
    address_table,
    f32,
    is_aligned,
    launch,
    locate,
    make_plan,
    narrow,
    pointer_to,
    storage_type,
    whole_blocks,
    widen,
)


@triton.jit
def _adamw_block(
    param, grad, avg, square, saved, words, block, count, before, left, update,
    shrink, rest1, beta2, rest2, eps, decay, sign, scale_ptr, step_size, bias2_sqrt,
    TYPE: tl.constexpr, BITS: tl.constexpr, DECOUPLED: tl.constexpr, HAS_MASK: tl.constexpr,
    PACKED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Step of one block; the ones of the tile up to its end."""
    bits, before = original_bits(
        param, saved, words, block, count, before, left, HAS_MASK, PACKED, BLOCK, WHOLE
    )
    if update:  # a branch, not a mask: a mask would split the 16-byte stores
        w = floats_of(bits, TYPE)
        g = direction(grad, scale_ptr, sign, block, count, BLOCK, WHOLE)
        if DECOUPLED:
            w = w * shrink
        else:  # a choice, not a product with 0: that would turn -0.0 into +0.0 and spread NaN
            g = tl.where(decay != 0.0, g + decay * w, g)
        a = widen(load_block(avg, block, count, BLOCK, WHOLE))
        u = widen(load_block(square, block, count, BLOCK, WHOLE))
        a = a + (g - a) * rest1
        u = u * beta2 + (rest2 * g) * g
        store_block(avg, narrow(a, TYPE), block, count, BLOCK, WHOLE)
        store_block(square, narrow(u, TYPE), block, count, BLOCK, WHOLE)
        denominator = tl.math.div_rn(tl.math.sqrt_rn(u), bias2_sqrt) + eps
        bits = bits_from(w - tl.math.div_rn(step_size * a, denominator), BITS, TYPE)
        store_block(param, bits, block, count, BLOCK, WHOLE)
    else:
        store_block(param, bits, block, count, BLOCK, WHOLE)
    return before


@triton.jit(do_not_specialize=[
    "packed", "step_sizes_ptr", "bias2_sqrts_ptr", "shrink", "rest1", "beta2", "rest2", "eps",
    "decay", "sign", "skip_ptr", "scale_ptr", "shrink_ptr",
])  # fmt: skip
def _restore_adamw_kernel(
    params_ptr, grads_ptr, avgs_ptr, squares_ptr, masks_ptr, backup_ptr, ranks_ptr,
    packed: tl.int64, rows_ptr, numels_ptr, step_sizes_ptr, bias2_sqrts_ptr,
    shrink, rest1, beta2, rest2, eps, decay, sign, skip_ptr, scale_ptr, shrink_ptr,
    TYPE: tl.constexpr, BITS: tl.constexpr, DECOUPLED: tl.constexpr, HAS_MASK: tl.constexpr,
    PACKED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    param = pointer_to(params_ptr, tensor, first, BITS)
    grad = pointer_to(grads_ptr, tensor, first, TYPE)
    avg = pointer_to(avgs_ptr, tensor, first, TYPE)
    square = pointer_to(squares_ptr, tensor, first, TYPE)
    words = pointer_to(masks_ptr, tensor, first // 32, tl.int32) if HAS_MASK else param
    saved, left = backup_of(backup_ptr, ranks_ptr, packed, tensor, first, SIZE, BITS, PACKED)
    step_size = tl.load(step_sizes_ptr + tensor)
    bias2_sqrt = tl.load(bias2_sqrts_ptr + tensor)
    if shrink_ptr is not None:
        shrink = tl.load(shrink_ptr)
    update = True if skip_ptr is None else tl.load(skip_ptr) == 0.0
    aligned = is_aligned(param) & is_aligned(grad) & is_aligned(avg) & is_aligned(square)
    if not PACKED:
        aligned = aligned & is_aligned(saved)
    done, before = whole_blocks(count, aligned, BLOCK), 0
    for block in range(0, done, BLOCK):
        before = _adamw_block(
            param, grad, avg, square, saved, words, block, count, before, left, update,
            shrink, rest1, beta2, rest2, eps, decay, sign, scale_ptr, step_size, bias2_sqrt,
            TYPE, BITS, DECOUPLED, HAS_MASK, PACKED, BLOCK, True,
        )  # fmt: skip
    for block in range(done, count, BLOCK):
        before = _adamw_block(
            param, grad, avg, square, saved, words, block, count, before, left, update,
            shrink, rest1, beta2, rest2, eps, decay, sign, scale_ptr, step_size, bias2_sqrt,
            TYPE, BITS, DECOUPLED, HAS_MASK, PACKED, BLOCK, False,
        )  # fmt: skip


def restore_adamw_triton(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masks: list[Tensor],
    backup: list[Tensor],
    ranks: list[Tensor],
    step_sizes: Tensor,
    bias2_sqrts: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    skip: Tensor | None,
    inv_scale: Tensor | None,
    device_shrink: Tensor | None = None,
) -> None:
    """Restore and step in place, one launch for the list."""
    plan = make_plan(params, TILE)
    if plan.programs == 0:
        return
    decay = f32(weight_decay)
    shrink = 1.0 - lr * weight_decay if decay != 0.0 else 1.0
    launch(
        _restore_adamw_kernel, (plan.programs,), params[0].device,
        address_table(params), address_table(grads), address_table(exp_avgs),
        address_table(exp_avg_sqs), address_table(masks), address_table(backup),
        address_table(ranks), packed_size(backup, ranks), plan.rows, plan.numels,
        step_sizes, bias2_sqrts,
        *map(f32, (shrink, 1.0 - beta1, beta2, 1.0 - beta2, eps)), decay,
        -1.0 if maximize else 1.0, skip, inv_scale, device_shrink,
        TYPE=storage_type(params[0].dtype), BITS=bits_type(params[0].dtype), DECOUPLED=decoupled,
        HAS_MASK=bool(masks), PACKED=bool(ranks), SIZE=TILE,
        BLOCK=1024, num_warps=8,
        maxnreg=72 if masks and not ranks else 64,  # with fewer it would spill
    )  # fmt: skip
