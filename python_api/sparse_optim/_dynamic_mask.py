"""The dynamic mask of SSAM-D: some perturbed entries are exchanged for others, at equal count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import derive_key, mask_dropgrow

from ._bitmask import BitMask, live_count
from ._patterns import Ranking
from ._policy import DROP_STREAM, GROW_STREAM, MaskPolicy
from ._support import check_int, check_number

EXCHANGE_SCORES = ("gradient", "weight", "random")
COUNTS = ("conserved", "published")


class DynamicMask(MaskPolicy):
    """Exchange a fraction of the perturbed entries at every update (SSAM-D).

    ``d(t) = drop_rate (1 + cos(pi (t - start) / (end - start))) / 2``, 0 after ``end``;
    ``D = min(floor(k d + 1/2), k, N - k)``. The k - D perturbed entries with the largest drop score
    stay, and the D largest grow scores among the entries that were not perturbed before join them.
    Scores are taken from the gradient and the weights at w; the number of ones is conserved
    exactly.

    Args:
        drop_rate: fraction exchanged at the start, in [0, 1].
        drop, grow: score by "gradient" (``|g|``), "weight" (``|w|``) or "random" (the counter-based
            stream, keyed by seed and update number).
        start, end: t0 and t1 of the cosine, in the unit in which ``update_mask(t)`` is called
            (epochs, say), start < end; None for a constant rate.
        update_every: exchange by itself in every so many steps, t counted in steps; None: when
            ``update_mask(t)`` asks for it.
        counts: "conserved", or for parity "published": the released code's int(k d) dropped and
            min(int(k d), int(N s)) grown, by which the number of ones drifts.
        count_rule, init: as in ``MaskPolicy``.

    Raises:
        ValueError: an option is out of range.

    Source: Sparse SAM, arXiv 2210.05177 (SSAM-D).
    """

    needs_data = False

    def __init__(
        self,
        drop_rate: float = 0.5,
        drop: str = "gradient",
        grow: str = "random",
        *,
        start: float = 0.0,
        end: float | None = None,
        update_every: int | None = None,
        counts: str = "conserved",
        count_rule: str = "round",
        init: str = "random",
    ) -> None:
        super().__init__(count_rule, init)
        if init == "score":
            raise ValueError("DynamicMask: init must be 'random', 'ones' or 'zeros'")
        self.drop_rate = check_number("drop_rate", drop_rate, 0.0, 1.0)
        for name, value in (("drop", drop), ("grow", grow)):
            if value not in EXCHANGE_SCORES:
                raise ValueError(f"{name} must be one of {EXCHANGE_SCORES}, got {value!r}")
        if counts not in COUNTS:
            raise ValueError(f"counts must be one of {COUNTS}, got {counts!r}")
        self.drop, self.grow, self.counts = drop, grow, counts
        self.start = check_number("start", start, -math.inf)
        self.end = None if end is None else check_number("end", end, self.start, strict=True)
        self.update_every = (
            None if update_every is None else check_int("update_every", update_every, 1)
        )

    def ranking(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> Ranking:
        """A dynamic mask has no ranking of its own: it comes from the mask before."""
        raise ValueError("DynamicMask exchanges entries of a mask; use exchange")

    def rate(self, t: float) -> float:
        """Fraction d(t) of the perturbed entries that an update at time t exchanges.

        Example:
            >>> policy = DynamicMask(0.5, end=10)
            >>> policy.rate(0), policy.rate(5), policy.rate(10), policy.rate(11)
            (0.5, 0.25, 0.0, 0.0)
        """
        if self.end is None:
            return self.drop_rate
        phase = min(max((t - self.start) / (self.end - self.start), 0.0), 1.0)
        if phase == 1.0:
            return 0.0
        return self.drop_rate * (1.0 + math.cos(math.pi * phase)) / 2.0

    def _exchanged(self, numel: int, live: int, sparsity: float, rate: float) -> tuple[int, int]:
        """How many entries go, and how many come."""
        wanted = live_count(numel, sparsity, self.count_rule)
        if self.counts == "published":
            moved = int(live * rate)
            return moved, min(moved, int(numel * sparsity), numel - live)
        # what grows comes from the entries that were 0, numel - live of them
        room = numel - max(live, wanted)
        dropped = min(math.floor(live * rate + 0.5), live, room)
        dropped = max(dropped, live - wanted)
        return dropped, wanted - (live - dropped)

    def _scores(
        self, by: str, params: list[Tensor], grads: list[Tensor], key: int
    ) -> tuple[list[Tensor], str, int | None]:
        if by == "random":
            return params, "random", key
        return (grads if by == "gradient" else params), "abs", None

    @torch.no_grad()
    def exchange(
        self,
        mask: BitMask,
        live: int,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        sparsity: float,
        t: float,
        *,
        seed: int = 0,
        update: int = 0,
        within: BitMask | None = None,
    ) -> BitMask:
        """Return the mask after the update at time t.

        Args:
            mask: the one in force; not modified.
            live: its number of ones.
            params, grads: weights and their gradients, in the order of the mask.
            sparsity: s; where it changed since, the count follows by growing more or less.
            t: time of the update.
            seed, update: key the random scores.
            within: weights that exist.

        Returns:
            A new mask, with exactly k(N, s) ones where counts are conserved.

        Raises:
            ValueError: the sparsity is out of range.
        """
        numel = mask.numel if within is None else within.live
        dropped, grown = self._exchanged(numel, live, sparsity, self.rate(t))
        keys = [derive_key(seed, update, stream) for stream in (DROP_STREAM, GROW_STREAM)]
        by_drop = self._scores(self.drop, list(params), list(grads), keys[0])
        by_grow = self._scores(self.grow, list(params), list(grads), keys[1])
        words = mask_dropgrow(
            mask.words, live, dropped, by_drop[0], by_grow[0],
            drop_kind=by_drop[1], drop_key=by_drop[2], grow_kind=by_grow[1], grow_key=by_grow[2],
            grow=grown, within=None if within is None else within.words,
        )  # fmt: skip
        return BitMask(words, mask.shapes)
