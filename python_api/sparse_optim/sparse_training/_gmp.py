"""Gradual magnitude pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import mask_topk

from .._bitmask import live_count
from .._support import check_int, check_number
from ..sparsity_control import CubicRamp
from ._dynamic import DynamicSparseTraining
from .distributions import DISTRIBUTIONS


class GMP(DynamicSparseTraining):
    """Gradual magnitude pruning: start dense, keep the largest weights, ever fewer of them.

    At time t the sparsity is ``s + (s0 - s)(1 - (t - start_at) / (stop_at - start_at))^3``; an
    update keeps as many of the largest ``|w|``. What is pruned stays +0.0, except that a layer
    whose rounded count rises takes back a place. Survivors keep value and state. The last update
    is at ``stop_at``, whether or not the period divides it.

    Args:
        model, optimizer, sparsity, dense_layers, seed, grown_state, backend: as in
            ``SparseTraining``; sparsity is that of the end.
        distribution: "global", the largest of all layers together, or "erk", "er" or "uniform"
            (``layer_counts`` at every sparsity of the ramp).
        initial_sparsity: s0 in [0, 1], from the start on.
        start_at: no update up to this call, >= 0.
        stop_at: call of the last update, the end of the ramp, > ``start_at``; with training left,
            for the network to recover.
        first_dense, update_every: as in ``SET``.

    Source: Zhu and Gupta, arXiv 1710.01878. Deviation: pruned weights do not return by growing
        below the mask.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> sparse = GMP(model, opt, sparsity=0.75, update_every=2, stop_at=5)
        >>> live = []
        >>> for _ in range(6):
        ...     opt.zero_grad()
        ...     model(torch.randn(3, 8)).square().sum().backward()
        ...     skip = sparse.step()
        ...     opt.step()
        ...     live.append(sparse.mask.live)
        >>> live
        [192, 79, 79, 49, 48, 48]
    """

    _distributions = ("global", *DISTRIBUTIONS)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        distribution: str = "global",
        *,
        initial_sparsity: float = 0.0,
        start_at: int = 0,
        stop_at: int = 75000,
        update_every: int | Sequence[tuple[int, int]] = 100,
        first_dense: bool | None = None,
        **options: Any,
    ) -> None:
        check_number("sparsity", sparsity, 0.0, 1.0)
        check_number("initial_sparsity", initial_sparsity, 0.0, sparsity)
        self.start_at = check_int("start_at", start_at, 0)
        stop_at = check_int("stop_at", stop_at, self.start_at + 1)
        self.ramp = CubicRamp(initial_sparsity, sparsity, self.start_at, stop_at)
        super().__init__(
            model, optimizer, sparsity, distribution=distribution, first_dense=first_dense,
            update_every=update_every, stop_at=stop_at, **options,
        )  # fmt: skip

    def _begin(self) -> None:
        self._prune(self.ramp(self.start_at))

    @property
    def update_due(self) -> bool:
        """Whether the next ``step`` changes the mask."""
        assert self.stop_at is not None
        if not self.start_at < self._time <= self.stop_at:
            return False
        return self._time == self.stop_at or self._time % self.update_every.at(self._time) == 0

    def _update(self, grads: Sequence[Tensor | None] | None) -> bool:
        self._prune(self.ramp(self._time))
        return False

    @torch.no_grad()
    def _prune(self, sparsity: float) -> None:
        """Pruned weights are +0.0 and so rank last."""
        if self.distribution == "global":
            live = live_count(sum(self._sizes), sparsity)
            self._commit(mask_topk(self._params, live, kind="abs", backend=self.backend))
            return
        counts = self._counts(sparsity)
        words = mask_topk(self._params, counts, kind="abs", backend=self.backend)
        self._commit(words, counts)
