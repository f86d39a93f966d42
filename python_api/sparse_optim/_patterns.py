"""From a ranking of entries to a mask: unstructured, by rows, by whole tensors, or n of every m."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparse_kernels import mask_nm, mask_topk
from sparse_kernels.reference import philox

from ._bitmask import BitMask, live_count
from ._support import check_int

NAMED = ("unstructured", "row", "filter", "tensor")
FILLS = ("under", "over")
_N_OF_M = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Pattern:
    """Which sets of entries a mask may consist of.

    Attributes:
        name: "unstructured"; "row" ("filter"): slices of one dimension; "tensor": whole
            parameters; "n:m", for example "2:4": n ones in every group of m.
        axis: of n:m groups, "in" (along a row of the weight read as dim 0 by the rest) or "out"
            (along dim 0).
        unit_dim: dimension whose slices are the units of "row"; 0 for tensors without it.
        fill: of units, "under": stop before the count is passed; "over": after (parity).
        per_layer: every tensor has its own count (unstructured).
    """

    name: str = "unstructured"
    axis: str = "in"
    unit_dim: int = 0
    fill: str = "under"
    per_layer: bool = False
    n: int = field(init=False, default=0)
    m: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        groups = _N_OF_M.fullmatch(self.name) if isinstance(self.name, str) else None
        if groups:
            n, m = int(groups[1]), int(groups[2])
            if m < 1 or n > m:
                raise ValueError(f"pattern {self.name!r}: n must be at most m, and m at least 1")
            object.__setattr__(self, "n", n)
            object.__setattr__(self, "m", m)
        elif self.name not in NAMED:
            raise ValueError(
                f"pattern must be one of {NAMED} or 'n:m' such as '2:4', got {self.name!r}"
            )
        if self.axis not in ("in", "out"):
            raise ValueError(f"axis must be 'in' or 'out', got {self.axis!r}")
        if self.fill not in FILLS:
            raise ValueError(f"fill must be one of {FILLS}, got {self.fill!r}")
        if self.per_layer and self.name != "unstructured":
            raise ValueError("per_layer goes with the pattern 'unstructured'")
        check_int("unit_dim", self.unit_dim, 0)

    @property
    def structured(self) -> bool:
        """Whether whole units are switched."""
        return self.name in ("row", "filter", "tensor")


@dataclass(frozen=True)
class Ranking:
    """What entries are ranked by.

    Attributes:
        scores: one tensor per parameter, largest first; for kind "random" they give shapes only.
        kind: "value", "abs" or "random".
        key: of the random stream.
    """

    scores: list[Tensor]
    kind: str = "value"
    key: int | None = None


def select(
    ranking: Ranking,
    pattern: Pattern,
    sparsity: float,
    count_rule: str,
    within: BitMask | None = None,
) -> BitMask:
    """Mask of the best entries of a ranking.

    Args:
        ranking: of N entries.
        pattern: which sets are possible. n:m ignores the sparsity; tensors of fewer than two
            dimensions are all ones there.
        sparsity: s, fraction of zeros among the N entries (among those of ``within``).
        count_rule: as for ``live_count``.
        within: only these entries exist; the others are 0 and not counted.

    Returns:
        A new mask.

    Raises:
        ValueError: the sparsity is out of range.
    """
    scores = ranking.scores
    shapes = [s.shape for s in scores]
    if pattern.m:
        mask = BitMask(_groups(ranking, pattern, within), shapes)
        return mask if within is None else mask & within
    sizes = [s.numel() for s in scores] if within is None else within.popcount()
    if pattern.structured:
        k = live_count(sum(sizes), sparsity, count_rule)
        mask = _units(ranking, pattern, k, within)
        return mask if within is None else mask & within
    ks: int | list[int] = live_count(sum(sizes), sparsity, count_rule)
    if pattern.per_layer:
        ks = [live_count(n, sparsity, count_rule) for n in sizes]
    among = None if within is None else within.words
    words = mask_topk(scores, ks, kind=ranking.kind, key=ranking.key, among=among)
    return BitMask(words, shapes)


def _random_numbers(key: int, count: int, home: torch.device) -> Tensor:
    """float64 [count], exact 32-bit integers of the counter-based stream."""
    signed = torch.tensor(key - 2**64 if key >= 2**63 else key, dtype=torch.int64, device=home)
    blocks = torch.arange(-(-count // 4), device=home)
    return philox.words(signed, 0, 0, blocks, 10).reshape(-1)[:count].double()


def _behind(ranking: Ranking, within: BitMask) -> Ranking:
    """The same ranking with NaN, the last of all, where no weight exists."""
    scores = [s.detach() for s in ranking.scores]
    if ranking.kind == "random" and scores:
        assert ranking.key is not None
        sizes = [s.numel() for s in scores]
        numbers = _random_numbers(ranking.key, sum(sizes), scores[0].device).split(sizes)
        scores = [n.reshape(s.shape).to(s.device) for n, s in zip(numbers, scores, strict=True)]
    elif ranking.kind == "abs":
        scores = [s.abs() for s in scores]
    exists = within.to_bool()
    return Ranking([s.masked_fill(~e, math.nan) for s, e in zip(scores, exists, strict=True)])


def _groups(ranking: Ranking, pattern: Pattern, within: BitMask | None) -> list[Tensor]:
    words = BitMask.full(ranking.scores).words
    ranking = ranking if within is None else _behind(ranking, within)
    grouped = [i for i, s in enumerate(ranking.scores) if s.dim() >= 2]
    chosen = mask_nm(
        [ranking.scores[i] for i in grouped], pattern.n, pattern.m, pattern.axis,
        kind=ranking.kind, key=ranking.key,
    )  # fmt: skip
    for i, w in zip(grouped, chosen, strict=True):
        words[i] = w
    return words


# units ------------------------------------------------------------------------------------------


def _unit_dim(shape: Sequence[int], pattern: Pattern) -> int:
    return pattern.unit_dim if pattern.unit_dim < len(shape) else 0


def _as_units(t: Tensor, pattern: Pattern) -> Tensor:
    """[units, entries of a unit], a view where possible; a scalar is one unit."""
    if pattern.name == "tensor" or t.dim() == 0:
        return t.reshape(1, -1)
    d = _unit_dim(t.shape, pattern)
    # not reshape(.., -1): an empty tensor would leave the size open
    rest = math.prod(s for i, s in enumerate(t.shape) if i != d)
    return t.movedim(d, 0).reshape(t.shape[d], rest)


def _unit_scores(
    ranking: Ranking, pattern: Pattern, exists: Sequence[Tensor | None], home: torch.device
) -> Tensor:
    """float64 [units of all parameters]: the mean score of a unit's existing entries, NaN if there
    are none; for "random" a random integer."""
    tables = [_as_units(s, pattern) for s in ranking.scores]
    if ranking.kind == "random":
        assert ranking.key is not None
        return _random_numbers(ranking.key, sum(t.shape[0] for t in tables), home)
    means = []
    for t, e in zip(tables, exists, strict=True):
        wide = t.detach().double()
        wide = wide.abs() if ranking.kind == "abs" else wide
        if e is None:
            means.append(wide.mean(1).to(home))
        else:
            there = _as_units(e, pattern)
            means.append((wide.masked_fill(~there, 0.0).sum(1) / there.sum(1)).to(home))
    return torch.cat(means)


def _units(ranking: Ranking, pattern: Pattern, k: int, within: BitMask | None) -> BitMask:
    """Walk the units from the best one on and switch them on while they fit into k entries."""
    if not ranking.scores:
        return BitMask([], [])
    home = ranking.scores[0].device
    shaped = [_as_units(s, pattern) for s in ranking.scores]
    exists: Sequence[Tensor | None]
    exists = [None] * len(shaped) if within is None else within.to_bool()
    sizes = torch.cat(
        [
            torch.full((t.shape[0],), t.shape[1], dtype=torch.int64, device=home)
            if e is None
            else _as_units(e, pattern).sum(1).to(home)
            for t, e in zip(shaped, exists, strict=True)
        ]
    )
    score = _unit_scores(ranking, pattern, exists, home)
    # two stable sorts: the score, then NaN behind everything
    order = score.nan_to_num(-math.inf, math.inf, -math.inf).sort(descending=True, stable=True)
    last = score[order.indices].isnan().to(torch.int8).sort(stable=True)
    walk = order.indices[last.indices]
    used = sizes[walk].cumsum(0)
    on = used - sizes[walk] < k if pattern.fill == "over" else used <= k
    if k > 0:
        on[:1] = True
    chosen = torch.zeros_like(on)
    chosen[walk] = on
    parts = chosen.split([t.shape[0] for t in shaped])
    return BitMask.from_bool(
        [
            _from_units(part.to(t.device).unsqueeze(1).expand(t.shape), s.shape, pattern)
            for part, t, s in zip(parts, shaped, ranking.scores, strict=True)
        ]
    )


def _from_units(table: Tensor, shape: torch.Size, pattern: Pattern) -> Tensor:
    """The inverse of ``_as_units``."""
    if pattern.name == "tensor" or len(shape) == 0:
        return table.reshape(shape)
    d = _unit_dim(shape, pattern)
    moved = (shape[d], *shape[:d], *shape[d + 1 :])
    return table.reshape(moved).movedim(0, d).contiguous()
