"""restore_sgd_: the SGD step from the unperturbed parameters, with the gradient at w + e.

    w = the bits that restore_ would copy back
    g <- g + weight_decay w;  b <- momentum b + (1 - dampening) g, at the first step b = g
    param = w - lr b,  nesterov: w - lr (g + momentum b),  without momentum: w - lr g

Every sum is one fma, as torch.add(x, y, alpha=a) is: bit for bit the step of torch.optim.SGD.
Source: SGD of torch.optim, fused with the restore of SAM, arXiv 2010.01412. Twins:
reference/restore_sgd.py, csrc/functors/restore_sgd.h; equal bits in float32.
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
def _sgd_block(
    param, grad, buffer, saved, words, block, count, before, left, update,
    lr, momentum, gain, decay, sign, scale_ptr, TYPE: tl.constexpr, BITS: tl.constexpr,
    HAS_BUFFER: tl.constexpr, FIRST: tl.constexpr, NESTEROV: tl.constexpr, HAS_MASK: tl.constexpr,
    PACKED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Step of one block; the ones of the tile up to its end."""
    bits, before = original_bits(
        param, saved, words, block, count, before, left, HAS_MASK, PACKED, BLOCK, WHOLE
    )
    if update:  # a branch, not a mask: a mask would split the 16-byte stores
        w = floats_of(bits, TYPE)
        g = direction(grad, scale_ptr, sign, block, count, BLOCK, WHOLE)
        # a choice, not a product with 0: that would turn -0.0 into +0.0 and spread NaN
        g = tl.where(decay != 0.0, tl.fma(w, decay, g), g)
        if HAS_BUFFER:
            average = g
            if not FIRST:
                old = widen(load_block(buffer, block, count, BLOCK, WHOLE))
                average = tl.fma(g, gain, old * momentum)
            store_block(buffer, narrow(average, TYPE), block, count, BLOCK, WHOLE)
            g = tl.fma(average, momentum, g) if NESTEROV else average
        bits = bits_from(tl.fma(g, -lr, w), BITS, TYPE)
        store_block(param, bits, block, count, BLOCK, WHOLE)
    else:
        store_block(param, bits, block, count, BLOCK, WHOLE)
    return before


@triton.jit(do_not_specialize=[
    "packed", "lr", "momentum", "gain", "decay", "sign", "skip_ptr", "scale_ptr",
    "lr_ptr",
])  # fmt: skip
def _restore_sgd_kernel(
    params_ptr, grads_ptr, buffers_ptr, masks_ptr, backup_ptr, ranks_ptr, packed: tl.int64,
    rows_ptr, numels_ptr, lr, momentum, gain, decay, sign, skip_ptr, scale_ptr, lr_ptr,
    TYPE: tl.constexpr, BITS: tl.constexpr, HAS_BUFFER: tl.constexpr, FIRST: tl.constexpr,
    NESTEROV: tl.constexpr, HAS_MASK: tl.constexpr, PACKED: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    param = pointer_to(params_ptr, tensor, first, BITS)
    grad = pointer_to(grads_ptr, tensor, first, TYPE)
    buffer = pointer_to(buffers_ptr, tensor, first, TYPE) if HAS_BUFFER else grad
    words = pointer_to(masks_ptr, tensor, first // 32, tl.int32) if HAS_MASK else param
    saved, left = backup_of(backup_ptr, ranks_ptr, packed, tensor, first, SIZE, BITS, PACKED)
    if lr_ptr is not None:
        lr = tl.load(lr_ptr)
    update = True if skip_ptr is None else tl.load(skip_ptr) == 0.0
    aligned = is_aligned(param) & is_aligned(grad) & is_aligned(buffer)
    if not PACKED:
        aligned = aligned & is_aligned(saved)
    done, before = whole_blocks(count, aligned, BLOCK), 0
    for block in range(0, done, BLOCK):
        before = _sgd_block(
            param, grad, buffer, saved, words, block, count, before, left, update,
            lr, momentum, gain, decay, sign, scale_ptr, TYPE, BITS,
            HAS_BUFFER, FIRST, NESTEROV, HAS_MASK, PACKED, BLOCK, True,
        )  # fmt: skip
    for block in range(done, count, BLOCK):
        before = _sgd_block(
            param, grad, buffer, saved, words, block, count, before, left, update,
            lr, momentum, gain, decay, sign, scale_ptr, TYPE, BITS,
            HAS_BUFFER, FIRST, NESTEROV, HAS_MASK, PACKED, BLOCK, False,
        )  # fmt: skip


def restore_sgd_triton(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    masks: list[Tensor],
    backup: list[Tensor],
    ranks: list[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    first: bool,
    skip: Tensor | None,
    inv_scale: Tensor | None,
    device_lr: Tensor | None = None,
) -> None:
    """Restore and step in place, one launch for the list."""
    plan = make_plan(params, TILE)
    if plan.programs == 0:
        return
    launch(
        _restore_sgd_kernel, (plan.programs,), params[0].device,
        address_table(params), address_table(grads), address_table(momentum_buffers),
        address_table(masks), address_table(backup), address_table(ranks),
        packed_size(backup, ranks), plan.rows, plan.numels,
        *map(f32, (lr, momentum, 1.0 - dampening, weight_decay)), -1.0 if maximize else 1.0,
        skip, inv_scale, device_lr,
        TYPE=storage_type(params[0].dtype), BITS=bits_type(params[0].dtype),
        HAS_BUFFER=bool(momentum_buffers), FIRST=first, NESTEROV=nesterov, HAS_MASK=bool(masks),
        PACKED=bool(ranks), SIZE=TILE,
        BLOCK=1024, num_warps=8, maxnreg=64,
    )  # fmt: skip
