"""Runs that are followed: loss, nonzero weights per layer, births and deaths over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._support import require
from .data import Data
from .methods import Plan
from .plots import STYLE
from .runner import Run, train
from .study import Case

POINTS = 100  # of a curve, at most
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")  # Okabe and Ito's palette


@dataclass(frozen=True)
class Point:
    """What a run looks like after a step.

    Attributes:
        step: completed steps.
        loss: mean over the steps since the last point.
        lam: in force.
        layers: nonzero entries, all entries, births and deaths since the start, by layer; a weight
            counts as often as it is born.
    """

    step: int
    loss: float
    lam: float
    layers: dict[str, tuple[int, int, int, int]]

    @property
    def total(self) -> tuple[int, ...]:
        """The same sums over all layers."""
        return tuple(sum(column) for column in zip(*self.layers.values(), strict=True))

    @property
    def sparsity(self) -> float:
        """Per cent of the weights that are zero."""
        live, numel, _, _ = self.total
        return 100.0 * (numel - live) / numel


def _point(run: Run, losses: Sequence[Tensor]) -> Point:
    layers = run.flops.report()["layers"]
    keys = ("live", "numel", "births", "deaths")
    lam = next(g["lam"] for g in run.optimizer.param_groups if g["reg"] != "none")
    return Point(
        len(run.seconds), float(torch.stack(list(losses)).mean()), lam,
        {name: tuple(layer[key] for key in keys) for name, layer in layers.items()},
    )  # fmt: skip


def follow(
    case: Case, plan: Plan, data: Data, backend: str, seed: int = 0,
    on_epoch: Callable[[], None] = lambda: None,
) -> list[Point]:  # fmt: skip
    """Train once and look at the run after every few steps.

    Args:
        case: a Bregman method.
        plan, data, backend, seed: as ``train_case`` takes them.
        on_epoch: called after every epoch.

    Returns:
        At most ``POINTS`` points; the last is that of the last step.
    """
    steps = plan.epochs * data.steps(plan.batch_size)
    every = -(-steps // POINTS)
    run = Run(
        plan.model, data, case.recipe, backend, seed, steps, sizes=plan.sizes, track_support=True
    )
    points: list[Point] = []
    losses: list[Tensor] = []

    def on_step(loss: Tensor) -> None:
        losses.append(loss)
        if len(run.seconds) % every == 0 or len(run.seconds) == steps:
            points.append(_point(run, losses))
            losses.clear()

    for _ in train(run, plan.epochs, plan.batch_size, seed, on_step):
        on_epoch()
    return points


def curve_records(curves: Sequence[tuple[Case, list[Point]]], data: str) -> list[dict[str, Any]]:
    """One record per method, point and layer, and one per point for all of them."""
    return [
        {
            "data": data,
            "method": case.method,
            "step": point.step,
            "loss": f"{point.loss:.4f}",
            "lam": f"{point.lam:.4g}",
            "layer": layer,
            **dict(zip(("nonzeros", "entries", "births", "deaths"), counts, strict=True)),
        }
        for case, points in curves
        for point in points
        for layer, counts in [*point.layers.items(), ("all", point.total)]
    ]


def plot_curves(curves: Sequence[tuple[Case, list[Point]]], title: str, path: Path) -> None:
    """Loss, sparsity, births and deaths of all methods, and every method's nonzeros per layer.

    Args:
        curves: the methods and their points.
        title: of the picture.
        path: of the PNG file.
    """
    matplotlib, pyplot = require("matplotlib", "matplotlib.pyplot")
    pyplot.switch_backend("agg")
    with matplotlib.rc_context(STYLE):
        columns = max(3, len(curves))
        figure = pyplot.figure(figsize=(3.4 * columns, 7.4), layout="constrained")
        figure.suptitle(title)
        upper, lower = figure.subfigures(2, 1)
        axes = upper.subplots(1, 3)
        for (case, points), color in zip(curves, _COLORS, strict=False):
            steps = [p.step for p in points]
            style = {"color": color, "label": case.method}
            axes[0].plot(steps, [p.loss for p in points], **style)
            axes[1].plot(steps, [p.sparsity for p in points], **style)
            axes[2].plot(steps, [p.total[2] for p in points], **style)
            axes[2].plot(steps, [p.total[3] for p in points], color=color, linestyle=":")
        _name(axes[0], "training loss")
        axes[0].set_yscale("log")
        _name(axes[1], "zero weights, %")
        _name(axes[2], "births (dotted: deaths) so far")
        axes[2].set_yscale("symlog", linthresh=10)
        axes[0].legend(frameon=False)
        below = lower.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axis, (case, points) in zip(below, curves, strict=True):
            for layer in points[0].layers:
                shares = [100.0 * p.layers[layer][0] / p.layers[layer][1] for p in points]
                axis.plot([p.step for p in points], shares, label=layer, linewidth=1.2)
            _name(axis, f"{case.method}: nonzero weights per layer, %")
            axis.set_yscale("log")
        below[-1].legend(frameon=False, fontsize=7)
        figure.savefig(path)
        pyplot.close(figure)


def _name(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
