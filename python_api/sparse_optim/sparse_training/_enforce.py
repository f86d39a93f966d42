"""Keeping the dead weights of an optimizer at +0.0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparse_kernels import mask_apply_

from .._base import PerturbingOptimizer
from .._bitmask import BitMask
from .._support import trainable


class Enforcer:
    """Applies a weight mask around the steps of one optimizer.

    An optimizer with ``set_weight_mask`` is told the mask, since it moves weights inside its step.
    Around the step of any other one, gradients are masked before and weights after it.

    Args:
        optimizer: trains the weights.
        weights: the maskable weights by name.
        backend: of the operations.

    Raises:
        ValueError: the optimizer does not train one of the weights.
    """

    def __init__(self, optimizer: Optimizer, weights: dict[str, Tensor], backend: str) -> None:
        trained = {id(p) for p in trainable(optimizer.param_groups)}
        for name, p in weights.items():
            if id(p) not in trained:
                raise ValueError(f"optimizer: it does not train {name!r}")
        self.optimizer = optimizer
        self.params = list(weights.values())
        self.backend = backend
        self.words: list[Tensor] | None = None
        self._tell = getattr(optimizer, "set_weight_mask", None)
        self._handles: list[Any] = []
        if self._tell is None:
            self._handles = [
                optimizer.register_step_pre_hook(self._before),
                optimizer.register_step_post_hook(self._after),
            ]

    @torch.no_grad()
    def install(self, words: list[Tensor], keep: list[Tensor], clear_state: bool) -> None:
        """Put a mask in force; weights (and state) outside ``keep`` become +0.0.

        Args:
            words: packed mask over the weights.
            keep: packed mask of the weights that hold their value; a part of ``words``.
            clear_state: clear the optimizer's entries of the others too.
        """
        mask_apply_(self.params, keep, backend=self.backend)
        if clear_state:
            self._clear_state(keep)
        if self._tell is not None:
            params = trainable(self.optimizer.param_groups)
            of = {id(p): w for p, w in zip(self.params, words, strict=True)}
            filled = [of[id(p)] if id(p) in of else BitMask.full([p]).words[0] for p in params]
            every = BitMask(filled, [p.shape for p in params])
            if isinstance(self.optimizer, PerturbingOptimizer):
                self._tell(every, keep_state=not clear_state)
            else:  # MeZO has no state of its own
                self._tell(every)
        self.words = words

    def _clear_state(self, keep: Sequence[Tensor]) -> None:
        found, masks = [], []
        for p, words in zip(self.params, keep, strict=True):
            for value in self.optimizer.state.get(p, {}).values():
                alike = isinstance(value, Tensor) and value.shape == p.shape
                if alike and value.is_floating_point():
                    found.append(value)
                    masks.append(words)
        mask_apply_(found, masks, backend=self.backend)

    @torch.no_grad()
    def mask_grads_(self) -> None:
        """Clear the gradients of dead weights."""
        if self.words is None:
            return
        pairs = [
            (p.grad, w) for p, w in zip(self.params, self.words, strict=True) if p.grad is not None
        ]
        mask_apply_([g for g, _ in pairs], [w for _, w in pairs], backend=self.backend)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Mask the gradients, those that a closure is about to make included."""
        self.mask_grads_()
        args = tuple(self._masking(a) if callable(a) else a for a in args)
        return args, {k: self._masking(v) if callable(v) else v for k, v in kwargs.items()}

    def _masking(self, closure: Any) -> Any:
        def masked() -> Any:
            loss = closure()
            self.mask_grads_()
            return loss

        return masked

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.words is not None:
            mask_apply_(self.params, self.words, backend=self.backend)

    def detach(self) -> None:
        """Take the hooks off; an optimizer that was told the mask forgets it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._tell is not None and self.words is not None:
            self._tell(None)
        self._tell, self.words = None, None
