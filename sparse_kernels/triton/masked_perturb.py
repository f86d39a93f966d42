"""masked_perturb_: the ascent step of (sparse, adaptive) sharpness-aware minimisation.

    scale = rho / (norm + eps);   param += m scale g   or   m scale ((|w| + eta)^2 g)

Source: SAM, arXiv 2010.01412, eq. (2); Sparse SAM, arXiv 2210.05177; ASAM, arXiv 2102.11600.
Where norm or scale is not finite the parameters keep their bits. Twins:
reference/masked_perturb.py, csrc/functors/masked_perturb.h; equal bits in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._backup import backup_of, packed_size, places_of
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
from ._masks import load_where, mask_bits, mask_words, near_bits, spread_bits


@triton.jit
def _perturbed(w, g, scale, eta, ADAPTIVE: tl.constexpr):
    w32, g32 = widen(w), widen(g)
    if ADAPTIVE:
        t = tl.abs(w32) + eta
        g32 = (t * t) * g32
    return narrow(w32 + scale * g32, w.dtype)


@triton.jit
def _whole_block(
    param_ptr, grad_ptr, words_ptr, saved_ptr, block, count, before, left, finite, scale, eta,
    HAS_MASK: tl.constexpr, HAS_BACKUP: tl.constexpr, PACKED: tl.constexpr,
    ADAPTIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A full block of 16-byte aligned tensors; the ones of the tile up to its end."""
    lanes = tl.arange(0, BLOCK)
    p16 = tl.multiple_of(param_ptr + block, 16) + lanes
    held, near = None, None
    if HAS_MASK:
        words = mask_words(words_ptr, block, count, BLOCK)
        held, near = spread_bits(words), near_bits(words, param_ptr.dtype.element_ty)
    # a whole copy holds entries that keep their value too
    w = load_where(p16, None if HAS_BACKUP and not PACKED else near)
    g = load_where(tl.multiple_of(grad_ptr + block, 16) + lanes, near)
    if PACKED:
        places, here, before = places_of(lanes, held, before, left, PACKED)
        tl.store(saved_ptr + places, w, mask=here)
    elif HAS_BACKUP:
        tl.store(tl.multiple_of(saved_ptr + block, 16) + lanes, w)
    if finite:  # a branch, not a mask: a mask would split the 16-byte store
        moved = _perturbed(w, g, scale, eta, ADAPTIVE)
        if HAS_MASK:
            tl.store(p16, tl.where(held, moved, w), mask=near)
        else:
            tl.store(p16, moved)
    return before


@triton.jit(do_not_specialize=["packed", "norm_ptr", "rho", "eta", "eps", "rho_ptr"])
def _masked_perturb_kernel(
    params_ptr,
    grads_ptr,
    masks_ptr,
    backup_ptr,
    ranks_ptr,
    packed: tl.int64,
    rows_ptr,
    numels_ptr,
    norm_ptr,
    rho,
    eta,
    eps,
    rho_ptr,
    TYPE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_BACKUP: tl.constexpr,
    PACKED: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    if rho_ptr is not None:
        rho = tl.load(rho_ptr)
    norm = tl.load(norm_ptr)
    scale = tl.math.div_rn(rho, norm + eps)
    # False for NaN as well; rho / inf is 0, and 0 * grad would still spread NaN
    finite = (tl.abs(scale) < float("inf")) & (tl.abs(norm) < float("inf"))
    written = tl.where(finite, count, 0)
    param_ptr = pointer_to(params_ptr, tensor, first, TYPE)
    grad_ptr = pointer_to(grads_ptr, tensor, first, TYPE)
    saved_ptr, left, words_ptr = param_ptr, 0, param_ptr
    if HAS_MASK:
        words_ptr = pointer_to(masks_ptr, tensor, first // 32, tl.int32)
    aligned = is_aligned(param_ptr) & is_aligned(grad_ptr)
    if HAS_BACKUP:
        saved_ptr, left = backup_of(
            backup_ptr, ranks_ptr, packed, tensor, first, SIZE, TYPE, PACKED
        )
        if not PACKED:
            aligned = aligned & is_aligned(saved_ptr)
    lanes = tl.arange(0, BLOCK)
    done, before = whole_blocks(count, aligned, BLOCK), 0
    for block in range(0, done, BLOCK):
        before = _whole_block(
            param_ptr, grad_ptr, words_ptr, saved_ptr, block, count, before, left, finite, scale,
            eta, HAS_MASK, HAS_BACKUP, PACKED, ADAPTIVE, BLOCK,
        )  # fmt: skip
    for block in range(done, count, BLOCK):
        offsets = block + lanes
        inside = offsets < count
        held = inside
        if HAS_MASK:
            held = mask_bits(words_ptr, offsets, inside)
        keep = held & (offsets < written)
        if not PACKED:
            held = inside  # a whole copy, of entries that keep their value too
        # what takes no part is not loaded: at low density whole sectors stay untouched
        w = tl.load(param_ptr + offsets, mask=held if HAS_BACKUP else keep, other=0.0)
        g = tl.load(grad_ptr + offsets, mask=keep, other=0.0)
        if HAS_BACKUP:
            places, held, before = places_of(offsets, held, before, left, PACKED)
            tl.store(saved_ptr + places, w, mask=held)
        tl.store(param_ptr + offsets, _perturbed(w, g, scale, eta, ADAPTIVE), mask=keep)


def masked_perturb_triton(
    params: list[Tensor],
    grads: list[Tensor],
    norm: Tensor,
    rho: float,
    masks: list[Tensor],
    backup: list[Tensor],
    ranks: list[Tensor],
    adaptive: bool,
    eta: float,
    eps: float,
    device_rho: Tensor | None = None,
) -> None:
    """Move ``params`` along the gradient, in place, one launch for the list."""
    plan = make_plan(params, TILE)
    if plan.programs == 0:
        return
    launch(
        _masked_perturb_kernel, (plan.programs,), params[0].device,
        address_table(params), address_table(grads), address_table(masks), address_table(backup),
        address_table(ranks), packed_size(backup, ranks), plan.rows, plan.numels,
        norm, f32(rho), f32(eta), f32(eps), device_rho,
        TYPE=storage_type(params[0].dtype), HAS_MASK=bool(masks), HAS_BACKUP=bool(backup),
        PACKED=bool(ranks), ADAPTIVE=adaptive, SIZE=TILE, BLOCK=1024 if ranks else 2048,
        num_warps=8,
    )  # fmt: skip
