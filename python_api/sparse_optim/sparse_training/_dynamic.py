"""What the methods share that move the live weights while training."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import derive_key, mask_topk

from .._policy import WEIGHT_GROW_STREAM, WEIGHT_INIT_STREAM
from .._support import check_int
from ._scheduler import SparseTraining
from .distributions import DISTRIBUTIONS, check_distribution, layer_counts


class Piecewise:
    """A value that changes at given times.

    Args:
        name: for messages.
        value: a number, or (time, number) pairs: the number from that time on; the first time is 0.
        check: returns a number, or raises ValueError.

    Raises:
        ValueError: the times do not start at 0 or do not increase, or a number is refused.

    Example:
        >>> bound = Piecewise("lower", [(0, 0.92), (90, 0.91)], lambda name, x: float(x))
        >>> bound.at(89), bound.at(90)
        (0.92, 0.91)
    """

    def __init__(self, name: str, value: Any, check: Callable[[str, Any], Any]) -> None:
        pairs = list(value) if isinstance(value, (list, tuple)) else [(0, value)]
        if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
            raise ValueError(f"{name} must be a number or (time, number) pairs, got {value!r}")
        self.times = [check_int(name, time, 0) for time, _ in pairs]
        self.values = [check(name, v) for _, v in pairs]
        if self.times[:1] != [0] or self.times != sorted(set(self.times)):
            raise ValueError(f"{name}: the times must start at 0 and increase, got {self.times}")

    def at(self, time: int) -> Any:
        """The value in force at a time."""
        started = [v for t, v in zip(self.times, self.values, strict=True) if t <= time]
        return started[-1]


def _period(name: str, value: Any) -> int:
    return check_int(name, value, 1)


class DynamicSparseTraining(SparseTraining, abc.ABC):
    """A mask that is updated every ``update_every`` calls of ``step``, before ``stop_at``."""

    #: time of the first call of ``step``; an update is due where the period divides the time
    _first_time = 1
    _distributions: tuple[str, ...] = DISTRIBUTIONS
    #: whether an update reads dense gradients
    _reads_gradients = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        *,
        distribution: str,
        first_dense: bool | None,
        update_every: int | Sequence[tuple[int, int]],
        stop_at: int | None,
        **options: Any,
    ) -> None:
        self.distribution = check_distribution(distribution, self._distributions)
        self.update_every = Piecewise("update_every", update_every, _period)
        self.stop_at = None if stop_at is None else check_int("stop_at", stop_at, 0)
        if first_dense is None:
            first_dense = distribution == "uniform"
        super().__init__(model, optimizer, sparsity, first_dense=first_dense, **options)
        self._begin()

    def _begin(self) -> None:
        """Put the mask of the start in force."""
        live = self._counts(self.sparsity)
        self._commit(self._first_mask(live), live)

    def _counts(self, sparsity: float) -> list[int]:
        """Live weights of every layer under the distribution."""
        shapes = {name: p.shape for name, p in self.weights.items()}
        return list(layer_counts(shapes, sparsity, self.distribution, first_dense=False).values())

    def _first_mask(self, live: list[int]) -> list[Tensor]:
        key = derive_key(self.seed, 0, WEIGHT_INIT_STREAM)
        return mask_topk(self._params, live, kind="random", key=key, backend=self.backend)

    @property
    def _time(self) -> int:
        """Time of the next call of ``step``."""
        return self.steps + self._first_time

    @property
    def update_due(self) -> bool:
        """Whether the next ``step`` changes the mask (and so reads dense gradients)."""
        if self.stop_at is not None and self._time >= self.stop_at:
            return False
        return self._time % self.update_every.at(self._time) == 0

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None] | None = None) -> bool:
        self._require_idle("step")
        due, instead = self.update_due, False
        if due:
            instead = self._update(grads)
            self.updates += 1
        self.read_gradients, self.replaced_step = due and self._reads_gradients, instead
        self.steps += 1
        return instead

    step.__doc__ = SparseTraining.step.__doc__

    @abc.abstractmethod
    def _update(self, grads: Sequence[Tensor | None] | None) -> bool:
        """Change the mask; whether this takes the place of the optimizer's step."""

    @property
    def _grow_key(self) -> int:
        return derive_key(self.seed, self.updates + 1, WEIGHT_GROW_STREAM)

    def _exchange(
        self, scores: Iterable[Tensor], kind: str, kept: list[int], grown: list[int]
    ) -> None:
        """Keep the best live weights of every layer, then grow at random among all others.

        A weight that is dropped and grown again starts anew, as any other.
        """
        keep = mask_topk(list(scores), kept, kind=kind, among=self.mask.words, backend=self.backend)
        words = mask_topk(
            self._params, grown, kind="random", key=self._grow_key, among=keep, inverted=True,
            out=[w.clone() for w in keep], backend=self.backend,
        )  # fmt: skip
        self._commit(words, [k + g for k, g in zip(kept, grown, strict=True)], keep)
