"""Group shrinkage: the readout of duals whose regulariser couples the entries of a group."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._check import (
    ListArg,
    bump_versions,
    check_lists,
    check_scalar,
    check_tensor_list,
    grouped,
    opmath_dtype,
)
from .._group import checked_by_kernel


class Tiling(NamedTuple):
    """Groups of a tensor: it is read row-major as a matrix and cut into tiles.

    Rows of a linear weight [out, in] are ``Tiling(in, 1, in)``, the 2-D kernels of a convolution
    ``Tiling(kh * kw, 1, kh * kw)``. Tiles at the far edges are smaller where they do not fit.

    Attributes:
        cols: columns of the matrix.
        height, width: of a tile.
    """

    cols: int
    height: int
    width: int

    def groups(self, numel: int) -> int:
        """Number of groups of a tensor."""
        rows = numel // self.cols
        return -(-rows // self.height) * -(-self.cols // self.width)


class ProxStats(NamedTuple):
    """What a group shrinkage left, per tensor.

    Attributes:
        live: int64 [T], entries that are not zero.
        groups: int64 [T], groups that are not zero.
        value: float64 [T], ``lam_groups * sum_g sqrt(n_g) |theta_g| + lam * sum |theta|``.
    """

    live: Tensor
    groups: Tensor
    value: Tensor


def _threshold_table(
    tilings: tuple[tuple[int, Tiling], ...], lam: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[T, 4]: lam sqrt(n_g) of whole tiles, of narrow, of low and of narrow and low ones."""
    rows = []
    for numel, (cols, height, width) in tilings:
        narrow, low = cols % width or width, (numel // cols) % height or height
        sizes = (height * width, height * narrow, low * width, low * narrow)
        rows.append([lam * math.sqrt(n) for n in sizes])
    return torch.tensor(rows, dtype=torch.float64).to(dtype).to(device)


_cached_threshold_table = functools.lru_cache(maxsize=64)(_threshold_table)


def _check_tilings(op: str, params: Sequence[Tensor], tilings: Sequence[Tiling]) -> None:
    if len(tilings) != len(params):
        raise ValueError(f"{op}: tilings has {len(tilings)} entries, params has {len(params)}")
    for i, (p, tiling) in enumerate(zip(params, tilings, strict=True)):
        if min(tiling) < 1 or p.numel() % tiling.cols or tiling.width > tiling.cols:
            raise ValueError(
                f"{op}: tilings[{i}] {tuple(tiling)} does not divide params[{i}] of "
                f"{p.numel()} elements into rows and tiles"
            )


@checked_by_kernel
def prox_group_(
    params: Sequence[Tensor],
    duals: Sequence[Tensor],
    tilings: Sequence[Tiling],
    lam_groups: float,
    lam: float = 0.0,
    delta: float = 1.0,
    *,
    nonnegative: bool = False,
    alive: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> ProxStats:
    """Read parameters out of their duals, whole groups at a time.

    ``s = shrink(dual, lam)``, and for every group g of n_g entries
    ``params_g = delta * s_g * max(1 - lam_groups sqrt(n_g) / |s_g|, 0)``: the group lasso for
    ``lam = 0``, the sparse group lasso else. A group with ``|s_g| <= lam_groups sqrt(n_g)`` becomes
    +0.0. The dual is read once where a group is not larger than 65,536 entries, twice otherwise.

    Args:
        params: tensors (mutated); float32, bfloat16, float16 or float64, written only. A parameter
            may be its own dual, in the same memory (proximal gradient steps).
        duals: tensors shaped like ``params``, float32 (float64 for float64).
        tilings: how each tensor is cut into groups.
        lam_groups: threshold of the groups, >= 0.
        lam: threshold of the entries, >= 0.
        delta: factor of the readout, > 0.
        nonnegative: ``s = max(dual - lam, 0)``.
        alive: uint8 tensors (mutated), one entry per group: 1 where the group is not zero.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        Counts of live entries and groups and the regulariser's value, per tensor.

    Raises:
        ValueError: lists do not fit, a tiling does not divide its tensor, a number is out of range.
        BackendUnavailableError: the backend asked for is not there.

    Note:
        Squares are added in the order of ``grad_norm`` within each group, so that float32 results
        are bit-equal on every backend. NaN makes its group NaN.

    Source: Bungert, Roith, Tenbrinck, Burger, arXiv 2105.04319, section on regularisers; Yuan and
        Lin 2006 (group lasso); Simon et al. 2013 (sparse group lasso).

    Example:
        >>> w, v = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.5, 0.5]])
        >>> prox_group_([w], [v], [Tiling(2, 1, 2)], lam_groups=2.5 / 2**0.5).groups
        tensor([1])
        >>> w
        tensor([[1.5000, 2.0000],
                [0.0000, 0.0000]])
    """
    op = "prox_group_"
    check_tensor_list(op, "params", params)
    tilings = [Tiling(*t) for t in tilings]
    _check_tilings(op, params, tilings)
    check_scalar(op, "lam_groups", lam_groups, 0.0)
    check_scalar(op, "lam", lam, 0.0)
    check_scalar(op, "delta", delta, 0.0, strict=True)
    sizes = [t.groups(p.numel()) for p, t in zip(params, tilings, strict=True)]
    args = [
        ListArg("params", params, mutated=True),
        ListArg("duals", duals, kind="opmath", optional=False),
        ListArg("alive", alive, mutated=True, kind=torch.uint8, sizes=sizes),
    ]
    whole = check_lists(op, args)
    parts = []
    for g in grouped(op, backend, args, ordered=True, whole=whole):
        own = [tilings[i] for i in g.indices]
        described = tuple((params[i].numel(), tilings[i]) for i in g.indices)
        # a graph under construction must not leave its fake tensors in the cache
        compiling = torch.compiler.is_compiling()
        table = _threshold_table if compiling else _cached_threshold_table
        thresholds = table(described, lam_groups, opmath_dtype(g.dtype), g.device)
        found = g.run(
            g.lists["params"], g.lists["duals"], g.lists["alive"], [t.cols for t in own],
            [t.height for t in own], [t.width for t in own], thresholds, lam, delta, nonnegative,
        )  # fmt: skip
        parts.append((g.indices, found))
    bump_versions(args)
    if len(parts) == 1:
        return ProxStats(*parts[0][1])
    home = parts[0][1][0].device if parts else torch.device("cpu")
    kinds = (torch.int64, torch.int64, torch.float64)
    stats = [torch.zeros(len(params), dtype=kind, device=home) for kind in kinds]
    for indices, found in parts:
        for whole_list, part in zip(stats, found, strict=True):
            whole_list[indices] = part.to(home)
    return ProxStats(*stats)
