"""Lottery tickets: train, prune, rewind, repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import mask_topk

from .._bitmask import live_count
from .._support import check_int, check_number
from ._scheduler import SparseTraining


class LotteryTicket(SparseTraining):
    """Iterative magnitude pruning with rewinding.

    Per level: train to the end, then ``prune()`` removes a fraction of the surviving weights, the
    smallest ``|w|`` over all layers, and takes parameters and buffers back to what they were after
    ``rewind_steps`` steps: live weights, biases and running statistics bit for bit, the others to
    +0.0. The optimizer's state is cleared. Its hyper-parameters are the caller's: set the learning
    rate back and make a new scheduler for every level, started at ``rewind_steps``.

    Args:
        model, optimizer, dense_layers, backend: as in ``SparseTraining``.
        prune_fraction: of the survivors, per level, in [0, 1]. After L levels of 0.2 the density is
            0.8^L; 90 % sparsity takes 11.
        rewind_steps: optimizer steps after which the rewind point is taken, at the next call of
            ``step``; 0: at construction. None keeps weights and buffers and only clears the
            optimizer (learning-rate rewinding).

    State:
        A copy of the model (the rewind point), in the checkpoint too.

    Source: lottery tickets, arXiv 1803.03635; rewinding, arXiv 1903.01611.

    Example:
        >>> model = torch.nn.Linear(10, 10)
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> ticket = LotteryTicket(model, opt)
        >>> for level in range(3):
        ...     for _ in range(5):
        ...         opt.zero_grad()
        ...         model(torch.ones(2, 10)).square().sum().backward()
        ...         skip = ticket.step()
        ...         opt.step()
        ...     ticket.prune()
        >>> ticket.mask.live
        51
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        prune_fraction: float = 0.2,
        *,
        rewind_steps: int | None = 0,
        dense_layers: Iterable[str] = (),
        backend: str = "auto",
    ) -> None:
        self.prune_fraction = check_number("prune_fraction", prune_fraction, 0.0, 1.0)
        if rewind_steps is not None:
            check_int("rewind_steps", rewind_steps, 0)
        self.rewind_steps = rewind_steps
        self._point: dict[str, Tensor] | None = None
        super().__init__(model, optimizer, 0.0, dense_layers=dense_layers, backend=backend)
        if rewind_steps == 0:
            self._take_point()

    @property
    def level(self) -> int:
        """Prunings so far."""
        return self.updates

    def _tensors(self) -> dict[str, Tensor]:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: t.detach() for name, t in named}

    def _take_point(self) -> None:
        self._point = {name: t.clone() for name, t in self._tensors().items()}

    def step(self, grads: Sequence[Tensor | None] | None = None) -> bool:
        """Count one iteration; call it before the optimizer's step. Takes the rewind point.

        Returns:
            False.
        """
        self._require_idle("step")
        if self._point is None and self.steps == self.rewind_steps:
            self._take_point()
        return super().step(grads)

    @torch.no_grad()
    def prune(self) -> None:
        """Remove ``prune_fraction`` of the survivors and go back to the rewind point.

        ``k = live_count(k, prune_fraction)`` survivors stay. ``steps`` becomes ``rewind_steps``.

        Raises:
            RuntimeError: the optimizer is inside a step, or training has not come to the rewind
                point; nothing is modified.
        """
        self._require_idle("prune")
        if self._point is None and self.steps == self.rewind_steps:
            self._take_point()
        if self._point is None and self.rewind_steps is not None:
            raise RuntimeError(
                f"LotteryTicket.prune: {self.steps} steps, the rewind point is after "
                f"{self.rewind_steps}"
            )
        k = live_count(sum(self._live), self.prune_fraction)
        words = mask_topk(self._params, k, kind="abs", among=self.mask.words, backend=self.backend)
        for name, tensor in self._tensors().items():
            if self._point is not None:
                tensor.copy_(self._point[name])
        self.optimizer.state.clear()
        self._commit(words)
        self.updates += 1
        self.steps = self.rewind_steps or 0

    def _extra_state(self) -> dict[str, Any]:
        point = self._point
        return {"point": None if point is None else {n: t.clone() for n, t in point.items()}}

    def _load_extra_state(self, state_dict: Mapping[str, Any]) -> None:
        point = state_dict["point"]
        if point is None:
            self._point = None
            return
        own = self._tensors()
        for name in {*point} ^ {*own}:
            raise ValueError(f"LotteryTicket.load_state_dict: {name!r} is in one model only")
        for name, t in own.items():
            if t.shape != point[name].shape:
                raise ValueError(f"LotteryTicket.load_state_dict: {name!r} has another shape")
        self._point = {n: point[n].clone().to(t.device) for n, t in own.items()}
