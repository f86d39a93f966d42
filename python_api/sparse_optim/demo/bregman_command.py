"""The command ``study-bregman``: Bregman training against other sparse training, measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import bregman_curves, bregman_report, bregman_study, study, text, zo_report
from ._support import UserError
from .commands import make_progress
from .study_command import Setting, Writer, prepare

PARTS = ("methods", "sensitivity", "curves")


@dataclass(frozen=True)
class BregmanStudyOptions:
    """What `sparse-optim study-bregman` was asked for; ``command`` is written into the tables."""

    out: Path
    command: str
    data: str = "digits"
    parts: tuple[str, ...] = PARTS
    seeds: int = 3
    epochs: int | None = None
    sparsities: tuple[float, ...] = bregman_study.SPARSITIES
    control: str = bregman_study.CONTROL
    device: str = "cpu"
    backend: str = "auto"
    threads: int = 1


def run_bregman_study(options: BregmanStudyOptions) -> None:
    """Train and write what the options ask for.

    Raises:
        UserError: a package, the device or the output folder is missing, or a run is too short.
        BackendUnavailableError: the backend cannot run here.
    """
    plan = bregman_study.plan_of(options.data, options.epochs)
    load = None
    if options.data == "stdlib":
        load = _load_text
    setting = prepare(options, "linbreg", plan, load)
    writer = Writer(setting.folder, setting.facts, setting.console)
    start = time.perf_counter()
    try:
        if "methods" in options.parts:
            _methods(options, setting, writer)
        if "sensitivity" in options.parts:
            _sensitivity(options, setting, writer)
        if "curves" in options.parts:
            _curves(options, setting, writer)
    except ValueError as error:  # an option that only the method can judge
        raise UserError(str(error)) from error
    for note in bregman_report.NOTES:
        setting.console.print(f"- {note}", highlight=False)
    names = ", ".join(str(path) for path in writer.paths)
    setting.console.print(
        f"{time.perf_counter() - start:.0f} s. Written: {names}", highlight=False, soft_wrap=True
    )


def _load_text() -> text.TextData:
    return text.load_stdlib(None, bregman_study.WINDOW, text.EPOCH_STEPS)


def _train(
    cases: Sequence[study.Case], options: BregmanStudyOptions, setting: Setting
) -> list[study.Outcome]:
    plan = setting.plan
    with make_progress(setting.console, "epochs") as progress:
        task = progress.add_task("", total=len(cases) * options.seeds * plan.epochs)

        def on_epoch(case: study.Case, seed: int) -> None:
            at = "" if case.sparsity is None else f" {case.sparsity:g} %"
            progress.update(task, advance=1, description=f"{case.method}{at}, seed {seed}")

        return list(
            study.run_cases(cases, plan, setting.data, options.backend, options.seeds, on_epoch)
        )


def _write(
    outcomes: Sequence[study.Outcome], name: str, options: BregmanStudyOptions, setting: Setting,
    writer: Writer,
) -> list[study.Summary]:  # fmt: skip
    """Write the table of the runs and that of their means."""
    summaries, plan, data = study.summarise(outcomes), setting.plan, options.data
    writer.table(f"{name}_runs", bregman_report.run_records(outcomes, plan, data))
    writer.table(name, bregman_report.summary_records(summaries, plan, data))
    return summaries


def _methods(options: BregmanStudyOptions, setting: Setting, writer: Writer) -> None:
    cases = bregman_study.method_cases(options.data, options.sparsities, options.control)
    outcomes = _train(cases, options, setting)
    summaries = _write(outcomes, f"bregman_{options.data}", options, setting, writer)
    records = bregman_report.summary_records(summaries, setting.plan, options.data)
    title = f"{setting.plan.title} on {options.data}, {options.seeds} seed(s)"
    writer.show(zo_report.make_table(records, title, bregman_report.METHOD_COLUMNS))


def _sensitivity(options: BregmanStudyOptions, setting: Setting, writer: Writer) -> None:
    outcomes = _train(bregman_study.sensitivity_cases(options.data), options, setting)
    name = f"bregman_{options.data}_sensitivity"
    summaries = _write(outcomes, name, options, setting, writer)
    what = "bits per character" if options.data == "stdlib" else "accuracy %"
    title = f"LinBreg, m and lam: {what} | zero weights % | theoretical FLOPs %"
    writer.show(bregman_report.make_grid(summaries, title, options.data))


def _curves(options: BregmanStudyOptions, setting: Setting, writer: Writer) -> None:
    plan, data, found = setting.plan, setting.data, []
    cases = bregman_study.curve_cases(options.data)
    with make_progress(setting.console, "epochs") as progress:
        task = progress.add_task("curves", total=len(cases) * plan.epochs)
        for case in cases:
            points = bregman_curves.follow(
                case, plan, data, options.backend, on_epoch=lambda: progress.advance(task)
            )
            found.append((case, points))
    name = f"bregman_{options.data}_curves"
    writer.table(name, bregman_curves.curve_records(found, options.data))
    title = f"{plan.title} on {options.data}, lam fixed, seed 0"
    writer.picture(name, bregman_curves.plot_curves, found, title)
