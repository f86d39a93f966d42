"""Train the same recipe with the reference backend and with the fused one, in lockstep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .data import Dataset, epoch_batches, steps_per_epoch
from .methods import Plan, Recipe, backend_in_use
from .runner import Run, largest_difference

COMPARED_STEPS = 20


@dataclass(frozen=True)
class Row:
    """One line of the table; other pairs are (reference, fused)."""

    model: str
    method: str
    backend: str
    steps: int
    accuracy: tuple[float, float]
    sparsity: tuple[float, float]
    flops_percent: tuple[float, float]  # theoretical and issued
    ms: tuple[float, float]
    max_difference: float
    masks: dict[str, Tensor] = field(default_factory=dict)  # of the fused run, for the picture

    @property
    def ratio(self) -> float:
        """How many times faster the fused optimizer step is."""
        return self.ms[0] / self.ms[1]


def total_steps(plan: Plan, samples: int) -> int:
    """Steps of one run of a plan."""
    return plan.epochs * steps_per_epoch(samples, plan.batch_size)


def compare(
    plan: Plan,
    recipe: Recipe,
    data: Dataset,
    backend: str,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Row:
    """Train twice from one seed, on the same batches, one step of each in turn.

    Taking turns gives both the same share of whatever else the machine does; who goes first
    changes from step to step.

    Args:
        plan: model, epochs and batch size.
        recipe: the method.
        data: on the device to train on.
        backend: of the fused run.
        seed: of weights, data order and directions.
        on_step: called after every step of both.

    Returns:
        The table's row. ``max_difference`` is the largest over the first 20 steps.
    """
    steps = total_steps(plan, len(data.train))
    reference, fused = (
        Run(plan.model, data, recipe, name, seed, steps) for name in ("reference", backend)
    )
    order, mask_order = (torch.Generator().manual_seed(seed) for _ in range(2))
    difference, done = 0.0, 0
    for _ in range(plan.epochs):
        state = mask_order.get_state()
        for run in (reference, fused):  # both draw the same samples
            mask_order.set_state(state)
            run.start_epoch(mask_order)
        for images, labels in epoch_batches(data.train, plan.batch_size, order):
            for run in (reference, fused) if done % 2 == 0 else (fused, reference):
                run.step(images, labels)
            done += 1
            if done <= COMPARED_STEPS:
                difference = max(difference, largest_difference(reference.model, fused.model))
            on_step()
    device = data.device.type
    return Row(
        model=plan.title,
        method=recipe.label,
        backend=backend_in_use(recipe.optimizer, backend, device),
        steps=done,
        accuracy=(reference.accuracy(), fused.accuracy()),
        sparsity=(reference.sparsity(), fused.sparsity()),
        flops_percent=fused.flops_percent(),
        ms=(reference.ms_per_step(), fused.ms_per_step()),
        max_difference=difference,
        masks=fused.masks(),
    )
