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

_OP = "prox_group_"
_KEPT = 8  # tables of thresholds of a plan


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


class _Plan:
    """The tilings of a list of tensors, checked, as the kernels want them."""

    def __init__(self, numels: tuple[int, ...], tilings: tuple[Tiling, ...]) -> None:
        self.numels = numels
        self.tilings = tilings
        if len(tilings) != len(numels):
            raise ValueError(f"{_OP}: tilings has {len(tilings)} entries, params has {len(numels)}")
        for i, (numel, tiling) in enumerate(zip(numels, tilings, strict=True)):
            if min(tiling) < 1 or numel % tiling.cols or tiling.width > tiling.cols:
                raise ValueError(
                    f"{_OP}: tilings[{i}] {tuple(tiling)} does not divide params[{i}] of "
                    f"{numel} elements into rows and tiles"
                )
        self.groups = [t.groups(numel) for numel, t in zip(numels, tilings, strict=True)]
        self.cols = [t.cols for t in tilings]
        self.heights = [t.height for t in tilings]
        self.widths = [t.width for t in tilings]
        self._thresholds: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}

    def of(self, indices: Sequence[int]) -> _Plan:
        """The plan of some of the tensors."""
        if len(indices) == len(self.numels):
            return self
        return _plan(
            tuple(self.numels[i] for i in indices), tuple(self.tilings[i] for i in indices)
        )

    def thresholds(self, lam: float, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[T, 4]: lam sqrt(n_g) of whole tiles, of narrow, of low and of narrow and low ones."""
        key = lam, dtype, device
        table = self._thresholds.get(key)
        if table is None:
            rows = []
            for numel, (cols, height, width) in zip(self.numels, self.tilings, strict=True):
                narrow, low = cols % width or width, (numel // cols) % height or height
                sizes = (height * width, height * narrow, low * width, low * narrow)
                rows.append([lam * math.sqrt(n) for n in sizes])
            table = torch.tensor(rows, dtype=torch.float64).to(dtype).to(device)
            if len(self._thresholds) >= _KEPT:  # of a lam that moves
                self._thresholds.clear()
            self._thresholds[key] = table
        return table


_cached_plan = functools.lru_cache(maxsize=64)(_Plan)


def _plan(numels: tuple[int, ...], tilings: tuple[Tiling, ...]) -> _Plan:
    # a graph under construction must not leave its fake tensors in the cache
    return (_Plan if torch.compiler.is_compiling() else _cached_plan)(numels, tilings)


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
    op = _OP
    check_tensor_list(op, "params", params)
    plan = _plan(
        tuple([p.numel() for p in params]),
        tuple([t if type(t) is Tiling else Tiling(*t) for t in tilings]),
    )
    check_scalar(op, "lam_groups", lam_groups, 0.0)
    check_scalar(op, "lam", lam, 0.0)
    check_scalar(op, "delta", delta, 0.0, strict=True)
    args = [
        ListArg("params", params, mutated=True),
        ListArg("duals", duals, kind="opmath", optional=False),
        ListArg("alive", alive, mutated=True, kind=torch.uint8, sizes=plan.groups),
    ]
    whole = check_lists(op, args)
    parts = []
    for g in grouped(op, backend, args, ordered=True, whole=whole):
        own = plan.of(g.indices)
        found = g.run(
            g.lists["params"], g.lists["duals"], g.lists["alive"], own.cols, own.heights,
            own.widths, own.thresholds(lam_groups, opmath_dtype(g.dtype), g.device), lam, delta,
            nonnegative,
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
