"""MeZO as it is published, in plain torch: the baseline that the fused one is compared with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class EagerMeZO(Optimizer):
    """Reseed the global generator, draw z tensor by tensor, and add it to new weights.

    One direction per step. The weights come back by adding, so they drift by rounding; the forwards
    draw their dropout masks from the generator that z is drawn from.

    Args:
        params: parameters or groups.
        lr, smoothing, weight_decay: as ``MeZO`` takes them.
        seed: of the seeds of the steps.

    Source: princeton-nlp/MeZO, ``zo_perturb_parameters``, ``zo_step`` and ``zo_update`` of
    large_models/trainer.py.
    """

    last_step_passes = (2, 0)  #: forwards and backwards of a step

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, smoothing: float = 1e-3,
        weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.smoothing = smoothing
        self._seeds = random.Random(seed)

    def _with_directions(self, seed: int, change: Callable[[Tensor, Tensor, Any], Tensor]) -> None:
        torch.manual_seed(seed)
        for group in self.param_groups:
            for p in group["params"]:
                z = torch.normal(0.0, 1.0, size=p.shape, device=p.device, dtype=p.dtype)
                p.data = change(p.data, z, group)

    def _perturb(self, seed: int, scale: float) -> None:
        self._with_directions(seed, lambda w, z, group: w + scale * z * self.smoothing)

    @torch.no_grad()
    def step(self, loss_closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step; returns the first of its two losses."""
        seed = self._seeds.randrange(1_000_000_000)
        self._perturb(seed, 1.0)
        up = loss_closure()
        self._perturb(seed, -2.0)
        down = loss_closure()
        slope = ((up - down) / (2.0 * self.smoothing)).item()
        self._perturb(seed, 1.0)
        self._with_directions(
            seed, lambda w, z, g: w - g["lr"] * (slope * z + g["weight_decay"] * w)
        )
        return up
