"""The commands ``demo``, which compares all methods, and ``train``, which runs one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, report
from ._support import UserError, require
from .compare import compare, total_steps
from .data import Data, load, load_digits
from .machine import peak_memory
from .methods import PLANS, Recipe, backend_in_use
from .models import SIZED
from .runner import Run, train
from .text import EPOCH_STEPS, WINDOW, load_stdlib
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
    """What `sparse-optim train` was asked for; None means the default of the data or model.

    Attributes:
        package, window, epoch_steps: of the standard library's source; else None.
        sizes: ``width`` and ``depth`` of the model, where they were given.
        load: a file to take the first weights from.
        log_layers: print the nonzero weights of every layer after every epoch.
    """

    recipe: Recipe
    data: str = "digits"
    data_dir: str | None = None
    package: str | None = None
    window: int | None = None
    epoch_steps: int | None = None
    model: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 64
    device: str = "cpu"
    backend: str = "auto"
    seed: int = 0
    load: Path | None = None
    save: Path | None = None
    log_layers: bool = False

    @property
    def model_name(self) -> str:
        """The model asked for, or the one that fits the data."""
        return self.model or ("transformer" if self.data == "stdlib" else "cnn")


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


def check_train(options: TrainOptions) -> None:
    """UserError if model, data and the options of both do not go together."""
    model, reads_text = options.model_name, options.data == "stdlib"
    if reads_text != (model == "transformer"):
        kind = "text" if reads_text else "images"
        raise UserError(f"--model {model} is not for --data {options.data}, which are {kind}")
    for name in ("package", "window", "epoch_steps"):
        if not reads_text and getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --data stdlib")
    for name in options.sizes:
        if model not in SIZED:
            raise UserError(f"--{name} needs --model {' or '.join(SIZED)}")
    if options.data_dir is not None and options.data in ("digits", "stdlib"):
        source = "scikit-learn" if options.data == "digits" else "Python"
        raise UserError(
            f"--data-dir is no option of --data {options.data}, which {source} brings along"
        )
    for name in ("density", "init_gain"):
        if options.load is not None and name in options.recipe.options:
            shown = name.replace("_", "-")
            raise UserError(f"--{shown} is of new weights: it does not go with --load")
    checkpoint.check_folder(options.save)


def load_data(options: TrainOptions) -> Data:
    """The data asked for, on the device.

    Raises:
        UserError: a folder or file is missing or is not what it should be.
    """
    if options.data != "stdlib":
        return load(options.data, options.data_dir).to(options.device)
    window, steps = options.window or WINDOW, options.epoch_steps or EPOCH_STEPS
    return load_stdlib(options.package, window, steps).to(options.device)


def make_run(options: TrainOptions, data: Data, weights: dict[str, Any] | None = None) -> Run:
    """A run as asked for; ``weights`` as ``Run`` takes them.

    Raises:
        UserError: an option that only the optimizer can judge is out of range, or the weights do
            not fit.
    """
    steps = options.epochs * data.steps(options.batch_size)
    recipe = options.recipe
    try:
        return Run(
            options.model_name, data, recipe, options.backend, options.seed, steps,
            sizes=options.sizes, weights=weights,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"--optimizer {recipe.optimizer}: {error}") from error


def run_train(options: TrainOptions) -> None:
    """Train one model with one optimizer and print a line per epoch.

    Raises:
        UserError: data, device or a folder is missing, or an option is out of range.
        BackendUnavailableError: the backend cannot run here.
    """
    check_device(options.device)
    check_train(options)
    recipe = check_recipe(options.recipe)
    used = backend_in_use(recipe.optimizer, options.backend, options.device)
    weights = None
    if options.load is not None:
        weights = checkpoint.load_weights(options.load, options.model_name)
    data = load_data(options)
    run = make_run(options, data, weights)
    count = sum(p.numel() for p in run.model.parameters())
    print(
        f"{data.summary()}; {options.model_name} with {count:,} weights; "
        f"{recipe.optimizer} on {used}"
    )
    if options.load is not None:
        print(f"{options.load}: {run.result_text()}", flush=True)
    result, start = "", time.perf_counter()
    for epoch, loss in enumerate(
        train(run, options.epochs, options.batch_size, options.seed), start=1
    ):
        result = run.result_text()
        print(
            f"epoch {epoch:>3}/{options.epochs}  loss {loss:.4f}  {result}  "
            f"zero weights {run.sparsity():.2f} %  "
            f"FLOPs so far {report.flops_text(run.flops_percent())}  "
            f"{time.perf_counter() - start:.1f} s, "
            f"{report.ms_text(run.whole_ms_per_step())} ms/step, "
            f"peak memory {peak_memory(options.device) / 1e6:.0f} MB",
            flush=True,
        )
        if options.log_layers:
            print(report.nonzeros_text(run.nonzeros()), flush=True)
        start = time.perf_counter()
    saved = ""
    if options.save is not None:
        checkpoint.save(run, _saved_options(options, data), options.save)
        saved = f"; saved to {options.save}"
    print(
        f"{recipe.optimizer}: {result}, zero weights "
        f"{run.sparsity():.2f} %, training FLOPs {report.flops_text(run.flops_percent())}, "
        f"optimizer {report.ms_text(run.ms_per_step())} ms/step{saved}"
    )


def _saved_options(options: TrainOptions, data: Data) -> dict[str, Any]:
    return {
        "data": options.data,
        "package": options.package,
        "model": options.model_name,
        "shape": tuple(data.shape),
        "classes": data.classes,
        "optimizer": options.recipe.optimizer,
        "seed": options.seed,
        **options.sizes,
        **options.recipe.all_options(),
    }
