"""prox_group_: group shrinkage of duals, with what it leaves counted and measured.

    s = shrink(dual, lam);   theta_g = delta s_g max(1 - t_g / |s_g|, 0),   t_g the threshold of g

Source: Bungert, Roith, Tenbrinck, Burger, arXiv 2105.04319; Yuan and Lin 2006; Simon et al. 2013.
Squares are added in one order on every backend (tree_sums), a group's chunks in float64 one after
the other, so that float32 parameters have equal bits. The value is added in an order of its own,
which depends on the list only. Twins: reference/prox_group.py, csrc/functors/prox_group.h.
"""

import functools
import itertools
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ._bregman import lower_bound
from ._group_pieces import (
    _prox_factors_kernel,
    _prox_group_kernel,
    _prox_sums_kernel,
    _prox_write_kernel,
)
from ._groups import _prox_block_kernel, _prox_value_kernel
from ._launch import (
    CHUNK_SIZE,
    LANES,
    address_table,
    f32,
    int64_table,
    launch,
    plan_of,
    storage_type,
)

_BLOCK = 2048  # elements of a program that has several groups, each in a line of a block


class _Class(NamedTuple):
    """Tensors of a list that share their launches.

    Attributes:
        tiled: groups are not in one piece of memory.
        steps: groups have up to 2^steps entries, several to a program; -1: a group to a program;
            -2: a chunk of a group to a program.
        groups: of every tensor of the list, 0 where it is in another class.
        pieces: chunks of all groups together, the same way.
        first: number of its first program that reports a value, among those of all classes.
    """

    tiled: bool
    steps: int
    groups: tuple[int, ...]
    pieces: tuple[int, ...]
    first: int


def _groups_of_a_program(steps: int) -> int:
    return _BLOCK >> steps if steps >= 0 else 1


class _Layout(NamedTuple):
    """How a list is launched.

    Attributes:
        shapes: rows, columns, height and width of the tiles, of one tensor after the other.
        classes: with at least one group each.
        firsts, counts: programs that report a tensor's value.
        programs: of all tensors.
    """

    shapes: tuple[int, ...]
    classes: tuple[_Class, ...]
    firsts: tuple[int, ...]
    counts: tuple[int, ...]
    programs: int


@functools.lru_cache(maxsize=64)
def _layout(tilings: tuple[tuple[int, int, int, int], ...]) -> _Layout:
    """The classes of tensors of (numel, cols, height, width)."""
    shapes: list[int] = []
    members: dict[tuple[bool, int], list[tuple[int, int, int]]] = {}
    for i, (numel, cols, height, width) in enumerate(tilings):
        if height == 1 and cols % width == 0:
            cols = width  # the same groups as of a narrower matrix, and each is in one piece
        rows = numel // cols
        shapes += (rows, cols, height, width)
        groups, size = -(-rows // height) * -(-cols // width), min(height, rows) * width
        if groups:
            steps = (size - 1).bit_length() if size <= LANES else -1 if size <= CHUNK_SIZE else -2
            pieces = groups * -(-size // CHUNK_SIZE)
            members.setdefault((width != cols, steps), []).append((i, groups, pieces))
    classes, end = [], 0
    firsts, counts = [0] * len(tilings), [0] * len(tilings)
    for (tiled, steps), found in members.items():
        groups_of, pieces_of = [0] * len(tilings), [0] * len(tilings)
        first = end
        for i, groups, pieces in found:
            groups_of[i], pieces_of[i] = groups, pieces
            firsts[i], counts[i] = end, -(-groups // _groups_of_a_program(steps))
            end += counts[i]
        classes.append(_Class(tiled, steps, tuple(groups_of), tuple(pieces_of), first))
    return _Layout(tuple(shapes), tuple(classes), tuple(firsts), tuple(counts), end)


def prox_group_triton(
    params: list[Tensor],
    duals: list[Tensor],
    alive: list[Tensor],
    cols: list[int],
    heights: list[int],
    widths: list[int],
    thresholds: Tensor,
    lam: float,
    delta: float,
    nonnegative: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write ``params`` and ``alive``; int64 live entries and groups, float64 values [T].

    One launch for every kind of groups in the list, three where they are larger than a chunk. With
    16 warps a thread has four elements of a row: registers suffice.
    """
    device, count = params[0].device, len(params)
    live, found = (torch.zeros(count, dtype=torch.int64, device=device) for _ in range(2))
    values = torch.zeros(count, dtype=torch.float64, device=device)
    numels = (p.numel() for p in params)
    layout = _layout(tuple(zip(numels, cols, heights, widths, strict=True)))
    if layout.programs == 0:
        return live, found, values
    kind = storage_type(params[0].dtype)
    shapes = int64_table(layout.shapes, device)
    shared = address_table(params), address_table(duals), address_table(alive), shapes, thresholds
    bounds = f32(lower_bound(lam, nonnegative)), f32(lam), f32(delta)
    partials = torch.empty(layout.programs, dtype=torch.float64, device=device)
    for part in layout.classes:
        reported = partials[part.first :]
        if part.steps == -2:
            _launch_chunks(part, shared, live, found, reported, bounds, kind)
            continue
        plan = plan_of(part.groups, _groups_of_a_program(part.steps), device)
        args = *shared, plan.rows, plan.numels, live, found, reported, *bounds
        options = {"TYPE": kind, "HAS_ALIVE": bool(alive), "TILED": part.tiled, "num_warps": 16}
        if part.steps >= 0:
            launch(
                _prox_block_kernel, (plan.programs,), device, *args, **options, STEPS=part.steps,
                GROUPS=_groups_of_a_program(part.steps), maxnreg=64,
            )  # fmt: skip
        else:
            launch(_prox_group_kernel, (plan.programs,), device, *args, **options)
    tables = (int64_table(layout.firsts, device), int64_table(layout.counts, device))
    launch(_prox_value_kernel, (count,), device, partials, *tables, values, BLOCK=1024)
    return live, found, values


def _launch_chunks(
    part: _Class,
    shared: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor],
    live: Tensor,
    found: Tensor,
    reported: Tensor,
    bounds: tuple[float, float, float],
    kind: tl.dtype,
) -> None:
    """Sums of chunks, factors of groups, readout of chunks."""
    params, duals, alive, shapes, thresholds = shared
    device, tiled = live.device, part.tiled
    pieces, groups = plan_of(part.pieces, 1, device), plan_of(part.groups, 1, device)
    sums, magnitudes, factors = torch.empty(
        (3, pieces.programs), dtype=torch.float32, device=device
    )
    firsts = tuple(itertools.accumulate(part.pieces, initial=0))[:-1]
    lower, lam, delta = bounds
    launch(
        _prox_sums_kernel, (pieces.programs,), device, duals, shapes, pieces.rows, pieces.numels,
        sums, magnitudes, lower, lam, TILED=tiled, num_warps=8,
    )  # fmt: skip
    launch(
        _prox_factors_kernel, (groups.programs,), device, alive, shapes, thresholds, groups.rows,
        groups.numels, int64_table(firsts, device), sums, magnitudes, factors, found,
        reported, lam, delta, HAS_ALIVE=alive is not None, TILED=tiled, num_warps=1,
    )  # fmt: skip
    launch(
        _prox_write_kernel, (pieces.programs,), device, params, duals, shapes, pieces.rows,
        pieces.numels, factors, live, lower, lam, delta, TYPE=kind, TILED=tiled, num_warps=16,
        maxnreg=64,
    )  # fmt: skip
