"""Group shrinkage: what its kernels share, and that of small groups; mathematics in prox_group.py.

Where a tensor's tiles are as wide as its matrix, a group is one piece of memory; else (TILED) its
lines lie ``cols`` apart. By the size of its groups a tensor goes one of three ways: several groups
to a program, each in a line of a block; a group to a program that reads it twice; or, of groups
larger than a chunk, a chunk to a program, with a launch for the norms between sums and readout.
The last two are in _group_pieces.py.
"""

import triton
import triton.language as tl

from ._bregman import shrink
from ._launch import (
    is_aligned,
    locate,
    narrow,
    pointer_to,
    tree_sums,
)

DEAD: tl.constexpr = tl.constexpr(-1.0)  # the factor of a group that is zero; others are >= 0


@triton.jit
def shape_of(shapes_ptr, tensor):
    """Rows and columns of a matrix, height and width of its tiles."""
    shape_ptr = shapes_ptr + 4 * tensor
    rows, cols = tl.load(shape_ptr), tl.load(shape_ptr + 1)
    return rows, cols, tl.load(shape_ptr + 2), tl.load(shape_ptr + 3)


@triton.jit
def tile_of(group, rows, cols, tall, wide, TILED: tl.constexpr):
    """First element, height, width and kind (narrow: 1, low: 2) of groups; all int64."""
    if TILED:
        across = (cols + wide - 1) // wide
        down = group // across
        left = (group - down * across) * wide
    else:
        down, left = group, group - group
    top = down * tall
    height = tl.where(rows - top < tall, rows - top, tall)
    width = tl.where(cols - left < wide, cols - left, wide)
    kind = 2 * (height < tall).to(tl.int64) + (width < wide).to(tl.int64)
    return top * cols + left, height, width, kind


@triton.jit
def factor_of(norm, threshold):
    """What the entries of a group are multiplied by, or DEAD; NaN for a norm that is NaN."""
    dead = norm <= threshold
    divisor = tl.where(dead, 1.0, norm)  # a group of zeros would divide by 0
    return tl.where(dead, DEAD, 1.0 - tl.math.div_rn(threshold, divisor))


@triton.jit
def read_out(s, factor, delta):
    """0 for a group that is DEAD: only there, and where s is 0, is the product -s.

    A choice by ``factor`` itself would make the compiler compute all of this again, for the count
    of live entries, in the layout that the tree left the norms in.
    """
    product = s * factor
    return tl.where(product == -s, 0.0, delta * product)


@triton.jit
def value_of(norm, threshold, factor, magnitudes, lam, delta):
    """A group's share of the regulariser's value: threshold |theta_g| + lam sum |theta|."""
    t = threshold.to(tl.float64)
    share = t * (norm.to(tl.float64) - t)
    share += lam * (factor.to(tl.float64) * magnitudes.to(tl.float64))
    return tl.where(factor == DEAD, 0.0, delta * share)


@triton.jit
def _block_of_groups(
    param_ptr, dual_ptr, flag_ptr, begin, width, size, gap, step, left, threshold, count,
    lower, lam, delta, TYPE: tl.constexpr, HAS_ALIVE: tl.constexpr, TILED: tl.constexpr,
    STEPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Read groups out; their value, live entries and groups that are alive.

    ``begin``, ``width``, ``size`` and ``gap`` between lines of each, where they are TILED; else
    they lie ``step`` elements apart, and all end after ``left``.
    """
    numbers, lanes = tl.arange(0, threshold.shape[0]), tl.arange(0, 1 << STEPS)[None, :]
    if TILED:
        lines = lanes // width[:, None]
        offsets = begin[:, None] + lanes + lines * gap[:, None]
        inside = lanes < size[:, None]
    else:
        offsets = numbers[:, None] * step + lanes
        inside = (lanes < step) & (offsets < left)
    duals, params = dual_ptr + offsets, param_ptr + offsets
    if WHOLE:  # fours of entries are there, or not, together
        duals = tl.multiple_of(duals, (1, 16))
        params = tl.multiple_of(params, (1, TYPE.primitive_bitwidth // 2))
        inside = tl.max_constancy(inside, (1, 4))
    s = shrink(tl.load(duals, mask=inside, other=0.0), lower, lam)
    norm = tl.math.sqrt_rn(tree_sums(s * s, STEPS))
    factor = factor_of(norm, threshold)
    theta = read_out(s, factor[:, None], delta)
    tl.store(params, narrow(theta, TYPE), mask=inside)
    here = numbers < count
    alive = here & (factor != DEAD)
    if HAS_ALIVE:
        tl.store(flag_ptr + numbers, alive.to(tl.uint8), mask=here)
    value = value_of(norm, threshold, factor, tl.sum(tl.abs(s), axis=1), lam, delta)
    live = tl.sum((inside & (theta != 0.0)).to(tl.int32), axis=1)
    value = tl.sum(tl.where(here, value, 0.0), axis=0)
    return value, tl.sum(live, axis=0), tl.sum(alive.to(tl.int32), axis=0)


@triton.jit(do_not_specialize=["thresholds_ptr", "values_ptr", "lower", "lam", "delta"])
def _prox_block_kernel(
    params_ptr, duals_ptr, alive_ptr, shapes_ptr, thresholds_ptr, rows_ptr, groups_ptr,
    live_ptr, found_ptr, values_ptr, lower, lam, delta,
    TYPE: tl.constexpr, HAS_ALIVE: tl.constexpr, TILED: tl.constexpr, STEPS: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, groups_ptr, GROUPS)
    rows, cols, tall, wide = shape_of(shapes_ptr, tensor)
    threshold_ptr, numbers = thresholds_ptr + 4 * tensor, tl.arange(0, GROUPS)
    flag_ptr = pointer_to(alive_ptr, tensor, first, tl.uint8) if HAS_ALIVE else 0
    if TILED:
        begin, height, width, kind = tile_of(first + numbers, rows, cols, tall, wide, TILED)
        size = tl.where(height > 0, height * width, 0).to(tl.int32)
        value, live, found = _block_of_groups(
            pointer_to(params_ptr, tensor, 0, TYPE), pointer_to(duals_ptr, tensor, 0, tl.float32),
            flag_ptr, begin, width.to(tl.int32), size, cols - width, 0, 0,
            tl.load(threshold_ptr + kind), count, lower, lam, delta,
            TYPE, HAS_ALIVE, TILED, STEPS, False,
        )  # fmt: skip
    else:
        origin = first * tall * cols
        step = (tl.where(tall < rows, tall, rows) * cols).to(tl.int32)
        left = rows * cols - origin
        left = tl.where(left < GROUPS * step, left, GROUPS * step).to(tl.int32)
        full = rows // tall - first  # groups before a lower one
        full = tl.where(full < GROUPS, full, GROUPS).to(tl.int32)
        threshold = tl.where(numbers < full, tl.load(threshold_ptr), tl.load(threshold_ptr + 2))
        param_ptr = pointer_to(params_ptr, tensor, origin, TYPE)
        dual_ptr = pointer_to(duals_ptr, tensor, origin, tl.float32)
        whole = (step % 4 == 0) & (left % 4 == 0) & (STEPS > 1)
        if whole & is_aligned(param_ptr) & is_aligned(dual_ptr):
            value, live, found = _block_of_groups(
                param_ptr, dual_ptr, flag_ptr, 0, 0, 0, 0, step, left, threshold, count,
                lower, lam, delta, TYPE, HAS_ALIVE, TILED, STEPS, STEPS > 1,
            )  # fmt: skip
        else:
            value, live, found = _block_of_groups(
                param_ptr, dual_ptr, flag_ptr, 0, 0, 0, 0, step, left, threshold, count,
                lower, lam, delta, TYPE, HAS_ALIVE, TILED, STEPS, False,
            )  # fmt: skip
    tl.store(values_ptr + tl.program_id(0), value)
    tl.atomic_add(live_ptr + tensor, live.to(tl.int64), sem="relaxed")
    tl.atomic_add(found_ptr + tensor, found.to(tl.int64), sem="relaxed")


@triton.jit
def _prox_value_kernel(values_ptr, firsts_ptr, counts_ptr, out_ptr, BLOCK: tl.constexpr):
    """The values of a tensor's programs, added in an order that is always the same."""
    tensor = tl.program_id(0)
    values_ptr += tl.load(firsts_ptr + tensor)
    count = tl.load(counts_ptr + tensor)
    lanes, total = tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float64)
    for block in range(0, count, BLOCK):
        total += tl.load(values_ptr + block + lanes, mask=block + lanes < count, other=0.0)
    tl.store(out_ptr + tensor, tl.sum(total, axis=0))
