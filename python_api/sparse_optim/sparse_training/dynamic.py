"""Masks that move while training: SET, RigL, MEST, DSR and gradual magnitude pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import mask_dropgrow, mask_topk, unpack_mask

from .._bitmask import live_count
from .._support import check_int, check_number
from ._dsr import DSR
from ._dynamic import DynamicSparseTraining, Piecewise
from ._gmp import GMP
from ._scheduler import wide

__all__ = ["DSR", "GMP", "MEST", "SET", "RigL"]

GROW_GRADS = ("w", "perturbed")


class SET(DynamicSparseTraining):
    """Sparse evolutionary training: drop the smallest weights, grow as many at random.

    Per layer, with k_l live: ``live_count(k_l, drop_fraction)`` of the largest ``|w|`` stay, the
    others make room for as many drawn from all empty places, those just dropped included. Grown
    weights start at +0.0 with no state; survivors keep theirs. The random mask at the start and the
    counts per layer follow the distribution.

    Args:
        model, optimizer, sparsity, dense_layers, seed, grown_state, backend: as in
            ``SparseTraining``.
        distribution: "erk", "er" or "uniform" (``layer_counts``).
        first_dense: leave the first layer dense; default: for "uniform".
        drop_fraction: of the live weights, per update, in [0, 1].
        update_every: calls of ``step`` from one update to the next, or (time, period) pairs. With
            one call per epoch and 1 it is the published schedule.
        stop_at: no update from this call on; None: never.

    Source: SET, 10.1038/s41467-018-04316-3. Deviations: plain ``|w|`` instead of each sign by
    itself, value 0, ERK.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> sparse = SET(model, opt, sparsity=0.75, update_every=2)
        >>> for _ in range(4):
        ...     opt.zero_grad()
        ...     model(torch.randn(3, 8)).square().sum().backward()
        ...     skip = sparse.step()
        ...     opt.step()
        >>> sparse.updates, sparse.mask.live, sparse.layer_live
        (2, 48, {'0.weight': 26, '1.weight': 22})
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        distribution: str = "erk",
        *,
        drop_fraction: float = 0.3,
        update_every: int | Sequence[tuple[int, int]] = 100,
        stop_at: int | None = None,
        first_dense: bool | None = None,
        **options: Any,
    ) -> None:
        self.drop_fraction = check_number("drop_fraction", drop_fraction, 0.0, 1.0)
        super().__init__(
            model, optimizer, sparsity, distribution=distribution, first_dense=first_dense,
            update_every=update_every, stop_at=stop_at, **options,
        )  # fmt: skip

    def _update(self, grads: Sequence[Tensor | None] | None) -> bool:
        kept = [live_count(k, self.drop_fraction) for k in self._live]
        grown = [k - stay for k, stay in zip(self._live, kept, strict=True)]
        self._exchange(self._params, "abs", kept, grown)
        return False


class RigL(DynamicSparseTraining):
    """Rigging the lottery: drop the smallest weights, grow where the dense gradient is largest.

    At time t ``f = alpha / 2 (1 + cos(pi t / stop_at))``; per layer the ``floor(f k_l)`` smallest
    ``|w|`` go and as many grow by ``|g|`` among all that did not stay, so that one just dropped may
    return with its value and state. Others start at +0.0 with no state. An update takes the place
    of the optimizer's step: ``step`` returns True.

    Args:
        model, optimizer, sparsity, dense_layers, seed, grown_state, backend: as in
            ``SparseTraining``.
        distribution, first_dense, update_every: as in ``SET``.
        drop_fraction: alpha in [0, 1].
        stop_at: no update from this call on, the end of the cosine, >= 1; about 3/4 of the run.
        grow_grad: "w": from ``.grad`` at the call, dense and at w; "perturbed": from the gradients
            given to ``step``, for ZO-SAM, which takes none at w (``opt.restore()`` comes first).
        grown_momentum: the ``momentum_buffer`` of grown weights starts at this times the gradient.

    Source: RigL, arXiv 1911.11134.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> sparse = RigL(model, opt, sparsity=0.75, update_every=2, stop_at=5)
        >>> skipped = []
        >>> for _ in range(6):
        ...     opt.zero_grad()
        ...     model(torch.randn(3, 8)).square().sum().backward()
        ...     skipped.append(sparse.step())
        ...     if not skipped[-1]:
        ...         opt.step()
        >>> skipped, sparse.mask.live
        ([False, True, False, True, False, False], 48)
    """

    _reads_gradients = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        distribution: str = "erk",
        *,
        drop_fraction: float = 0.3,
        update_every: int | Sequence[tuple[int, int]] = 100,
        stop_at: int = 75000,
        grow_grad: str = "w",
        grown_momentum: float = 0.0,
        first_dense: bool | None = None,
        **options: Any,
    ) -> None:
        self.drop_fraction = check_number("drop_fraction", drop_fraction, 0.0, 1.0)
        self.grown_momentum = check_number("grown_momentum", grown_momentum, -math.inf)
        if grow_grad not in GROW_GRADS:
            raise ValueError(f"grow_grad must be one of {GROW_GRADS}, got {grow_grad!r}")
        self.grow_grad = grow_grad
        super().__init__(
            model, optimizer, sparsity, distribution=distribution, first_dense=first_dense,
            update_every=update_every, stop_at=check_int("stop_at", stop_at, 1),
            **options,
        )  # fmt: skip

    def drop_fraction_at(self, time: int) -> float:
        """f at a time."""
        assert self.stop_at is not None
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * time / self.stop_at))

    def _update(self, grads: Sequence[Tensor | None] | None) -> bool:
        if (grads is None) != (self.grow_grad == "w"):
            raise ValueError("RigL.step: grads go with grow_grad='perturbed' and only with it")
        found = self._gradients("step", grads)
        fraction = self.drop_fraction_at(self._time)
        old = self.mask.words
        words = mask_dropgrow(
            old, self._live, [math.floor(fraction * k) for k in self._live], self._params, found,
            regrow=True, backend=self.backend,
        )  # fmt: skip
        self._commit(words, self._live)
        if self.grown_momentum:
            self._start_momentum([new & ~was for new, was in zip(words, old, strict=True)], found)
        return True

    def _start_momentum(self, grown: list[Tensor], grads: list[Tensor]) -> None:
        masks = unpack_mask(grown, self.mask.shapes, backend=self.backend)
        for p, mask, g in zip(self._params, masks, grads, strict=True):
            buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                buffer.copy_(torch.where(mask, (self.grown_momentum * g).to(buffer.dtype), buffer))


class MEST(DynamicSparseTraining):
    """Memory-economic sparse training: prune to one sparsity, grow to another at random.

    Score ``|w| + weight_grad |g|``, per layer. The mask starts with the largest ``|w|`` of the
    initialisation. An update prunes to ``lower`` sparsity and grows to ``upper`` among all zeros;
    grown weights start at +0.0, momentum stays (``grown_state="keep"``). The first call of ``step``
    is time 0 and an update.

    Args:
        model, optimizer, sparsity, dense_layers, seed, backend: as in ``SparseTraining``.
        distribution, first_dense, update_every, stop_at: as in ``SET``.
        lower: sparsity pruned to, or (time, sparsity) pairs; default: a fifth of the live weights
            is exchanged. Published for 90 % and one call of ``step`` per epoch, of 160:
            ``[(0, 0.92), (90, 0.91), (120, 0.9)]`` (EM), 0.9 (EM&S).
        upper: sparsity grown to, <= lower at all times; default ``sparsity``. Published: 0.9 (EM),
            ``[(0, 0.85), (90, 0.875), (120, 0.9)]`` (EM&S).
        weight_grad: lambda >= 0; above 0 an update reads dense gradients.
        grown_state: "keep" or "zero".

    Source: MEST, arXiv 2110.14032.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 10), torch.nn.Linear(10, 10))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> sparse = MEST(model, opt, sparsity=0.9, update_every=5, upper=[(0, 0.85), (10, 0.9)],
        ...               lower=0.9, first_dense=False)
        >>> live = []
        >>> for epoch in range(11):
        ...     skip = sparse.step()
        ...     live.append(sparse.mask.live)
        >>> live
        [27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 18]
    """

    _first_time = 0

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        distribution: str = "uniform",
        *,
        lower: float | Sequence[tuple[int, float]] | None = None,
        upper: float | Sequence[tuple[int, float]] | None = None,
        weight_grad: float = 0.0,
        update_every: int | Sequence[tuple[int, int]] = 100,
        stop_at: int | None = None,
        first_dense: bool | None = None,
        grown_state: str = "keep",
        **options: Any,
    ) -> None:
        check_number("sparsity", sparsity, 0.0, 1.0)
        self.weight_grad = check_number("weight_grad", weight_grad, 0.0)
        self._reads_gradients = self.weight_grad > 0.0
        self.lower = Piecewise(
            "lower", 1.0 - 0.8 * (1.0 - sparsity) if lower is None else lower, _sparsity
        )
        self.upper = Piecewise("upper", sparsity if upper is None else upper, _sparsity)
        for time in {*self.lower.times, *self.upper.times}:
            if self.lower.at(time) < self.upper.at(time):
                raise ValueError(
                    f"lower must be >= upper, got {self.lower.at(time)} and "
                    f"{self.upper.at(time)} at time {time}"
                )
        super().__init__(
            model, optimizer, sparsity, distribution=distribution, first_dense=first_dense,
            update_every=update_every, stop_at=stop_at, grown_state=grown_state, **options,
        )  # fmt: skip

    def _first_mask(self, live: list[int]) -> list[Tensor]:
        return mask_topk(self._params, live, kind="abs", backend=self.backend)

    def _update(self, grads: Sequence[Tensor | None] | None) -> bool:
        scores, kind = self._params, "abs"
        if self.weight_grad > 0.0:
            found = self._gradients("step", grads)
            pairs = zip(self._params, found, strict=True)
            scores = [wide(p).abs() + self.weight_grad * wide(g).abs() for p, g in pairs]
            kind = "value"
        lower = self._counts(self.lower.at(self._time))
        upper = self._counts(self.upper.at(self._time))
        kept = [min(k, bound) for k, bound in zip(self._live, lower, strict=True)]
        grown = [max(bound - k, 0) for k, bound in zip(kept, upper, strict=True)]
        self._exchange(scores, kind, kept, grown)
        return False


def _sparsity(name: str, value: Any) -> float:
    return check_number(name, value, 0.0, 1.0)
