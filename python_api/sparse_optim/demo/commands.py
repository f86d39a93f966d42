"""The commands ``demo``, which compares all methods, and ``train``, which runs one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import report
from ._support import UserError, require
from .compare import compare, total_steps
from .data import load, load_digits, steps_per_epoch
from .methods import PLANS, Recipe, backend_in_use
from .runner import Run, train
from .variants import check_recipe, with_choices


@dataclass(frozen=True)
class DemoOptions:
    """What `sparse-optim demo` was asked for; ``choices`` are options of the SAM family."""

    out: Path
    seed: int = 0
    epochs: int | None = None
    device: str = "cpu"
    backend: str = "auto"
    threads: int = 1
    choices: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainOptions:
    """What `sparse-optim train` was asked for; None means the default of the data or model."""

    recipe: Recipe
    data: str = "digits"
    data_dir: str | None = None
    model: str = "cnn"
    epochs: int = 10
    batch_size: int = 64
    device: str = "cpu"
    backend: str = "auto"
    seed: int = 0
    save: Path | None = None


def check_device(device: str) -> str:
    """Return ``device``.

    Raises:
        UserError: there is no such device here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here")
    return device


def make_folder(path: Path) -> Path:
    """Create a folder for output, with its parents.

    Raises:
        UserError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"--out: the folder {path} is not writable")
    return path


def make_console() -> Any:
    """A terminal; no cutting of table and paths when the output is a file."""
    (console_module,) = require("rich.console")
    return console_module.Console(width=None if console_module.Console().is_terminal else 110)


def make_progress(console: Any, unit: str) -> Any:
    """A progress display that counts ``unit``."""
    (module,) = require("rich.progress")
    return module.Progress(
        "[progress.description]{task.description:<18}",
        module.BarColumn(),
        module.MofNCompleteColumn(),
        unit,
        module.TimeElapsedColumn(),
        console=console,
    )


def run_demo(options: DemoOptions) -> None:
    """Train every method of every plan, print the table, write CSV and pictures.

    Raises:
        UserError: a package, the device or the output folder is missing.
        BackendUnavailableError: the backend cannot run here.
    """
    # all before the first minute of work: what is missing must not show at its end
    require("sklearn.datasets", "matplotlib.pyplot")
    require("rich.progress", "rich.console")
    check_device(options.device)
    plans = tuple(with_choices(plan, options.choices) for plan in PLANS)
    if options.epochs is not None:
        plans = tuple(replace(plan, epochs=options.epochs) for plan in plans)
    fused = backend_in_use("linbreg", options.backend, options.device)
    folder = make_folder(options.out)
    torch.set_num_threads(options.threads)
    data = load_digits().to(options.device)
    console = make_console()
    console.print(
        f"digits: {len(data.train)} training and {len(data.test)} test images of 8x8; "
        f"reference backend against {fused} on {options.device}, {options.threads} thread(s), "
        f"seed {options.seed}",
        highlight=False,
    )
    start = time.perf_counter()
    rows = []
    with make_progress(console, "steps") as progress:
        for plan in plans:
            for recipe in plan.recipes:
                task = progress.add_task(
                    f"{plan.title} {recipe.label}", total=total_steps(plan, len(data.train))
                )
                step = _advance(progress, task)
                rows.append(compare(plan, recipe, data, options.backend, options.seed, step))
    console.print(report.make_table(rows))
    for note in report.NOTES:
        console.print(f"- {note}", highlight=False)
    _write(rows, folder, console, time.perf_counter() - start)


def _advance(progress: Any, task: Any) -> Any:
    return lambda: progress.advance(task)


def _write(rows: list, folder: Path, console: Any, seconds: float) -> None:
    from .plots import write_plots  # here: matplotlib takes a second to load

    table = folder / "results.csv"
    try:
        report.write_csv(rows, table)
        pictures = write_plots(rows, folder)
    except OSError as error:
        raise UserError(f"--out: cannot write to {folder}: {error.strerror}") from error
    names = ", ".join(str(path) for path in (table, *pictures))
    console.print(f"{seconds:.0f} s of training. Written: {names}", highlight=False, soft_wrap=True)


def run_train(options: TrainOptions) -> None:
    """Train one model with one optimizer and print a line per epoch.

    Raises:
        UserError: data, device or a folder is missing, or an option is out of range.
        BackendUnavailableError: the backend cannot run here.
    """
    check_device(options.device)
    if options.save is not None and not options.save.absolute().parent.is_dir():
        raise UserError(f"--save: there is no folder {options.save.parent}")
    recipe = check_recipe(options.recipe)
    used = backend_in_use(recipe.optimizer, options.backend, options.device)
    data = load(options.data, options.data_dir).to(options.device)
    steps = options.epochs * steps_per_epoch(len(data.train), options.batch_size)
    try:
        run = Run(options.model, data, recipe, options.backend, options.seed, steps)
    except ValueError as error:  # an option that only the optimizer can judge
        raise UserError(f"--optimizer {recipe.optimizer}: {error}") from error
    weights = sum(p.numel() for p in run.model.parameters())
    print(
        f"{options.data}: {len(data.train)} training and {len(data.test)} test images; "
        f"{options.model} with {weights:,} weights; {recipe.optimizer} on {used}"
    )
    start = time.perf_counter()
    for epoch, loss in enumerate(
        train(run, options.epochs, options.batch_size, options.seed), start=1
    ):
        print(
            f"epoch {epoch:>3}/{options.epochs}  loss {loss:.4f}  "
            f"test accuracy {run.accuracy():.2f} %  zero weights {run.sparsity():.2f} %  "
            f"{time.perf_counter() - start:.1f} s",
            flush=True,
        )
        start = time.perf_counter()
    saved = ""
    if options.save is not None:
        _save(run, options)
        saved = f"; saved to {options.save}"
    print(
        f"{recipe.optimizer}: test accuracy {run.accuracy():.2f} %, zero weights "
        f"{run.sparsity():.2f} %, training FLOPs {report.flops_text(run.flops_percent())}, "
        f"optimizer {report.ms_text(run.ms_per_step())} ms/step{saved}"
    )


def _save(run: Run, options: TrainOptions) -> None:
    """Model, optimizer and options; ``torch.load(weights_only=True)`` reads the file."""
    assert options.save is not None
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "options": {
            "data": options.data,
            "model": options.model,
            "optimizer": options.recipe.optimizer,
            "seed": options.seed,
            **options.recipe.all_options(),
        },
    }
    if run.implicit is not None:
        state["implicit"] = run.implicit.state_dict()
    if run.sparse is not None:
        state["sparse"] = run.sparse.scheduler.state_dict()
    try:
        torch.save(state, options.save)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError
        raise UserError(f"--save: cannot write {options.save}: {error}") from error
