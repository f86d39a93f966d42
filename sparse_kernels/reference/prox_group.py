"""prox_group_: group shrinkage of duals, with what it leaves counted and measured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._common import CHUNK_SIZE, LANES, store, to_opmath
from .bregman_step import shrink


def _regions(
    rows: int, cols: int, height: int, width: int
) -> Iterator[tuple[slice, slice, int, int, int]]:
    """Parts of a matrix with tiles of one size: whole, narrow, low, and both (numbered so)."""
    whole_rows, whole_cols = rows - rows % height, cols - cols % width
    for low, (top, bottom) in enumerate(((0, whole_rows), (whole_rows, rows))):
        for narrow, (left, right) in enumerate(((0, whole_cols), (whole_cols, cols))):
            if top < bottom and left < right:
                tile = (rows % height if low else height, cols % width if narrow else width)
                yield slice(top, bottom), slice(left, right), *tile, 2 * low + narrow


def _by_group(part: Tensor, height: int, width: int) -> Tensor:
    """[down, across, height * width]: the entries of every tile, row-major."""
    tiled = part.reshape(part.shape[0] // height, height, -1, width)
    return tiled.transpose(1, 2).flatten(2)


def group_sums(x: Tensor) -> Tensor:
    """float64 sums over the last dim, each in the order of ``_common.chunk_sums``."""
    total = torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)
    for chunk in x.split(CHUNK_SIZE, dim=-1):
        width = min(LANES, 1 << (chunk.shape[-1] - 1).bit_length())  # further lanes would add 0
        lanes = torch.zeros((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
        for row in chunk.split(LANES, dim=-1):
            lanes = lanes + pad(row, (0, width - row.shape[-1]))
        while width > 1:
            width //= 2
            lanes = lanes[..., :width] + lanes[..., width : 2 * width]
        total = total + lanes[..., 0].double()
    return total


def prox_group_ref(
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
    counts, groups, values = [], [], []
    for i, (param, dual) in enumerate(zip(params, duals, strict=True)):
        shrunk = shrink(to_opmath(dual).reshape(-1, cols[i]), lam, nonnegative)
        rows, height, width = shrunk.shape[0], heights[i], widths[i]
        out = torch.zeros_like(shrunk)
        flags = torch.zeros(
            (-(-rows // height), -(-cols[i] // width)), dtype=torch.bool, device=dual.device
        )
        value = torch.zeros((), dtype=torch.float64, device=dual.device)
        for down, across, h, w, kind in _regions(rows, cols[i], height, width):
            part = shrunk[down, across]
            s = _by_group(part, h, w)
            threshold = thresholds[i, kind]
            norm = group_sums(s * s).sqrt().to(s.dtype)
            live = ~(norm <= threshold)  # so that NaN is alive
            factor = torch.where(live, 1.0 - threshold / norm, torch.zeros_like(norm))
            theta = torch.where(
                live.unsqueeze(-1), delta * (s * factor.unsqueeze(-1)), torch.zeros_like(s)
            )
            out[down, across] = theta.unflatten(2, (h, w)).transpose(1, 2).reshape(part.shape)
            places = (slice(down.start // height, None), slice(across.start // width, None))
            flags[places][: live.shape[0], : live.shape[1]] = live
            t, n = threshold.double(), norm.double()
            per_group = t * (n - t) + lam * factor.double() * group_sums(s.abs())
            value = value + delta * torch.where(live, per_group, torch.zeros_like(n)).sum()
        store(param, out)
        if alive:
            alive[i].copy_(flags.reshape(-1))
        counts.append((out != 0).sum())
        groups.append(flags.sum())
        values.append(value)
    return torch.stack(counts), torch.stack(groups), torch.stack(values)
