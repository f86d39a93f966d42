"""Time per step of several methods, one step of each in turn, and what the probes should cost."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .data import Dataset, epoch_batches
from .methods import Plan
from .runner import Run, Stopwatch
from .study import Case

BLOCK = 40  # steps timed together: cycles of interval SAM and, in 24 epochs, one mask update
BLOCKS = 8
_SEED = 0


@dataclass(frozen=True)
class Speed:
    """How fast one method is.

    Attributes:
        case: the method.
        seconds: per step; the median over the blocks.
        relative: steps of SGD's time per step, the median of ratios of neighbouring blocks.
        forward_share: f, a forward without autograd over a forward and backward.
    """

    case: Case
    seconds: float
    relative: float
    forward_share: float

    @property
    def estimate(self) -> float:
        """``relative`` if a step cost its forwards and backwards alone; 1 / (1 + 2 m f) for ZO-SAM.

        With an interval k the probes, or SAM's second forward and backward, count 1/k.
        """
        recipe = self.case.recipe
        extra = 0.0
        if recipe.optimizer == "sam":
            extra = 1.0
        elif recipe.optimizer == "zosam" and recipe.option("sign") != "random":
            extra = 2.0 * recipe.option("num_directions") * self.forward_share
        return 1.0 / (1.0 + extra / recipe.all_options().get("interval", 1))

    def steps_within(self, steps: int) -> int:
        """Steps that fit into the time of ``steps`` steps of SGD, at least one."""
        return max(1, int(steps * self.relative))


def _forward(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        cross_entropy(model(x), labels)


def _forward_backward(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    cross_entropy(model(x), labels).backward()


def _endless(data: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.Generator().manual_seed(_SEED)
    while True:
        yield from epoch_batches(data.train, batch_size, order)


def measure(
    cases: Sequence[Case], plan: Plan, data: Dataset, backend: str, steps: int,
    blocks: int, on_step: Callable[[], None] = lambda: None,
) -> list[Speed]:  # fmt: skip
    """Train all methods at once, one step of each in turn, and time their steps.

    Taking turns gives all the same share of whatever else the machine does; who goes first changes
    from step to step. Mask updates are timed with the steps they fall into.

    Args:
        cases: the methods, SGD first.
        plan: model and batch size.
        data: on the device to train on.
        backend: as the optimizers take it.
        steps: of the runs to come, which the schedules of masks are made for.
        blocks: of ``BLOCK`` steps; one more, not counted, comes before.
        on_step: called after every step of all.

    Returns:
        One entry per method.
    """
    length = max(steps, (blocks + 1) * BLOCK)
    runs = [Run(plan.model, data, case.recipe, backend, _SEED, length) for case in cases]
    model = copy.deepcopy(runs[0].model)
    watches = [Stopwatch(data.mean.device) for _ in range(len(runs) + 2)]
    times: list[list[float]] = []
    batches = _endless(data, plan.batch_size)
    for _ in range(blocks + 1):
        for turn in range(BLOCK):
            images, labels = next(batches)
            for i in range(len(runs)):
                k = (turn + i) % len(runs)
                with watches[k].on():
                    runs[k].step(images, labels)
            x = data.inputs(images)
            for watch, part in zip(watches[-2:], (_forward, _forward_backward), strict=True):
                with watch.on():
                    part(model, x, labels)
            model.zero_grad()
            on_step()
        times.append([watch.take() for watch in watches])
    kept = times[1:]
    share = statistics.median(row[-2] / row[-1] for row in kept)
    return [
        Speed(
            case,
            statistics.median(row[k] for row in kept) / BLOCK,
            statistics.median(row[0] / row[k] for row in kept),
            share,
        )
        for k, case in enumerate(cases)
    ]
