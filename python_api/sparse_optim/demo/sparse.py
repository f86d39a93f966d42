"""Sparse training methods by name, with schedules in the length of one run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import (
    DSR,
    GMP,
    MEST,
    SET,
    SNIP,
    ZOSAM,
    GraSP,
    LotteryTicket,
    RigL,
    SparseTraining,
    class_balanced,
)
from .data import Data, Dataset

METHODS = ("none", "snip", "grasp", "lth", "set", "dsr", "rigl", "mest", "gmp")
DYNAMIC = {"set": SET, "dsr": DSR, "rigl": RigL, "mest": MEST, "gmp": GMP}
MOVING = ("set", "dsr", "rigl", "mest")  # those that start sparse and move their masks
STARTS = ("masked", "scaled")
ROUNDS = 4  # of a lottery ticket: the last one trains what the ones before have found
UPDATES = 20  # of a moving mask, about, in the first three quarters; short runs: every step
SNIP_SAMPLES = 128
GRASP_PER_CLASS = 10

Loss = Callable[[Any, Any], Tensor]


class SparseMethod:
    """One sparse training method around the optimizer of one run.

    Every method ends at the same fraction of zeros: no layer is left dense.

    Args:
        name: one of ``METHODS``, not "none".
        model, optimizer: the run's; weights become 0 here, except for "lth".
        sparsity: fraction of the convolution and linear weights that is zero in the end.
        distribution: among the layers, of the methods in ``DYNAMIC``; None: each method's default.
        start: one of ``STARTS``: "scaled" divides the live weights of every layer by the root of
            its density, for the methods in ``MOVING``.
        data: the training split gives the samples that "snip" and "grasp" score with.
        loss_fn: the loss that "snip" scores with.
        total_steps: of the run.
        seed: of samples, random masks and growth.
        backend: of the masks' operations.

    Attributes:
        scoring: samples, forwards and backwards that found the mask before the first step.

    Raises:
        ValueError: an option is out of range, the run is too short or there are too few samples.
    """

    def __init__(
        self, name: str, model: nn.Module, optimizer: Optimizer, sparsity: float,
        distribution: str | None, start: str = "masked", *, data: Data, loss_fn: Loss,
        total_steps: int, seed: int, backend: str,
    ) -> None:  # fmt: skip
        self.name, self.total_steps = name, total_steps
        self.scoring = (0, 0, 0)
        self._order = torch.Generator().manual_seed(seed)
        shared: dict[str, Any] = {"backend": backend, "seed": seed}
        self.scheduler: SparseTraining
        if name == "lth":
            if total_steps < ROUNDS:
                raise ValueError(
                    f"lth needs {ROUNDS} steps, one per round; there are {total_steps}"
                )
            fraction = 1.0 - (1.0 - sparsity) ** (1.0 / (ROUNDS - 1))
            self.scheduler = LotteryTicket(model, optimizer, fraction, backend=backend)
        elif name == "snip":
            self.scheduler = snip = SNIP(model, optimizer, sparsity, **shared)
            samples = data.samples(SNIP_SAMPLES, self._order)
            snip.prune(loss_fn, *samples)
            self.scoring = (len(samples[1]), 1, 1)
        elif name == "grasp":
            self.scheduler = grasp = GraSP(model, optimizer, sparsity, **shared)
            samples = self._balanced(data)
            grasp.prune(samples)
            # two gradients, and that of the second one: two forwards' work for each of its three
            self.scoring = (len(samples[1]), 2, 5)
        else:
            self.scheduler = self._dynamic(model, optimizer, sparsity, distribution, shared)
            if start == "scaled":
                self._scale_start()

    def _dynamic(
        self, model: nn.Module, optimizer: Optimizer, sparsity: float, distribution: str | None,
        shared: dict[str, Any],
    ) -> SparseTraining:  # fmt: skip
        stop = max(3 * self.total_steps // 4, 1)
        options = {**shared, "update_every": max(stop // UPDATES, 1), "stop_at": stop}
        if distribution is not None:
            options["distribution"] = distribution
        if self.name == "rigl" and isinstance(optimizer, ZOSAM):
            options["grow_grad"] = "perturbed"  # it takes no gradient at w
        return DYNAMIC[self.name](model, optimizer, sparsity, first_dense=False, **options)

    @torch.no_grad()
    def _scale_start(self) -> None:
        for name, weight in self.scheduler.weights.items():
            weight.mul_(math.sqrt(weight.numel() / max(self.scheduler.layer_live[name], 1)))

    def _balanced(self, data: Data) -> tuple[Tensor, Tensor]:
        if not isinstance(data, Dataset):
            raise ValueError("grasp wants samples of every class: there are none of text")
        fewest = int(torch.bincount(data.train.labels, minlength=data.classes).min())
        return class_balanced(
            data.samples(len(data.train), self._order),
            per_class=min(GRASP_PER_CLASS, fewest), num_classes=data.classes,
        )  # fmt: skip

    # -- lottery tickets ---------------------------------------------------------------------

    def _round_starts(self) -> list[int]:
        rounds = ROUNDS if self.name == "lth" else 1
        return [i * self.total_steps // rounds for i in range(rounds + 1)]

    def progress(self, step: int) -> float:
        """Share of the learning rate schedule behind a step: it starts anew with every round."""
        starts = self._round_starts()
        now = max(i for i, start in enumerate(starts[:-1]) if start <= step)
        return (step - starts[now]) / (starts[now + 1] - starts[now])

    def rewind(self, step: int) -> None:
        """Prune and go back to the initial weights if a round of a lottery ticket is over."""
        due = sum(start <= step for start in self._round_starts()[1:-1])
        while isinstance(self.scheduler, LotteryTicket) and self.scheduler.level < due:
            self.scheduler.prune()

    # -- moving masks ------------------------------------------------------------------------

    @property
    def wants_perturbed(self) -> bool:
        """Whether the next step's mask update wants gradients at w + e."""
        scheduler = self.scheduler
        perturbed = isinstance(scheduler, RigL) and scheduler.grow_grad == "perturbed"
        return perturbed and scheduler.update_due

    def step(self, perturbed: bool = False) -> bool:
        """Count one step and update the mask where it is due.

        Args:
            perturbed: hand the present gradients over as those at w + e.

        Returns:
            True if the optimizer takes no step.
        """
        grads = [p.grad for p in self.scheduler.weights.values()] if perturbed else None
        return self.scheduler.step(grads)
