"""Regularisers of the Bregman optimizers: names, groups of entries, thresholds, readouts.

A regulariser is a plain name with plain numbers in ``param_groups``. For a dual v and the effective
lam the readout is ``theta = delta prox(v)``:

* "none": v;
* "l1": ``shrink(v, lam)``; "l1_pos": ``max(v - lam, 0)``;
* "l1_l2": ``v_g max(1 - lam sqrt(n_g) / |v_g|, 0)`` per group g of n_g entries;
* "sparse_group": the same with ``(1 - l1_ratio) lam`` of ``shrink(v, l1_ratio lam)``;
* "nuclear": singular values shrunk by lam.

Source: Bungert, Roith, Tenbrinck, Burger, arXiv 2105.04319; sparse group lasso: Simon et al. 2013.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import ProxStats, Tiling, prox_group_

from ._capturable import check_rate
from ._support import check_int, check_number

REGULARIZERS = ("none", "l1", "l1_pos", "l1_l2", "sparse_group", "nuclear")
ENTRYWISE = ("l1", "l1_pos")
GROUPED = ("l1_l2", "sparse_group")
#: options of a regulariser and of the cycle, with their defaults
DEFAULTS: dict[str, Any] = {
    "weight_decay": 0.0, "delta": 1.0, "reg": "none", "lam": 0.0, "lam_scale": 1.0, "groups": None,
    "block": None, "l1_ratio": 0.5, "dual_leak": 0.0, "coarse_steps": 0, "phase_offset": 0,
    "fine_scale": 1.0, "maximize": False, "multilevel": True, "cycle_step": 0, "queued_lam": None,
    "capturable": False,
}  # fmt: skip
GROUPS = ("rows", "kernels", "filters", "blocks")


def math_dtype(p: Tensor) -> torch.dtype:
    """Dtype of duals and moments: float64 for float64 parameters, float32 for all others."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def effective_lam(group: dict[str, Any]) -> float:
    """lam times lam_scale; 0 without a regulariser."""
    return float(group["lam"]) * float(group["lam_scale"]) if group["reg"] != "none" else 0.0


def entry_lam(group: dict[str, Any]) -> float | Tensor:
    """The threshold of an entrywise step; on the device where the group's lam is."""
    lam = group["lam"]
    if isinstance(lam, Tensor) and group.get("capturable") and group["reg"] != "none":
        return lam * float(group["lam_scale"])
    return lam_parts(group)[0]


def lam_parts(group: dict[str, Any]) -> tuple[float, float]:
    """Thresholds of entries and, per sqrt(n_g), of groups."""
    lam, reg = effective_lam(group), group["reg"]
    if reg == "sparse_group":
        return group["l1_ratio"] * lam, (1.0 - group["l1_ratio"]) * lam
    return (0.0, lam) if reg == "l1_l2" else (lam, 0.0)


def check_options(group: dict[str, Any]) -> None:
    """ValueError unless the options of a parameter group name a regulariser."""
    check_rate(group, "lam")
    check_number("lam_scale", group["lam_scale"], 0.0)
    check_number("l1_ratio", group["l1_ratio"], 0.0, 1.0)
    reg, groups, block = group["reg"], group["groups"], group["block"]
    if reg not in REGULARIZERS:
        raise ValueError(f"reg must be one of {REGULARIZERS}, got {reg!r}")
    if reg not in GROUPED:
        return  # groups and block are of other parameter groups
    if groups not in GROUPS:
        raise ValueError(f"groups must be one of {GROUPS} with reg {reg!r}, got {groups!r}")
    if groups == "blocks":
        if not isinstance(block, (tuple, list)) or len(block) != 2:
            raise ValueError(f"block must be (rows, columns), got {block!r}")
        for size in block:
            check_int("block", size, 1)


def check_tensor(group: dict[str, Any], p: Tensor, name: str) -> None:
    """ValueError unless the regulariser of the group has a meaning for a tensor of this shape."""
    reg = group["reg"]
    groups = group["groups"] if reg in GROUPED else None
    wanted = None
    if groups == "rows" and p.dim() != 2:
        wanted = "groups='rows' needs a weight of 2 dimensions"
    elif groups == "kernels" and p.dim() != 4:
        wanted = "groups='kernels' needs the weight of a 2-D convolution, of 4 dimensions"
    elif (groups in ("filters", "blocks") or reg == "nuclear") and p.dim() < 2:
        what = f"groups={groups!r}" if groups is not None else "reg 'nuclear'"
        wanted = f"{what} needs a weight of 2 dimensions or more"
    if wanted is not None:
        raise ValueError(f"{wanted}; {name} has {p.dim()}")


def group_tiling(groups: str, p: Tensor, block: tuple[int, int] | None = None) -> Tiling:
    """Tiling of a weight of at least one entry by the name of its groups."""
    filters = p.numel() // p.shape[0]
    if groups == "kernels":
        n = p.shape[2] * p.shape[3]
        return Tiling(n, 1, n)
    if groups == "blocks":
        assert block is not None
        return Tiling(filters, min(block[0], p.shape[0]), min(block[1], filters))
    return Tiling(filters, 1, filters)


def tiling(group: dict[str, Any], p: Tensor) -> Tiling:
    """How a tensor is cut into groups; for entrywise regularisers one group of everything."""
    if p.numel() == 0 or p.dim() == 0:
        return Tiling(1, 1, 1)
    filters = p.numel() // p.shape[0]
    if group["reg"] not in GROUPED:
        return Tiling(filters, 1, filters)
    return group_tiling(group["groups"], p, group["block"])


def is_nonnegative(group: dict[str, Any]) -> bool:
    """Whether the readout has no negative values."""
    return group["reg"] == "l1_pos"


def matrix(p: Tensor) -> Tensor:
    """A weight as the nuclear norm sees it: [outputs, everything else]."""
    return p.flatten(1)


def group_norms(x: Tensor, tiles: Tiling) -> Tensor:
    """2-norm of every group, spread over its entries, in the shape of ``x``."""
    rows = x.reshape(-1, tiles.cols)
    squares = rows.square()
    down = [(0, rows.shape[0], tiles.height), (0, tiles.cols, tiles.width)]
    place = [torch.arange(end, device=x.device) // size for _, end, size in down]
    across = -(-tiles.cols // tiles.width)
    number = place[0].unsqueeze(1) * across + place[1]
    sums = squares.new_zeros(tiles.groups(x.numel())).index_add_(
        0, number.reshape(-1), squares.reshape(-1)
    )
    return sums.sqrt()[number].reshape(x.shape)


def group_sizes(x: Tensor, tiles: Tiling) -> Tensor:
    """Number of entries n_g of the group of every entry, float, in the shape of ``x``."""
    return group_norms(torch.ones_like(x), tiles).square().round()


def subgradient(group: dict[str, Any], theta: Tensor) -> Tensor:
    """An element of the subdifferential of J at theta, of least norm: zero where theta is zero."""
    reg = group["reg"]
    lam, lam_groups = lam_parts(group)
    if reg == "none":
        return torch.zeros_like(theta)
    if reg == "nuclear":
        u, s, vh = torch.linalg.svd(matrix(theta), full_matrices=False)
        # null singular values would otherwise stand on the threshold
        kept = s > s[:1] * max(matrix(theta).shape) * torch.finfo(s.dtype).eps
        return (lam * (u[:, kept] @ vh[kept])).reshape(theta.shape)
    part = lam * theta.sign()
    if reg in GROUPED:
        tiles = tiling(group, theta)
        norms = group_norms(theta, tiles)
        roots = group_sizes(theta, tiles).sqrt()
        part = part + torch.where(norms > 0, lam_groups * roots * theta / norms, 0.0)
    return part


def check_start(group: dict[str, Any], p: Tensor, name: str) -> None:
    """ValueError for a parameter that no dual stands for."""
    if is_nonnegative(group) and bool((p < 0).any()):
        raise ValueError(f"reg 'l1_pos' needs weights >= 0; {name} has negative ones")


def readout_(
    group: dict[str, Any], params: list[Tensor], duals: list[Tensor], backend: str,
    alive: list[Tensor] | None = None, tilings: list[Tiling] | None = None, scale: float = 1.0,
) -> ProxStats:  # fmt: skip
    """Write params = delta prox(duals); ``scale`` multiplies the thresholds.

    Args:
        group: its regulariser is applied; "none" is not one.
        params, duals: tensors (params are mutated); a parameter may be its own dual.
        alive: as ``prox_group_`` takes it.
        tilings: of tensors that are not in the shape of the weights.
    """
    if group["reg"] == "nuclear":
        return _nuclear_readout_(group, params, duals, scale)
    lam, lam_groups = lam_parts(group)
    if tilings is None:
        tilings = [tiling(group, p) for p in params]
    return prox_group_(
        params, duals, tilings, scale * lam_groups, scale * lam, float(group["delta"]),
        nonnegative=is_nonnegative(group), alive=alive, backend=backend,
    )  # fmt: skip


def _nuclear_readout_(
    group: dict[str, Any], params: list[Tensor], duals: list[Tensor], scale: float
) -> ProxStats:
    """Singular values by torch: no part of a step of this regulariser is memory-bound."""
    lam = scale * effective_lam(group)
    live, ranks, values = [], [], []
    for p, dual in zip(params, duals, strict=True):
        u, s, vh = torch.linalg.svd(matrix(dual), full_matrices=False)
        s = group["delta"] * (s - lam).clamp(min=0.0)
        p.copy_(((u * s) @ vh).reshape(p.shape))
        live.append(p.count_nonzero())
        ranks.append(s.count_nonzero())
        values.append(lam * s.sum().double())
    return ProxStats(torch.stack(live), torch.stack(ranks), torch.stack(values))


def entries_per_unit(group: dict[str, Any], p: Tensor) -> int | None:
    """Length of one unit of the active set in memory; None where it is no run of entries."""
    if group["reg"] not in GROUPED:
        return 1
    tiles = tiling(group, p)
    return tiles.cols if tiles.height == 1 and tiles.width == tiles.cols else None


def unit_count(group: dict[str, Any], p: Tensor) -> int:
    """Units of the active set: entries or groups."""
    return tiling(group, p).groups(p.numel()) if group["reg"] in GROUPED else p.numel()


def spread_tiles(alive: Tensor, tiles: Tiling, p: Tensor) -> Tensor:
    """bool [groups] to bool in the shape of the weight."""
    grid = alive.reshape(-1, math.ceil(tiles.cols / tiles.width))
    wide = grid.repeat_interleave(tiles.height, 0)[: p.numel() // tiles.cols]
    return wide.repeat_interleave(tiles.width, 1)[:, : tiles.cols].reshape(p.shape)


def spread_units(alive: Tensor, group: dict[str, Any], p: Tensor) -> Tensor:
    """bool [units] to bool in the shape of the weight."""
    if group["reg"] not in GROUPED:
        return alive.reshape(p.shape)
    return spread_tiles(alive, tiling(group, p), p)
