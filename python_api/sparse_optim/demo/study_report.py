"""The study's tables, on the terminal and as CSV, and its picture."""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparse_kernels import __version__

from ._support import require
from .machine import machine_name
from .methods import Plan
from .plots import STYLE
from .study import DENSE, Case, Outcome, Summary

_SHARED = ("model", "epochs", "lr", "method", "sparsity_percent")
_PERCENTS = ("perturbed_percent", "weight_sparsity_percent")
SEED_COLUMNS = (*_SHARED, "seed", "steps", "test_accuracy_percent", *_PERCENTS)
SUMMARY_COLUMNS = (
    *_SHARED, "seeds", "test_accuracy_percent_mean", "test_accuracy_percent_deviation", *_PERCENTS,
)  # fmt: skip
# Okabe and Ito's palette without those of the two dense methods
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_DENSE_COLORS = {"SGD": "#7F7F7F", "SAM": "#E69F00"}


def commit() -> str:
    """Commit of the package's source; empty if it does not lie in a repository of its own."""
    here = Path(__file__)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=here.parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no", ":/")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def provenance(backend: str, command: str, device: str = "cpu") -> dict[str, str]:
    """What made a table: the last columns of each of its lines."""
    return {
        "backend": backend,
        "machine": machine_name(device),
        "torch": torch.__version__,
        "version": __version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _shared(case: Case, plan: Plan) -> tuple[Any, ...]:
    lr = case.recipe.option("lr")
    return plan.model, plan.epochs, lr, case.method, _percent(case.sparsity)


def seed_records(outcomes: Sequence[Outcome], plan: Plan) -> list[dict[str, Any]]:
    """One record per run under ``SEED_COLUMNS``."""
    values = (
        (*_shared(o.case, plan), o.seed, o.steps, _percent(o.accuracy), _percent(o.perturbed),
         _percent(o.zeros))
        for o in outcomes
    )  # fmt: skip
    return [dict(zip(SEED_COLUMNS, v, strict=True)) for v in values]


def summary_records(summaries: Sequence[Summary], plan: Plan) -> list[dict[str, Any]]:
    """One record per method and sparsity under ``SUMMARY_COLUMNS``."""
    values = (
        (*_shared(s.case, plan), s.seeds, _percent(s.mean), _percent(s.deviation),
         _percent(s.perturbed), _percent(s.zeros))
        for s in summaries
    )  # fmt: skip
    return [dict(zip(SUMMARY_COLUMNS, v, strict=True)) for v in values]


def write_records(records: Sequence[dict[str, Any]], facts: dict[str, str], path: Path) -> None:
    """Write one line per record, with the same facts at the end of each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*records[0], *facts], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**record, **facts} for record in records)


def mean_text(summary: Summary) -> str:
    """ "98.1 ± 0.3", or the mean alone for one seed."""
    spread = "" if summary.deviation is None else f" ± {summary.deviation:.2f}"
    return f"{summary.mean:.2f}{spread}"


def make_table(summaries: Sequence[Summary], title: str) -> Any:
    """A rich table: a line per method, a column per sparsity."""
    (table_module,) = require("rich.table")
    table = table_module.Table(title=title)
    table.add_column("method", no_wrap=True)
    found = {s.case.sparsity for s in summaries}
    columns = sorted(found, key=lambda s: -1.0 if s is None else s)
    for sparsity in columns:
        table.add_column("-" if sparsity is None else f"{sparsity:g} %", justify="right")
    lines: dict[str, dict[float | None, Summary]] = {}
    for summary in summaries:
        lines.setdefault(summary.case.method, {})[summary.case.sparsity] = summary
    for method, own in lines.items():
        table.add_row(method, *(mean_text(own[s]) if s in own else "" for s in columns))
    return table


def _band(axis: Any, summary: Summary) -> None:
    color = _DENSE_COLORS[summary.case.method]
    axis.axhline(summary.mean, color=color, linewidth=1.5, label=summary.case.method)
    if summary.deviation is not None:
        low, high = summary.mean - summary.deviation, summary.mean + summary.deviation
        axis.axhspan(low, high, color=color, alpha=0.15, linewidth=0)


def plot_study(summaries: Sequence[Summary], plan: Plan, test_images: int, path: Path) -> None:
    """Accuracy over the sparsity of the perturbation: mean, with a sample standard deviation.

    Args:
        summaries: of ``perturbation_cases``.
        plan: what was trained.
        test_images: size of the test split, for the caption.
        path: of the PNG file.
    """
    matplotlib, pyplot = require("matplotlib", "matplotlib.pyplot")
    pyplot.switch_backend("agg")
    with matplotlib.rc_context(STYLE):
        figure, axis = pyplot.subplots(figsize=(7.6, 4.6), layout="constrained")
        curves: dict[str, list[Summary]] = {}
        for summary in summaries:
            if summary.case.method in DENSE:
                _band(axis, summary)
            else:
                curves.setdefault(summary.case.method, []).append(summary)
        columns = sorted({s.case.sparsity or 0.0 for own in curves.values() for s in own})
        for i, (method, own) in enumerate(curves.items()):
            shift = 0.08 * (i - (len(curves) - 1) / 2)  # error bars beside each other
            axis.errorbar(
                [columns.index(s.case.sparsity or 0.0) + shift for s in own], [s.mean for s in own],
                [s.deviation or 0.0 for s in own], marker="o", capsize=3, label=method,
                color=_COLORS[i % len(_COLORS)],
            )  # fmt: skip
        axis.set_xticks(range(len(columns)), [f"{s:g}" for s in columns])
        axis.set_xlabel("weights that are not perturbed, %")
        axis.set_ylabel("correct test images, %")
        axis.set_title(
            f"{plan.title} on digits, {plan.epochs} epoch(s), {summaries[0].seeds} seed(s); "
            f"one of {test_images} test images is {100 / test_images:.2f} %"
        )
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False, ncols=2)
        figure.savefig(path)
        pyplot.close(figure)
