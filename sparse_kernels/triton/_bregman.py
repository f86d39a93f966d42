"""Kernels of linbreg_step_ and adabreg_step_; mathematics and source in bregman_step.py.

Each kernel has two loops over the blocks of its program. In the first every block is full and every
tensor 16-byte aligned: whole blocks, no masks, 16-byte accesses. The second takes the rest, and
everything where entries are inactive: those are neither loaded nor stored.
"""

import math

import triton
import triton.language as tl

from ._launch import (
    is_aligned,
    locate,
    narrow,
    pointer_to,
    whole_blocks,
)
from ._masks import mask_bits


@triton.jit
def _load(pointer, offsets, keep, WHOLE: tl.constexpr):
    """float32 values (int32 stay int32); 0 where ``keep`` is off, unless all is loaded."""
    x = tl.load(pointer + offsets) if WHOLE else tl.load(pointer + offsets, mask=keep, other=0)
    return x if x.dtype == tl.int32 else x.to(tl.float32)


@triton.jit
def _store(pointer, offsets, value, keep, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(pointer + offsets, value)
    else:
        tl.store(pointer + offsets, value, mask=keep)


def lower_bound(lam: float, nonnegative: bool) -> float:
    """Lower end of what a shrinkage subtracts."""
    return -math.inf if nonnegative else -lam


@triton.jit
def shrink(dual, lower, lam):
    """Soft threshold; within the bounds +0.0 by choice: -inf - -inf would be NaN."""
    rest = dual - tl.where(dual >= lower, lam, lower)
    return tl.where((dual >= lower) & (dual <= lam), 0.0, rest)


@triton.jit
def _changing(scalars_ptr, lower):
    """lam, decay and the lower bound by the device's own scalars; -inf stays."""
    lam = tl.load(scalars_ptr)
    return lam, tl.load(scalars_ptr + 1), tl.where(lower > -float("inf"), -lam, lower)


@triton.jit
def _begin(param_ptr, dual_ptr, offsets, keep, lam, lower, delta, HAS_DUAL, READOUT, WHOLE):
    """The dual, the parameter it stands for, and what is 0 where the entry is inactive."""
    if HAS_DUAL and READOUT:  # the parameter is a function of its dual: it is written only
        dual = _load(dual_ptr, offsets, keep, WHOLE)
        shrunk = shrink(dual, lower, lam)
        return dual, delta * shrunk, shrunk
    param = _load(param_ptr, offsets, keep, WHOLE)
    if HAS_DUAL:
        return _load(dual_ptr, offsets, keep, WHOLE), param, param
    return param, param, param


@triton.jit
def _decayed(dual, theta, decay):
    # a choice, not a product with 0: that would turn -0.0 into +0.0 and spread NaN
    return tl.where(decay != 0.0, dual - decay * theta, dual)


@triton.jit
def _stepped(old, theta, shrunk, moved, lam, lower, decay, leak, fine_scale, DECAY_FIRST, HAS_DUAL):
    """The dual after the step, and after what inactive entries do beside it."""
    scaled = moved
    if HAS_DUAL:
        scaled = tl.where(shrunk == 0.0, fine_scale * moved, moved)
    if DECAY_FIRST:
        dual = _decayed(old, theta, decay) - scaled
    else:
        dual = _decayed(old - scaled, theta, decay)
    if HAS_DUAL:  # noqa: SIM102  # of the compilation; the next one of the whole program
        if (leak != 0.0) | (fine_scale != 1.0):  # choices alone spill
            rested = tl.where(leak != 0.0, dual - leak * old, dual)
            low, high = lower - tl.abs(moved), lam + tl.abs(moved)
            capped = tl.where(rested < low, low, tl.where(rested > high, high, rested))
            rested = tl.where(fine_scale != 1.0, capped, rested)
            dual = tl.where(shrunk == 0.0, rested, dual)
    return dual


@triton.jit
def _finish(
    param_ptr, dual_ptr, offsets, keep, dual, lam, lower, delta, TYPE, HAS_DUAL, READOUT, WHOLE
):  # fmt: skip
    """Store the dual and its readout; 1 per live entry among those written."""
    if HAS_DUAL:
        _store(dual_ptr, offsets, dual, keep, WHOLE)
        if not READOUT:
            return tl.zeros(dual.shape, tl.int32)
    live = shrink(dual, lower, lam)
    if HAS_DUAL:
        dual = delta * live
    else:  # without a threshold a choice: the subtraction would turn -0.0 into +0.0
        live = tl.where((lam != 0.0) | (lower != 0.0), live, dual)
        dual = live
    _store(param_ptr, offsets, narrow(dual, TYPE), keep, WHOLE)
    counted = live != 0.0
    if not WHOLE:
        counted = counted & keep
    return counted.to(tl.int32)


@triton.jit
def _linbreg_block(
    param_ptr, grad_ptr, dual_ptr, buffer_ptr, offsets, keep,
    lam, lower, delta, momentum, gain, step, decay, leak, fine_scale, sign,
    TYPE: tl.constexpr, HAS_DUAL: tl.constexpr, READOUT: tl.constexpr, HAS_BUFFER: tl.constexpr,
    NESTEROV: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    direction = sign * _load(grad_ptr, offsets, keep, WHOLE)
    dual, theta, shrunk = _begin(
        param_ptr, dual_ptr, offsets, keep, lam, lower, delta, HAS_DUAL, READOUT, WHOLE
    )
    if HAS_BUFFER:
        buffer = momentum * _load(buffer_ptr, offsets, keep, WHOLE) + gain * direction
        _store(buffer_ptr, offsets, buffer, keep, WHOLE)
        direction = direction + momentum * buffer if NESTEROV else buffer
    dual = _stepped(
        dual, theta, shrunk, step * direction, lam, lower, decay, leak, fine_scale, False, HAS_DUAL
    )
    return _finish(
        param_ptr, dual_ptr, offsets, keep, dual, lam, lower, delta, TYPE, HAS_DUAL, READOUT, WHOLE
    )


@triton.jit(
    do_not_specialize=[
        "lam", "lower", "delta", "momentum", "gain", "step", "decay", "leak", "fine_scale", "sign",
        "scalars_ptr",
    ],
)  # fmt: skip
def _linbreg_step_kernel(
    params_ptr, grads_ptr, duals_ptr, buffers_ptr, active_ptr, rows_ptr, numels_ptr, live_ptr,
    lam, lower, delta, momentum, gain, step, decay, leak, fine_scale, sign, scalars_ptr,
    TYPE: tl.constexpr, HAS_DUAL: tl.constexpr, READOUT: tl.constexpr, HAS_BUFFER: tl.constexpr,
    HAS_ACTIVE: tl.constexpr, NESTEROV: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    if scalars_ptr is not None:
        lam, decay, lower = _changing(scalars_ptr, lower)
        step, gain = tl.load(scalars_ptr + 2), tl.load(scalars_ptr + 3)
    param = pointer_to(params_ptr, tensor, first, TYPE)
    grad = pointer_to(grads_ptr, tensor, first, TYPE)
    dual = pointer_to(duals_ptr, tensor, first, tl.float32) if HAS_DUAL else param
    buffer = pointer_to(buffers_ptr, tensor, first, tl.float32) if HAS_BUFFER else param
    lanes = tl.arange(0, BLOCK)
    live = tl.zeros((BLOCK,), tl.int32)
    done = 0
    if not HAS_ACTIVE:
        aligned = is_aligned(param) & is_aligned(grad) & is_aligned(dual) & is_aligned(buffer)
        done = whole_blocks(count, aligned, BLOCK)
        for block in range(0, done, BLOCK):
            p16, g16 = tl.multiple_of(param + block, 16), tl.multiple_of(grad + block, 16)
            d16, b16 = tl.multiple_of(dual + block, 16), tl.multiple_of(buffer + block, 16)
            live += _linbreg_block(
                p16, g16, d16, b16, lanes, None,
                lam, lower, delta, momentum, gain, step, decay, leak, fine_scale, sign,
                TYPE, HAS_DUAL, READOUT, HAS_BUFFER, NESTEROV, True,
            )  # fmt: skip
    for block in range(done, count, BLOCK):
        offsets = block + lanes
        keep = offsets < count
        if HAS_ACTIVE:
            words_ptr = pointer_to(active_ptr, tensor, first // 32, tl.int32)
            keep = mask_bits(words_ptr, offsets, keep)
        live += _linbreg_block(
            param, grad, dual, buffer, offsets, keep,
            lam, lower, delta, momentum, gain, step, decay, leak, fine_scale, sign,
            TYPE, HAS_DUAL, READOUT, HAS_BUFFER, NESTEROV, False,
        )  # fmt: skip
    tl.atomic_add(live_ptr + tensor, tl.sum(live, axis=0).to(tl.int64), sem="relaxed")


@triton.jit
def _adabreg_block(
    param_ptr, grad_ptr, dual_ptr, avg_ptr, square_ptr, count_ptr, offsets, keep,
    lam, lower, delta, rest1, beta2, rest2, eps, decay, leak, fine_scale, sign,
    step_size, bias2_sqrt, step_sizes_ptr, bias2_sqrts_ptr, last_row,
    TYPE: tl.constexpr, HAS_DUAL: tl.constexpr, READOUT: tl.constexpr, HAS_COUNTS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    g = sign * _load(grad_ptr, offsets, keep, WHOLE)
    a = _load(avg_ptr, offsets, keep, WHOLE)
    u = _load(square_ptr, offsets, keep, WHOLE)
    dual, theta, shrunk = _begin(
        param_ptr, dual_ptr, offsets, keep, lam, lower, delta, HAS_DUAL, READOUT, WHOLE
    )
    a = a + (g - a) * rest1
    u = u * beta2 + (rest2 * g) * g
    if HAS_COUNTS:
        n = _load(count_ptr, offsets, keep, WHOLE) + 1
        _store(count_ptr, offsets, n, keep, WHOLE)
        row = tl.where(n < last_row, n, last_row)
        step_size = tl.load(step_sizes_ptr + row)
        bias2_sqrt = tl.load(bias2_sqrts_ptr + row)
    _store(avg_ptr, offsets, a, keep, WHOLE)
    _store(square_ptr, offsets, u, keep, WHOLE)
    denominator = tl.math.div_rn(tl.math.sqrt_rn(u), bias2_sqrt) + eps
    moved = tl.math.div_rn(step_size * a, denominator)
    dual = _stepped(dual, theta, shrunk, moved, lam, lower, decay, leak, fine_scale, True, HAS_DUAL)
    return _finish(
        param_ptr, dual_ptr, offsets, keep, dual, lam, lower, delta, TYPE, HAS_DUAL, READOUT, WHOLE
    )


@triton.jit(
    do_not_specialize=[
        "lam", "lower", "delta", "rest1", "beta2", "rest2", "eps", "decay", "leak", "fine_scale",
        "sign", "step_size", "bias2_sqrt", "step_sizes_ptr", "bias2_sqrts_ptr", "last_row",
        "scalars_ptr",
    ],
)  # fmt: skip
def _adabreg_step_kernel(
    params_ptr, grads_ptr, duals_ptr, avgs_ptr, squares_ptr, counts_ptr, active_ptr, rows_ptr,
    numels_ptr, live_ptr,
    lam, lower, delta, rest1, beta2, rest2, eps, decay, leak, fine_scale, sign,
    step_size, bias2_sqrt, step_sizes_ptr, bias2_sqrts_ptr, last_row, scalars_ptr,
    TYPE: tl.constexpr, HAS_DUAL: tl.constexpr, READOUT: tl.constexpr, HAS_COUNTS: tl.constexpr,
    HAS_ACTIVE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    if scalars_ptr is not None:
        lam, decay, lower = _changing(scalars_ptr, lower)
        step_size, bias2_sqrt = tl.load(scalars_ptr + 2), tl.load(scalars_ptr + 3)
    param = pointer_to(params_ptr, tensor, first, TYPE)
    grad = pointer_to(grads_ptr, tensor, first, TYPE)
    avg = pointer_to(avgs_ptr, tensor, first, tl.float32)
    square = pointer_to(squares_ptr, tensor, first, tl.float32)
    dual = pointer_to(duals_ptr, tensor, first, tl.float32) if HAS_DUAL else param
    updates = pointer_to(counts_ptr, tensor, first, tl.int32) if HAS_COUNTS else avg
    lanes = tl.arange(0, BLOCK)
    live = tl.zeros((BLOCK,), tl.int32)
    done = 0
    if not HAS_ACTIVE:
        aligned = is_aligned(param) & is_aligned(grad) & is_aligned(dual)
        aligned = aligned & is_aligned(avg) & is_aligned(square) & is_aligned(updates)
        done = whole_blocks(count, aligned, BLOCK)
        for block in range(0, done, BLOCK):
            p16, g16 = tl.multiple_of(param + block, 16), tl.multiple_of(grad + block, 16)
            d16, n16 = tl.multiple_of(dual + block, 16), tl.multiple_of(updates + block, 16)
            a16, u16 = tl.multiple_of(avg + block, 16), tl.multiple_of(square + block, 16)
            live += _adabreg_block(
                p16, g16, d16, a16, u16, n16, lanes, None,
                lam, lower, delta, rest1, beta2, rest2, eps, decay, leak, fine_scale, sign,
                step_size, bias2_sqrt, step_sizes_ptr, bias2_sqrts_ptr, last_row,
                TYPE, HAS_DUAL, READOUT, HAS_COUNTS, True,
            )  # fmt: skip
    for block in range(done, count, BLOCK):
        offsets = block + lanes
        keep = offsets < count
        if HAS_ACTIVE:
            words_ptr = pointer_to(active_ptr, tensor, first // 32, tl.int32)
            keep = mask_bits(words_ptr, offsets, keep)
        live += _adabreg_block(
            param, grad, dual, avg, square, updates, offsets, keep,
            lam, lower, delta, rest1, beta2, rest2, eps, decay, leak, fine_scale, sign,
            step_size, bias2_sqrt, step_sizes_ptr, bias2_sqrts_ptr, last_row,
            TYPE, HAS_DUAL, READOUT, HAS_COUNTS, False,
        )  # fmt: skip
    tl.atomic_add(live_ptr + tensor, tl.sum(live, axis=0).to(tl.int64), sem="relaxed")
