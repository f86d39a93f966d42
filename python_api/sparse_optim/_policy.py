"""The interface of mask policies, and those that need no data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import derive_key, grad_norm

from ._bitmask import COUNT_RULES, BitMask
from ._patterns import Pattern, Ranking, select

# stream words in the key derivation, one for every use: equal ones would draw equal numbers
MASK_STREAM = 0x80000000  # masks of a policy and the samples they are scored with
DROP_STREAM, GROW_STREAM, INIT_STREAM = (MASK_STREAM + i for i in (1, 2, 3))  # dynamic masks
WEIGHT_INIT_STREAM, WEIGHT_GROW_STREAM = (MASK_STREAM + i for i in (4, 5))  # weight masks
INITS = ("score", "random", "ones", "zeros")

Scope = Callable[[str, Tensor], bool]


def check_finite(who: str, ranking: Ranking, names: Sequence[str] | None) -> None:
    """ValueError for a score that is NaN or infinite; one value comes to the host."""
    filled = [s for s in ranking.scores if s.numel()]
    if ranking.kind == "random" or not filled or bool(grad_norm(filled).isfinite()):
        return
    for i, s in enumerate(ranking.scores):  # finite scores may overflow the norm
        if not bool(s.isfinite().all()):
            name = names[i] if names else f"parameter {i}"
            raise ValueError(f"{who}: the scores of {name} are not finite")


class MaskPolicy:
    """Ranks every entry; a pattern turns the ranking into a mask with exactly k(N, s) ones.

    Args:
        count_rule: "round", or "trunc"/"ceil" for parity runs (``live_count``).
        init: the mask before the first update. "score": of the policy itself, so the first update
            must come before the first step; "random", "ones", "zeros" (parity: plain base training
            until the first update).

    Raises:
        ValueError: no such rule or initial mask.
    """

    needs_data = False  #: True if ``compute`` needs arguments, so the mask must be asked for

    def __init__(self, count_rule: str = "round", init: str = "score") -> None:
        if count_rule not in COUNT_RULES:
            raise ValueError(f"count_rule must be one of {COUNT_RULES}, got {count_rule!r}")
        if init not in INITS:
            raise ValueError(f"init must be one of {INITS}, got {init!r}")
        self.count_rule, self.init = count_rule, init

    def scores(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> list[Tensor]:
        """One score tensor per parameter; the largest are perturbed."""
        # not abstract: a policy that overrides ``ranking`` needs no scores
        raise NotImplementedError(f"{type(self).__name__} defines neither scores nor ranking")

    def ranking(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> Ranking:
        """What entries are ranked by; the scores, unless a policy needs no memory for them."""
        return Ranking(self.scores(params, *data, seed=seed, update=update))

    @torch.no_grad()
    def compute(
        self,
        params: Sequence[Tensor],
        sparsity: float,
        *data: Any,
        seed: int = 0,
        update: int = 0,
        pattern: str | Pattern = "unstructured",
        axis: str = "in",
        within: BitMask | None = None,
        names: Sequence[str] | None = None,
    ) -> BitMask:
        """Return the mask of the best entries over all parameters together.

        Args:
            params: the maskable parameters, in the order of the global index.
            sparsity: s in [0, 1], fraction of zeros; ignored by n:m patterns.
            data: what the policy needs beyond the parameters.
            seed: base seed of policies that draw numbers.
            update: number of this mask update.
            pattern: "unstructured", "row", "filter", "tensor", "n:m", or a ``Pattern``.
            axis: of n:m groups, where the pattern is given by name.
            within: weights that exist; only they are counted and chosen.
            names: of the parameters, for messages.

        Returns:
            A new mask; nothing is modified.

        Raises:
            ValueError: the sparsity is out of range, data are missing, or a score is NaN or
                infinite.
        """
        given = pattern if isinstance(pattern, Pattern) else Pattern(pattern, axis=axis)
        ranking = self.ranking(list(params), *data, seed=seed, update=update)
        check_finite(type(self).__name__, ranking, names)
        return select(ranking, given, sparsity, self.count_rule, within)

    def initial(
        self,
        params: Sequence[Tensor],
        sparsity: float,
        *,
        seed: int,
        pattern: Pattern,
        within: BitMask | None,
        names: Sequence[str] | None = None,
    ) -> BitMask | None:
        """The mask before the first update; None if it has to be asked for."""
        if self.init == "score":
            if self.needs_data:
                return None
            return self.compute(
                params, sparsity, seed=seed, pattern=pattern, within=within, names=names
            )
        if self.init == "random":
            key = derive_key(seed, 0, INIT_STREAM)
            ranking = Ranking(list(params), "random", key)
            return select(ranking, pattern, sparsity, self.count_rule, within)
        mask = BitMask.full(params, self.init == "ones")
        return mask if within is None else mask & within


class MagnitudeMask(MaskPolicy):
    """Perturb the entries with the largest ``|w|`` at the time of the update.

    Example:
        >>> w = torch.tensor([0.1, -3.0, 2.0, 0.0])
        >>> MagnitudeMask().compute([w], 0.5).to_bool()
        [tensor([False,  True,  True, False])]
    """

    def ranking(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> Ranking:
        """``|w|``; no data."""
        if data:
            raise ValueError("MagnitudeMask takes no data")
        return Ranking([p.detach() for p in params], "abs")


class SmallMagnitudeMask(MaskPolicy):
    """Perturb the entries with the smallest ``|w|`` at the time of the update; zeros come first.

    With ``Pattern(per_layer=True)`` and as the weight mask of ``MeZO``, computed once from the
    pretrained weights, it is Sparse-MeZO: a fraction ``sparsity`` of every tensor, its largest
    entries, is never touched.

    Source: Sparse-MeZO, arXiv 2402.15751, which fixes a threshold per layer before training and
    compares the moving weights with it in every step; here the chosen entries stay the same.

    Example:
        >>> w, b = torch.tensor([0.1, -3.0, 2.0, 0.0]), torch.tensor([5.0, 4.0])
        >>> SmallMagnitudeMask().compute([w, b], 0.5, pattern=Pattern(per_layer=True)).to_bool()
        [tensor([ True, False, False,  True]), tensor([False,  True])]
    """

    def scores(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> list[Tensor]:
        """``-|w|``; no data."""
        if data:
            raise ValueError("SmallMagnitudeMask takes no data")
        return [-p.detach().abs() for p in params]


class RandomMask(MaskPolicy):
    """Perturb entries drawn uniformly, exactly k(N, s) of them.

    Entries are ranked by 32-bit integers of the counter-based stream keyed by (seed, update
    number), one per global index: the same bits on every device and rank, whatever the global
    random state.

    Example:
        >>> a, b = (RandomMask().compute([torch.zeros(100)], 0.9, seed=3, update=u) for u in (0, 1))
        >>> a.live, b.live, a == b
        (10, 10, False)
    """

    def ranking(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> Ranking:
        """Random integers; no data."""
        if data:
            raise ValueError("RandomMask takes no data")
        return Ranking(list(params), "random", derive_key(seed, update, MASK_STREAM))
