"""The command ``study-zo``: what ZO-SAM buys, measured, as tables and pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import study, zo_cosine, zo_report, zo_study, zo_throughput
from ._support import UserError
from .commands import make_progress
from .data import Dataset
from .methods import Plan
from .study_command import Writer, prepare

PARTS = ("accuracy", "rho", "cosine")


@dataclass(frozen=True)
class ZoStudyOptions:
    """What `sparse-optim study-zo` was asked for; ``command`` is written into the tables."""

    out: Path
    command: str
    parts: tuple[str, ...] = PARTS
    seeds: int = 3
    epochs: int = zo_study.DEFAULT_EPOCHS
    sparse_methods: tuple[str, ...] = zo_study.SPARSE_METHODS
    sparsities: tuple[float, ...] = zo_study.SPARSITIES
    rhos: tuple[float, ...] = zo_study.RHOS
    directions: tuple[int, ...] = zo_cosine.DIRECTIONS
    downhill: bool = False
    device: str = "cpu"
    backend: str = "auto"
    threads: int = 1


def run_zo_study(options: ZoStudyOptions) -> None:
    """Measure, train and write what the options ask for.

    Speed comes first, since it says how many steps a method has in equal time; then the runs of
    equal epochs, of equal time and of the radii; then the estimates against the gradient.

    Raises:
        UserError: a package, the device or the output folder is missing, or a run is too short.
        BackendUnavailableError: the backend cannot run here.
    """
    setting = prepare(options, "zosam", study.plan_of("cnn", options.epochs))
    plan, data, console = setting.plan, setting.data, setting.console
    writer = Writer(setting.folder, setting.facts, console)
    start = time.perf_counter()
    try:
        _train(options, plan, data, writer)
    except ValueError as error:  # an option that only the method can judge
        raise UserError(str(error)) from error
    if "cosine" in options.parts:
        _cosine(options, plan, data, writer)
    names = ", ".join(str(path) for path in writer.paths)
    console.print(
        f"{time.perf_counter() - start:.0f} s. Written: {names}", highlight=False, soft_wrap=True
    )


def _train(options: ZoStudyOptions, plan: Plan, data: Dataset, writer: Writer) -> None:
    steps = zo_study.all_steps(plan, data)
    parts: dict[str, list[zo_study.Job]] = {}
    if "accuracy" in options.parts:
        speeds = _measure(options, plan, data, writer, steps)
        jobs = zo_study.epoch_jobs(
            zo_study.methods(options.downhill), options.sparse_methods, options.sparsities, steps
        )
        parts = {zo_study.EPOCHS: jobs, zo_study.TIME: zo_study.time_jobs(jobs, speeds)}
    if "rho" in options.parts:
        parts[zo_study.RADIUS] = zo_study.radius_jobs(
            options.rhos, options.sparse_methods[0], options.sparsities[0], steps, options.downhill
        )
    if not parts:
        return
    with make_progress(writer.console, "epochs") as progress:
        total = zo_study.epochs_to_train(parts, options.seeds, plan, data)
        task = progress.add_task("", total=total)

        def on_epoch(part: str, case: study.Case, seed: int) -> None:
            name = f"{case.recipe.option('sparse_method')} {case.sparsity:g} % {case.method}"
            progress.update(task, advance=1, description=f"{part}: {name}, seed {seed}")

        outcomes = zo_study.train_parts(parts, options.seeds, plan, data, options.backend, on_epoch)
    radius = outcomes.pop(zo_study.RADIUS, None)
    if outcomes:
        _report_accuracy(outcomes, plan, writer)
    if radius is not None:
        _report_radius(radius, plan, writer)
    writer.console.print(
        f"Mean and sample standard deviation in per cent; one of the {len(data.test)} test images "
        f"is {100.0 / len(data.test):.2f} %. No method was tuned.",
        highlight=False,
    )


def _measure(
    options: ZoStudyOptions, plan: Plan, data: Dataset, writer: Writer, steps: int
) -> dict[str, list[zo_throughput.Speed]]:
    """Speeds by sparse training method, at the first sparsity: the layers do not use the zeros."""
    speeds = {}
    with make_progress(writer.console, "steps") as progress:
        rounds = (zo_throughput.BLOCKS + 1) * zo_throughput.BLOCK
        task = progress.add_task("speed", total=rounds * len(options.sparse_methods))
        for name in options.sparse_methods:
            cases = [
                zo_study.method_case(method, name, options.sparsities[0])
                for method in zo_study.methods(options.downhill)
            ]
            speeds[name] = zo_throughput.measure(
                cases, plan, data, options.backend, steps, zo_throughput.BLOCKS,
                on_step=lambda: progress.advance(task),
            )  # fmt: skip
    records = zo_report.throughput_records(speeds, plan)
    shown = {
        "sparse_method": "masks", "method": "method", "ms_per_step": "ms/step",
        "images_per_second": "images/s", "percent_of_sgd": "% of SGD",
        "estimate_percent_of_sgd": "estimate", "published_percent_of_sgd": "published",
    }  # fmt: skip
    writer.table("zo_throughput", records)
    writer.show(zo_report.make_table(records, "training speed, one step of each in turn", shown))
    return speeds


def _report_accuracy(
    outcomes: Mapping[str, Sequence[study.Outcome]], plan: Plan, writer: Writer
) -> None:
    summaries = {part: study.summarise(own) for part, own in outcomes.items()}
    for part, own in summaries.items():
        writer.show(zo_report.make_pivot(own, f"{plan.title}: test accuracy, {part}"))
    compared = [d for part, own in outcomes.items() for d in zo_study.differences(part, own)]
    differences = zo_report.difference_records(compared)
    shown = {
        "part": "part", "method": "method", "against": "against", "pairs": "pairs",
        "difference_mean": "mean", "difference_error": "error", "difference_median": "median",
        "better": "better", "worse": "worse", "corrupted_difference_mean": "corrupted",
        "corrupted_difference_error": "error",
    }  # fmt: skip
    title = "differences of paired runs, in percentage points"
    writer.show(zo_report.make_table(differences, title, shown))
    writer.table("zo_runs", zo_report.run_records(outcomes, plan))
    writer.table("zo_summary", zo_report.summary_records(summaries, plan))
    writer.table("zo_differences", differences)
    writer.picture("zo_accuracy", zo_report.plot_accuracy, summaries)


def _report_radius(outcomes: Sequence[study.Outcome], plan: Plan, writer: Writer) -> None:
    part, summaries = zo_study.RADIUS, study.summarise(outcomes)
    records = zo_report.summary_records({part: summaries}, plan)
    shown = {
        "method": "method", "rho": "rho",
        "test_accuracy_percent_mean": "mean", "test_accuracy_percent_deviation": "deviation",
        "corrupted_accuracy_percent_mean": "corrupted",
        "corrupted_accuracy_percent_deviation": "deviation",
    }  # fmt: skip
    case = summaries[0].case
    masks = f"{case.recipe.option('sparse_method')} {case.sparsity:g} %"
    writer.show(zo_report.make_table(records, f"{plan.title}, {masks}: test accuracy", shown))
    writer.table("zo_rho_runs", zo_report.run_records({part: outcomes}, plan))
    writer.table("zo_rho", records)
    writer.picture("zo_rho", zo_report.plot_radius, summaries)


def _cosine(options: ZoStudyOptions, plan: Plan, data: Dataset, writer: Writer) -> None:
    lines = 2 * len(zo_cosine.DISTRIBUTIONS) * len(options.directions)
    with make_progress(writer.console, "lines") as progress:
        task = progress.add_task("cosine", total=lines)
        rows = list(
            zo_cosine.measure_all(
                plan, data, options.backend, options.directions, lambda: progress.advance(task)
            )
        )
    records = zo_report.cosine_records(rows)
    shown = {
        "stage": "weights", "distribution": "distribution", "directions": "q",
        "cosine_mean": "cosine", "cosine_error": "error", "cosine_theory": "theory",
        "sign_agreement_percent": "signs %", "tie_percent": "ties %",
    }  # fmt: skip
    writer.table("zo_cosine", records)
    writer.show(zo_report.make_table(records, "cosine of estimate and gradient", shown))
