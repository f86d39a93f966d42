"""grad_norm: global 2-norm of a list, dense, masked, or weighted by the parameters (ASAM).

    partial[c] = sum over chunk c of x^2,  x = m g  or  m (|w| + eta) g;   norm = sqrt(sum partial)

Source: SAM, arXiv 2010.01412, eq. (2); ASAM, arXiv 2102.11600. The partial sums then a finishing
program follow NVIDIA/apex csrc/multi_tensor_l2norm_kernel.cu. Twins: reference/norm.py,
csrc/functors/norm.h. Equal bits in float32: lanes, tree and chunks are added in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import (
    CHUNK,
    CHUNK_SIZE,
    ROW,
    address_table,
    f32,
    is_aligned,
    launch,
    locate,
    make_plan,
    pointer_to,
    storage_type,
    sum_in_order,
    tree_sum,
    whole_blocks,
)
from ._masks import load_where, mask_bits, mask_words, near_bits, spread_bits


@triton.jit
def _square(grads, weights, near, keep, eta, WEIGHTED: tl.constexpr):
    """Squares of one row, what is ``near`` loaded; one not to ``keep`` counts as +0.0."""
    x = load_where(grads, near).to(tl.float32)
    if WEIGHTED:
        x = (tl.abs(load_where(weights, near).to(tl.float32)) + eta) * x
    return x * x if keep is None else tl.where(keep, x * x, 0.0)


@triton.jit(do_not_specialize=["eta"])
def _grad_norm_kernel(
    grads_ptr,
    masks_ptr,
    weights_ptr,
    rows_ptr,
    numels_ptr,
    partials_ptr,
    eta,
    TYPE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    tensor, first, count = locate(rows_ptr, numels_ptr, CHUNK)
    grad_ptr = pointer_to(grads_ptr, tensor, first, TYPE)
    aligned = is_aligned(grad_ptr)
    weight_ptr = grad_ptr
    if WEIGHTED:
        weight_ptr = pointer_to(weights_ptr, tensor, first, TYPE)
        aligned = aligned & is_aligned(weight_ptr)
    lanes = tl.arange(0, ROW)
    acc = tl.zeros((ROW,), tl.float32)
    words_ptr = pointer_to(masks_ptr, tensor, first // 32, tl.int32) if HAS_MASK else grad_ptr
    done = whole_blocks(count, aligned, ROW)
    for row in range(0, done, ROW):
        near, keep = None, None
        if HAS_MASK:
            words = mask_words(words_ptr, row, count, ROW)
            near, keep = near_bits(words, TYPE), spread_bits(words)
        g16 = tl.multiple_of(grad_ptr + row, 16)
        w16 = tl.multiple_of(weight_ptr + row, 16)
        acc += _square(g16 + lanes, w16 + lanes, near, keep, eta, WEIGHTED)
    # rows past the end would add +0.0 to sums that are never -0.0, so they are left out
    for row in range(done, count, ROW):
        offsets = row + lanes
        keep = offsets < count
        if HAS_MASK:
            keep = mask_bits(words_ptr, offsets, keep)
        acc += _square(grad_ptr + offsets, weight_ptr + offsets, keep, keep, eta, WEIGHTED)
    tl.store(partials_ptr + tl.program_id(0), tree_sum(acc))


def grad_norm_triton(
    grads: list[Tensor], masks: list[Tensor], weights: list[Tensor], eta: float, squared: bool
) -> Tensor:
    """Norm (float32), or its square (float64), as a 0-dim tensor on the device of the list."""
    device = grads[0].device
    out = torch.zeros((), dtype=torch.float64 if squared else torch.float32, device=device)
    plan = make_plan(grads, CHUNK_SIZE)
    if plan.programs == 0:
        return out
    partials = torch.empty((1, plan.programs), dtype=torch.float32, device=device)
    launch(
        _grad_norm_kernel, (plan.programs,), device,
        address_table(grads), address_table(masks), address_table(weights), plan.rows, plan.numels,
        partials, f32(eta), TYPE=storage_type(grads[0].dtype), HAS_MASK=bool(masks),
        WEIGHTED=bool(weights), num_warps=8,
    )  # fmt: skip
    sum_in_order(partials, out, root=not squared)
    return out
