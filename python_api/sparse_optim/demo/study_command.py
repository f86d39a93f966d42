"""The command ``study``: accuracy over sparsity, as tables and a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import study, study_report
from ._support import UserError, require
from .commands import check_device, make_console, make_folder, make_progress
from .data import Data, load_digits
from .methods import Plan, backend_in_use

_TITLES = {
    "study": "test accuracy over the weights that are not perturbed",
    "sparse_methods": "test accuracy over the weights that are zero",
}


@dataclass(frozen=True)
class StudyOptions:
    """What `sparse-optim study` was asked for; ``command`` is written into the tables."""

    out: Path
    command: str
    seeds: int = 3
    model: str = "cnn"
    epochs: int | None = None
    sparsities: tuple[float, ...] = study.SPARSITIES
    sparse_methods: tuple[str, ...] = ()
    weight_sparsity: float = 0.9
    weight_distribution: str = "erk"
    device: str = "cpu"
    backend: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Setting:
    """What a study works with: ``facts`` are of the source as it is at the start."""

    folder: Path
    data: Any
    plan: Plan
    console: Any
    facts: dict[str, str]


def prepare(
    options: Any, optimizer: str, plan: Plan, load: Callable[[], Data] | None = None
) -> Setting:
    """Check and load what a study needs before its first minute of work, and say what it is.

    Args:
        options: with ``out``, ``command``, ``seeds``, ``device``, ``backend`` and ``threads``.
        optimizer: whose backend the study is said to use.
        plan: what is trained.
        load: gives the data; None: digits.

    Raises:
        UserError: a package, the device or the output folder is missing.
        BackendUnavailableError: the backend cannot run here.
    """
    require("matplotlib.pyplot", "rich.progress", *(["sklearn.datasets"] if load is None else []))
    check_device(options.device)
    used = backend_in_use(optimizer, options.backend, options.device)
    folder = make_folder(options.out)
    torch.set_num_threads(options.threads)
    data = (load or load_digits)().to(options.device)
    console = make_console()
    console.print(
        f"{data.summary()}; {plan.title}, {plan.epochs} epoch(s), seeds 0 to {options.seeds - 1}; "
        f"{used} on {options.device}, {options.threads} thread(s)",
        highlight=False,
    )
    facts = study_report.provenance(used, options.command, options.device)
    return Setting(folder, data, plan, console, facts)


def run_study(options: StudyOptions) -> None:
    """Train every case with every seed, print the tables, write CSV files and the picture.

    Raises:
        UserError: a package, the device or the output folder is missing, or a run is too short.
        BackendUnavailableError: the backend cannot run here.
    """
    setting = prepare(options, "ssam", study.plan_of(options.model, options.epochs))
    folder, plan, data, console = setting.folder, setting.plan, setting.data, setting.console
    cases = study.perturbation_cases(plan, options.sparsities)
    more: list[study.Case] = []
    if options.sparse_methods:
        more = study.training_cases(
            options.sparse_methods, options.weight_sparsity, options.weight_distribution
        )
    start = time.perf_counter()
    outcomes = _train([*cases, *more], plan, data, options, console)
    seconds = time.perf_counter() - start
    parts = {"study": outcomes[: len(cases) * options.seeds]}
    if more:
        parts["sparse_methods"] = outcomes[len(cases) * options.seeds :]
    written = []
    for name, part in parts.items():
        written += _report(part, plan, setting.facts, folder, name, console)
    written.append(folder / "study.png")
    summaries = study.summarise(parts["study"])
    guarded(folder, study_report.plot_study, summaries, plan, len(data.test), written[-1])
    console.print(
        f"Mean and sample standard deviation of the test accuracy in per cent; one of the "
        f"{len(data.test)} test images is {100.0 / len(data.test):.2f} %.",
        highlight=False,
    )
    names = ", ".join(str(path) for path in written)
    console.print(f"{seconds:.0f} s of training. Written: {names}", highlight=False, soft_wrap=True)


def _train(
    cases: Sequence[study.Case], plan: Plan, data: Any, options: StudyOptions, console: Any
) -> list[study.Outcome]:
    with make_progress(console, "epochs") as progress:
        task = progress.add_task("", total=len(cases) * options.seeds * plan.epochs)

        def on_epoch(case: study.Case, seed: int) -> None:
            at = "" if case.sparsity is None else f" {case.sparsity:g} %"
            progress.update(task, advance=1, description=f"{case.method}{at}, seed {seed}")

        try:
            return list(
                study.run_cases(cases, plan, data, options.backend, options.seeds, on_epoch)
            )
        except ValueError as error:  # an option that only the method can judge
            raise UserError(str(error)) from error


def _report(
    outcomes: Sequence[study.Outcome], plan: Plan, facts: dict[str, str], folder: Path, name: str,
    console: Any,
) -> list[Path]:  # fmt: skip
    """Print one table and write its two files."""
    summaries = study.summarise(outcomes)
    console.print(study_report.make_table(summaries, f"{plan.title}: {_TITLES[name]}"))
    paths = [folder / f"{name}.csv", folder / f"{name}_summary.csv"]
    tables = [
        study_report.seed_records(outcomes, plan),
        study_report.summary_records(summaries, plan),
    ]
    for path, records in zip(paths, tables, strict=True):
        guarded(folder, study_report.write_records, records, facts, path)
    return paths


def guarded(folder: Path, write: Any, *args: Any) -> None:
    """Call ``write``; a file that cannot be written is the user's to put right."""
    try:
        write(*args)
    except OSError as error:
        raise UserError(f"--out: cannot write to {folder}: {error.strerror}") from error


class Writer:
    """Writes tables with the same last columns and remembers their paths."""

    def __init__(self, folder: Path, facts: dict[str, str], console: Any) -> None:
        self.folder, self.facts, self.console = folder, facts, console
        self.paths: list[Path] = []

    def table(self, name: str, records: list[dict[str, Any]]) -> None:
        self.paths.append(self.folder / f"{name}.csv")
        guarded(self.folder, study_report.write_records, records, self.facts, self.paths[-1])

    def picture(self, name: str, draw: Any, *args: Any) -> None:
        self.paths.append(self.folder / f"{name}.png")
        guarded(self.folder, draw, *args, self.paths[-1])

    def show(self, table: Any) -> None:
        self.console.print(table)
