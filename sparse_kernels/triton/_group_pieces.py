"""Group shrinkage where a program has one group, or a chunk of one; see _groups.py."""

import triton
import triton.language as tl

from ._bregman import shrink
from ._groups import DEAD, factor_of, read_out, shape_of, tile_of, value_of
from ._launch import (
    CHUNK,
    ROW,
    add_in_order,
    is_aligned,
    locate,
    narrow,
    pointer_to,
    quotients,
    tree_sum,
)


@triton.jit
def _piece(group, start, rows, cols, tall, wide, TILED: tl.constexpr):
    """What there is of a group from its element ``start`` on, up to a chunk.

    Returns:
        First element, place in its line, elements, width, gap between lines, kind of the group.
    """
    begin, height, width, kind = tile_of(group, rows, cols, tall, wide, TILED)
    left = height * width - start
    count = tl.where(left < CHUNK, tl.where(left > 0, left, 0), CHUNK).to(tl.int32)
    line, gap = start // width, cols - width
    return begin + start + line * gap, start - line * width, count, width, gap, kind


@triton.jit
def _whole(param_ptr, dual_ptr, count, TILED: tl.constexpr):
    """Elements of a piece that go by 16-byte accesses: all of them or none."""
    if TILED:
        return 0
    fits = (count % 4 == 0) & is_aligned(param_ptr) & is_aligned(dual_ptr)
    return tl.where(fits, count, 0)


@triton.jit
def _row(pointer, row, rest, count, width, gap, TILED: tl.constexpr, WHOLE: tl.constexpr):
    """Pointers to a row of a piece, and which of its elements are there."""
    offsets = row + tl.arange(0, ROW)
    inside = offsets < count
    if WHOLE:
        pointers = tl.multiple_of(pointer + row, 16) + tl.arange(0, ROW)
        return pointers, tl.max_constancy(inside, 4)
    if TILED:
        return pointer + offsets + quotients(rest, offsets, width, CHUNK) * gap, inside
    return pointer + offsets, inside


@triton.jit
def _shrunk_row(dual_ptr, row, rest, count, width, gap, lower, lam, TILED, WHOLE):
    duals, inside = _row(dual_ptr, row, rest, count, width, gap, TILED, WHOLE)
    return shrink(tl.load(duals, mask=inside, other=0.0), lower, lam)


@triton.jit
def _sums(dual_ptr, done, rest, count, width, gap, lower, lam, TILED: tl.constexpr):
    """Sums of squares, in the order every backend uses, and of magnitudes, of a piece."""
    squares, magnitudes = tl.zeros((ROW,), tl.float32), tl.zeros((ROW,), tl.float32)
    for row in range(0, done, ROW):
        s = _shrunk_row(dual_ptr, row, rest, count, width, gap, lower, lam, TILED, True)
        squares += s * s
        magnitudes += tl.abs(s)
    for row in range(done, count, ROW):
        s = _shrunk_row(dual_ptr, row, rest, count, width, gap, lower, lam, TILED, False)
        squares += s * s
        magnitudes += tl.abs(s)
    return tree_sum(squares), tl.sum(magnitudes, axis=0)


@triton.jit
def _write_row(
    param_ptr, dual_ptr, row, rest, count, width, gap, factor, lower, lam, delta, TYPE, TILED, WHOLE
):
    s = _shrunk_row(dual_ptr, row, rest, count, width, gap, lower, lam, TILED, WHOLE)
    theta = read_out(s, factor, delta)
    params, inside = _row(param_ptr, row, rest, count, width, gap, TILED, WHOLE)
    tl.store(params, narrow(theta, TYPE), mask=inside)
    return (inside & (theta != 0.0)).to(tl.int32)


@triton.jit
def _write(
    param_ptr, dual_ptr, done, rest, count, width, gap, factor, lower, lam, delta,
    TYPE: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    """Read a piece out; its live entries."""
    live = tl.zeros((ROW,), tl.int32)
    for row in range(0, done, ROW):
        live += _write_row(
            param_ptr, dual_ptr, row, rest, count, width, gap, factor, lower, lam, delta,
            TYPE, TILED, True,
        )  # fmt: skip
    for row in range(done, count, ROW):
        live += _write_row(
            param_ptr, dual_ptr, row, rest, count, width, gap, factor, lower, lam, delta,
            TYPE, TILED, False,
        )  # fmt: skip
    return tl.sum(live, axis=0).to(tl.int64)


@triton.jit
def _report(alive_ptr, found_ptr, value_ptr, tensor, group, factor, value, HAS_ALIVE: tl.constexpr):
    """What is told of one group."""
    alive = factor != DEAD
    if HAS_ALIVE:
        tl.store(pointer_to(alive_ptr, tensor, group, tl.uint8), alive.to(tl.uint8))
    tl.store(value_ptr, value)
    tl.atomic_add(found_ptr + tensor, alive.to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["thresholds_ptr", "values_ptr", "lower", "lam", "delta"])
def _prox_group_kernel(
    params_ptr, duals_ptr, alive_ptr, shapes_ptr, thresholds_ptr, rows_ptr, groups_ptr,
    live_ptr, found_ptr, values_ptr, lower, lam, delta,
    TYPE: tl.constexpr, HAS_ALIVE: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    tensor, group, _ = locate(rows_ptr, groups_ptr, 1)
    rows, cols, tall, wide = shape_of(shapes_ptr, tensor)
    first, rest, count, width, gap, kind = _piece(group, 0 * group, rows, cols, tall, wide, TILED)
    dual_ptr = pointer_to(duals_ptr, tensor, first, tl.float32)
    param_ptr = pointer_to(params_ptr, tensor, first, TYPE)
    done = _whole(param_ptr, dual_ptr, count, TILED)
    total, magnitudes = _sums(dual_ptr, done, rest, count, width, gap, lower, lam, TILED)
    norm, threshold = tl.math.sqrt_rn(total), tl.load(thresholds_ptr + 4 * tensor + kind)
    factor = factor_of(norm, threshold)
    live = _write(
        param_ptr, dual_ptr, done, rest, count, width, gap, factor, lower, lam, delta, TYPE, TILED
    )
    tl.atomic_add(live_ptr + tensor, live, sem="relaxed")
    value = value_of(norm, threshold, factor, magnitudes, lam, delta)
    here = values_ptr + tl.program_id(0)
    _report(alive_ptr, found_ptr, here, tensor, group, factor, value, HAS_ALIVE)


@triton.jit
def _pieces(rows, tall, wide):
    """Chunks of a whole group of a tensor: of each, smaller ones at the far edges included."""
    return (tl.where(tall < rows, tall, rows) * wide + CHUNK - 1) // CHUNK


@triton.jit(do_not_specialize=["sums_ptr", "magnitudes_ptr", "lower", "lam"])
def _prox_sums_kernel(
    duals_ptr, shapes_ptr, rows_ptr, pieces_ptr, sums_ptr, magnitudes_ptr, lower, lam,
    TILED: tl.constexpr,
):  # fmt: skip
    tensor, number, _ = locate(rows_ptr, pieces_ptr, 1)
    rows, cols, tall, wide = shape_of(shapes_ptr, tensor)
    group = number // _pieces(rows, tall, wide)
    start = (number - group * _pieces(rows, tall, wide)) * CHUNK
    first, rest, count, width, gap, _ = _piece(group, start, rows, cols, tall, wide, TILED)
    dual_ptr = pointer_to(duals_ptr, tensor, first, tl.float32)
    done = _whole(dual_ptr, dual_ptr, count, TILED)
    total, magnitudes = _sums(dual_ptr, done, rest, count, width, gap, lower, lam, TILED)
    tl.store(sums_ptr + tl.program_id(0), total)
    tl.store(magnitudes_ptr + tl.program_id(0), magnitudes)


@triton.jit(
    do_not_specialize=[
        "thresholds_ptr", "sums_ptr", "magnitudes_ptr", "factors_ptr", "values_ptr", "lam", "delta",
    ],
)  # fmt: skip
def _prox_factors_kernel(
    alive_ptr, shapes_ptr, thresholds_ptr, rows_ptr, groups_ptr, firsts_ptr, sums_ptr,
    magnitudes_ptr, factors_ptr, found_ptr, values_ptr, lam, delta, HAS_ALIVE: tl.constexpr,
    TILED: tl.constexpr,
):  # fmt: skip
    tensor, group, _ = locate(rows_ptr, groups_ptr, 1)
    rows, cols, tall, wide = shape_of(shapes_ptr, tensor)
    kind = tile_of(group, rows, cols, tall, wide, TILED)[3]
    pieces = _pieces(rows, tall, wide)
    first = tl.load(firsts_ptr + tensor) + group * pieces
    norm = tl.sqrt(add_in_order(sums_ptr + first, pieces)).to(tl.float32)
    magnitudes = add_in_order(magnitudes_ptr + first, pieces)
    threshold = tl.load(thresholds_ptr + 4 * tensor + kind)
    factor = factor_of(norm, threshold)
    for piece in range(pieces):
        tl.store(factors_ptr + first + piece, factor)
    value = value_of(norm, threshold, factor, magnitudes, lam, delta)
    here = values_ptr + tl.program_id(0)
    _report(alive_ptr, found_ptr, here, tensor, group, factor, value, HAS_ALIVE)


@triton.jit(do_not_specialize=["factors_ptr", "lower", "lam", "delta"])
def _prox_write_kernel(
    params_ptr, duals_ptr, shapes_ptr, rows_ptr, pieces_ptr, factors_ptr, live_ptr, lower, lam,
    delta, TYPE: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    tensor, number, _ = locate(rows_ptr, pieces_ptr, 1)
    rows, cols, tall, wide = shape_of(shapes_ptr, tensor)
    group = number // _pieces(rows, tall, wide)
    start = (number - group * _pieces(rows, tall, wide)) * CHUNK
    first, rest, count, width, gap, _ = _piece(group, start, rows, cols, tall, wide, TILED)
    dual_ptr = pointer_to(duals_ptr, tensor, first, tl.float32)
    param_ptr = pointer_to(params_ptr, tensor, first, TYPE)
    done = _whole(param_ptr, dual_ptr, count, TILED)
    factor = tl.load(factors_ptr + tl.program_id(0))
    live = _write(
        param_ptr, dual_ptr, done, rest, count, width, gap, factor, lower, lam, delta, TYPE, TILED
    )
    tl.atomic_add(live_ptr + tensor, live, sem="relaxed")
