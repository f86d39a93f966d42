"""Tables and pictures of the study of ZO-SAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._support import require
from .corruptions import CORRUPTIONS
from .methods import Plan
from .plots import STYLE
from .study import Case, Outcome, Summary
from .study_report import mean_text
from .zo_cosine import Quality, expected_cosine, large_q_cosine
from .zo_study import CONTROL, DOWNHILL, REFERENCE, ZO, Difference
from .zo_throughput import Speed

# per cent of SGD's images per second: ResNet-32 under MEST at 90 % on four A6000, arXiv 2603.13115
PUBLISHED = {"SAM": 47.7, ZO: 76.7}
_COLORS = ("#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's palette
_GREY = "#7F7F7F"
Record = dict[str, Any]


def _digits(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _shared(part: str, case: Case, plan: Plan, steps: int) -> Record:
    recipe = case.recipe
    return {
        "model": plan.model,
        "epochs": plan.epochs,
        "lr": recipe.option("lr"),
        "part": part,
        "sparse_method": recipe.option("sparse_method"),
        "sparsity_percent": _digits(case.sparsity),
        "method": case.method,
        "rho": recipe.all_options().get("rho", ""),
        "steps": steps,
    }


def run_records(parts: Mapping[str, Sequence[Outcome]], plan: Plan) -> list[Record]:
    """One record per run."""
    return [
        {
            **_shared(part, o.case, plan, o.steps),
            "seed": o.seed,
            "test_accuracy_percent": _digits(o.accuracy),
            **{f"{name}_accuracy_percent": _digits(o.corrupted[name]) for name in CORRUPTIONS},
            "corrupted_accuracy_percent": _digits(o.corrupted_mean),
            "weight_sparsity_percent": _digits(o.zeros),
            "training_seconds": _digits(o.seconds),
        }
        for part, outcomes in parts.items()
        for o in outcomes
    ]


def summary_records(parts: Mapping[str, Sequence[Summary]], plan: Plan) -> list[Record]:
    """One record per part and case."""
    return [
        {
            **_shared(part, s.case, plan, s.steps),
            "seeds": s.seeds,
            "test_accuracy_percent_mean": _digits(s.mean),
            "test_accuracy_percent_deviation": _digits(s.deviation),
            **{f"{name}_accuracy_percent_mean": _digits(s.corrupted[name]) for name in CORRUPTIONS},
            "corrupted_accuracy_percent_mean": _digits(s.corrupted_mean),
            "corrupted_accuracy_percent_deviation": _digits(s.corrupted_deviation),
            "weight_sparsity_percent": _digits(s.zeros),
        }
        for part, summaries in parts.items()
        for s in summaries
    ]


def difference_records(differences: Sequence[Difference]) -> list[Record]:
    """One record per comparison; percentage points."""
    return [
        {
            "part": d.part,
            "method": d.method,
            "against": d.against,
            "pairs": d.pairs,
            "difference_mean": _digits(d.clean),
            "difference_error": _digits(d.clean_error),
            "difference_median": _digits(d.median),
            "better": d.better,
            "worse": d.worse,
            "corrupted_difference_mean": _digits(d.corrupted),
            "corrupted_difference_error": _digits(d.corrupted_error),
        }
        for d in differences
    ]


def throughput_records(speeds: Mapping[str, Sequence[Speed]], plan: Plan) -> list[Record]:
    """One record per sparse training method and method."""
    return [
        {
            "sparse_method": sparse_method,
            "sparsity_percent": _digits(s.case.sparsity),
            "method": s.case.method,
            "ms_per_step": _digits(1e3 * s.seconds, 3),
            "images_per_second": _digits(plan.batch_size / s.seconds, 0),
            "percent_of_sgd": _digits(100.0 * s.relative, 1),
            "estimate_percent_of_sgd": _digits(100.0 * s.estimate, 1),
            "published_percent_of_sgd": _digits(PUBLISHED.get(s.case.method), 1),
            "forward_share": _digits(s.forward_share, 3),
        }
        for sparse_method, own in speeds.items()
        for s in own
    ]


def cosine_records(rows: Sequence[Quality]) -> list[Record]:
    """One record per stage, distribution and number of directions."""
    return [
        {
            "stage": r.stage,
            "loss": f"{r.loss:.4g}",
            "gradient_norm": f"{r.gradient_norm:.4g}",
            "distribution": r.distribution,
            "directions": r.directions,
            "weights": r.active,
            "estimates": r.draws,
            "cosine_mean": _digits(r.cosine, 5),
            "cosine_error": _digits(r.error, 5),
            "cosine_theory": _digits(expected_cosine(r.directions, r.active), 5),
            "cosine_theory_large_q": _digits(large_q_cosine(r.directions, r.active), 5),
            "sign_agreement_percent": _digits(None if r.agreement is None else 100 * r.agreement),
            "tie_percent": _digits(100.0 * r.ties),
        }
        for r in rows
    ]


def make_table(records: Sequence[Record], title: str, columns: Mapping[str, str]) -> Any:
    """A rich table of some columns of the records, given with their headings."""
    (table_module,) = require("rich.table")
    table = table_module.Table(title=title)
    for heading in columns.values():
        table.add_column(heading)
    for record in records:
        table.add_row(*(str(record[name]) for name in columns))
    return table


def make_pivot(summaries: Sequence[Summary], title: str) -> Any:
    """A rich table: a line per sparse training method and method, a column per sparsity."""
    (table_module,) = require("rich.table")
    table = table_module.Table(title=title)
    sparsities = list(dict.fromkeys(s.case.sparsity for s in summaries))
    for name in ("masks", "method", "steps"):
        table.add_column(name, no_wrap=True)
    for sparsity in sparsities:
        table.add_column(f"{sparsity:g} %", justify="right")
    lines: dict[tuple[str, ...], dict[float | None, Summary]] = {}
    for s in summaries:
        names = (s.case.recipe.option("sparse_method"), s.case.method, str(s.steps))
        lines.setdefault(names, {})[s.case.sparsity] = s
    for first, own in lines.items():
        table.add_row(*first, *(mean_text(own[s]) if s in own else "" for s in sparsities))
    return table


# -- pictures ------------------------------------------------------------------------------------


def _scale(axis: Any) -> None:
    """Wrong images on a logarithmic axis, which shows 2 % against 3 % beside runs that failed."""
    axis.set_yscale("log")
    axis.set_yticks([1, 2, 5, 10, 20, 50, 90], minor=False)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.grid(axis="y", alpha=0.3)


def _save(figure: Any, axis: Any, path: Path) -> None:
    """Write the picture with one legend below, in as many columns as are sure to fit."""
    (pyplot,) = require("matplotlib.pyplot")
    handles, labels = axis.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() / 1.6))  # inches
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


def plot_accuracy(parts: Mapping[str, Sequence[Summary]], path: Path) -> None:
    """Test error over the weight sparsity: a panel per part and sparse training method."""
    matplotlib, pyplot = require("matplotlib", "matplotlib.pyplot")
    pyplot.switch_backend("agg")
    first = next(iter(parts.values()))
    columns = list(dict.fromkeys(s.case.recipe.option("sparse_method") for s in first))
    names = list(dict.fromkeys(s.case.method for s in first))
    sparsities = list(dict.fromkeys(s.case.sparsity for s in first))
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            len(parts), len(columns), figsize=(1.0 + 3.2 * len(columns), 0.8 + 2.9 * len(parts)),
            squeeze=False, sharey=True, layout="constrained",
        )  # fmt: skip
        for row, (part, summaries) in zip(axes, parts.items(), strict=True):
            for axis, sparse_method in zip(row, columns, strict=True):
                for i, name in enumerate(names):
                    own = [
                        s for s in summaries
                        if (s.case.recipe.option("sparse_method"), s.case.method)
                        == (sparse_method, name)
                    ]  # fmt: skip
                    shift = 0.1 * (i - (len(names) - 1) / 2)  # error bars beside each other
                    axis.errorbar(
                        [sparsities.index(s.case.sparsity) + shift for s in own],
                        [100.0 - s.mean for s in own], [s.deviation or 0.0 for s in own],
                        marker="o", markersize=4, capsize=2, label=name, color=[_GREY, *_COLORS][i],
                    )  # fmt: skip
                axis.set_title(f"{sparse_method}, {part}")
                axis.set_xticks(range(len(sparsities)), [f"{s:g}" for s in sparsities])
                _scale(axis)
            row[0].set_ylabel("wrong test images, %")
        for axis in axes[-1]:
            axis.set_xlabel("zero weights, %")
        _save(figure, axes[0][0], path)


def plot_radius(summaries: Sequence[Summary], path: Path) -> None:
    """Error on clean and corrupted test images over the radius, with SGD as a band."""
    matplotlib, pyplot = require("matplotlib", "matplotlib.pyplot")
    pyplot.switch_backend("agg")
    reference = next(s for s in summaries if s.case.method == REFERENCE)
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
        for axis, what in zip(axes, ("clean", "corrupted"), strict=True):
            mean, deviation = _of(reference, what)
            axis.axhline(mean, color=_GREY, label=REFERENCE)
            axis.axhspan(mean - deviation, mean + deviation, color=_GREY, alpha=0.15, linewidth=0)
            for name, color in ((ZO, "#0072B2"), (CONTROL, "#D55E00"), (DOWNHILL, "#009E73")):
                own = [s for s in summaries if s.case.method == name]
                if not own:
                    continue
                values = [_of(s, what) for s in own]
                axis.errorbar(
                    [s.case.recipe.option("rho") for s in own], [v[0] for v in values],
                    [v[1] for v in values], marker="o", capsize=3, label=name, color=color,
                )  # fmt: skip
            axis.set_xscale("log")
            rhos = {s.case.recipe.option("rho") for s in summaries if s is not reference}
            axis.set_xticks(sorted(rhos), [f"{rho:g}" for rho in sorted(rhos)])
            axis.set_xlabel("radius rho")
            axis.set_ylabel(f"wrong {'' if what == 'clean' else 'corrupted '}test images, %")
            _scale(axis)
        case = reference.case
        figure.suptitle(
            f"{case.recipe.option('sparse_method')}, {case.sparsity:g} % zero weights, "
            f"{reference.seeds} seed(s)"
        )
        _save(figure, axes[0], path)


def _of(summary: Summary, what: str) -> tuple[float, float]:
    """Mean error and its deviation, 0 where there is none."""
    if what == "clean":
        return 100.0 - summary.mean, summary.deviation or 0.0
    return 100.0 - (summary.corrupted_mean or 0.0), summary.corrupted_deviation or 0.0
