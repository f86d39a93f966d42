"""Pictures of the demo: accuracy, sparsity and FLOPs, optimizer time per step, masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._support import require
from .compare import Row
from .mask_plot import plot_masks
from .report import ms_text, pair_text

# Okabe and Ito's palette: told apart with any kind of colour vision, and in print by brightness
REFERENCE, FUSED = "#E69F00", "#0072B2"
ZEROS, LIVE = "#56B4E9", "#D5D5D5"
#: of all pictures
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "figure.dpi": 110,
}


def _panels(rows: Sequence[Row], title: str) -> tuple[Any, Any, list[list[Row]]]:
    """A figure with one panel per model."""
    (pyplot,) = require("matplotlib.pyplot")
    models = list(dict.fromkeys(row.model for row in rows))
    parts = [[row for row in rows if row.model == model] for model in models]
    tallest = max(len(part) for part in parts)
    figure, axes = pyplot.subplots(
        1, len(parts), figsize=(1.0 + 4.6 * len(parts), 1.7 + 0.46 * tallest), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    figure.suptitle(title, fontsize=12)
    for axis, model, part in zip(axes[0], models, parts, strict=True):
        axis.set_title(model)
        axis.set_yticks(range(len(part)), [row.method for row in part])
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0)
    return figure, axes[0], parts


def _pair_bars(axis: Any, pairs: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    height = 0.38
    for side, color, label in ((0, REFERENCE, "reference"), (1, FUSED, "fused")):
        at = [i + (side - 0.5) * height for i in range(len(pairs))]
        bars = axis.barh(at, [pair[side] for pair in pairs], height, color=color, label=label)
        axis.bar_label(bars, texts[side::2], padding=3, fontsize=8)


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def plot_accuracy(rows: Sequence[Row], path: Path) -> None:
    """Test accuracy: a ring for the reference run, a dot in it for the fused one."""
    figure, axes, parts = _panels(
        rows, "Test accuracy on digits: a dot in its ring is the same result"
    )
    lowest = min(min(row.accuracy) for row in rows)
    left = max(0.0, 2.0 * (lowest // 2.0) - 2.0)
    room = 0.14 * (100.0 - left)  # for the figures beside the dots
    for axis, part in zip(axes, parts, strict=True):
        at = range(len(part))
        axis.hlines(at, left, 100.0, color="#E4E4E4", linewidth=1, zorder=1)
        axis.scatter(
            [row.accuracy[0] for row in part], at, s=130, facecolors="none", edgecolors=REFERENCE,
            linewidths=2.2, label="reference", zorder=3,
        )  # fmt: skip
        axis.scatter(
            [row.accuracy[1] for row in part], at, s=34, color=FUSED, label="fused", zorder=4
        )
        for i, row in enumerate(part):
            beside = max(row.accuracy) + 0.25 * room
            axis.text(beside, i, pair_text(row.accuracy), va="center", fontsize=9)
        axis.set_xlim(left, 100.0 + room)
        axis.set_xlabel(f"correct test images, % (axis starts at {left:g})")
    _legend(figure, axes[0])
    figure.savefig(path)


def plot_sparsity(rows: Sequence[Row], path: Path) -> None:
    """Zero weights at the end and training FLOPs of every method."""
    figure, axes, parts = _panels(
        rows, "Zero weights after training, and theoretical training FLOPs"
    )
    for axis, part in zip(axes, parts, strict=True):
        at = range(len(part))
        zeros = [row.sparsity[1] for row in part]
        axis.barh(at, zeros, 0.55, color=ZEROS, label="zero weights")
        axis.barh(at, [100.0 - z for z in zeros], 0.55, zeros, color=LIVE, label="nonzero weights")
        for i, row in enumerate(part):
            text = f"{row.sparsity[1]:.1f} % zero" if row.sparsity[1] else "dense"
            axis.text(2, i, text, va="center", fontsize=8)
            axis.text(103, i, f"{row.flops_percent[0]:.0f} % FLOPs", va="center", fontsize=8)
        axis.set_xlim(0, 132)
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel("convolution and linear weights, %")
    _legend(figure, axes[0])
    figure.savefig(path)


def plot_step_time(rows: Sequence[Row], path: Path) -> None:
    """Optimizer milliseconds per step of both backends, on a logarithmic axis."""
    figure, axes, parts = _panels(rows, "Optimizer time per step, without forward and backward")
    for axis, part in zip(axes, parts, strict=True):
        texts = []
        for row in part:
            texts += [ms_text(row.ms[0]), f"{ms_text(row.ms[1])}  ({row.ratio:.1f}x)"]
        _pair_bars(axis, [row.ms for row in part], texts)
        values = [value for row in part for value in row.ms]
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlim(min(values) / 3, max(values) * 6)
        axis.set_xlabel("milliseconds per step (log scale; in brackets: times faster)")
        axis.grid(axis="x", alpha=0.3)
    _legend(figure, axes[0])
    figure.savefig(path)


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw every picture as PNG, that of the masks if a row has some.

    Args:
        rows: the table, at least one row.
        folder: where the files go.

    Returns:
        Their paths.

    Raises:
        UserError: matplotlib is not installed.
    """
    matplotlib, pyplot = require("matplotlib", "matplotlib.pyplot")
    pyplot.switch_backend("agg")  # files only: no display is needed
    paths = []
    with matplotlib.rc_context(STYLE):
        for draw, name in (
            (plot_accuracy, "accuracy"),
            (plot_sparsity, "sparsity"),
            (plot_step_time, "step_time"),
            (plot_masks, "masks"),
        ):
            if draw is plot_masks and not any(row.masks for row in rows):
                continue
            path = folder / f"{name}.png"
            draw(rows, path)
            pyplot.close("all")
            paths.append(path)
    return paths
