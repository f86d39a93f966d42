"""The command ``study-mezo``: one fine-tuning with MeZO in its forms, and as published."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .. import MeZO
from . import mezo_report
from ._support import UserError, require
from .checkpoint import load_weights
from .commands import (
    TrainOptions,
    check_device,
    check_train,
    load_data,
    make_console,
    make_folder,
    make_progress,
    make_run,
)
from .data import Data
from .machine import added_memory
from .methods import Recipe, backend_in_use
from .runner import Run, train
from .variants import check_recipe

# Set by hand on seed 0, for 120 steps on encodings: 1e-3 ends a little higher, 3e-3 diverges.
LR = 5e-4


@dataclass(frozen=True)
class MezoStudyOptions:
    """What `sparse-optim study-mezo` was asked for.

    Attributes:
        out: folder of the tables and the picture.
        command: written into the tables.
        shared: data, model, weights, length and place of every run; its recipe's options are those
            that all methods share.
        sparsity: of the masked runs.
        seeds: runs of each method, seeds 0 to N - 1 for windows and directions.
        threads: CPU threads; None: torch's own choice.
    """

    out: Path
    command: str
    shared: TrainOptions
    sparsity: float = 0.5
    seeds: int = 1
    threads: int | None = None


@dataclass
class Tuning:
    """One fine-tuning and what was measured of it.

    Attributes:
        recipe, seed, backend: of the run.
        moved: per cent of the weights that are perturbed and updated.
        curve: (steps, mean training loss since the last entry, held-out loss, test accuracy); the
            first is of the weights as they were loaded.
        ms, own_ms: median per step, whole and without the forwards.
        added: most bytes of tensors that the first step held beyond those there before it.
        added_forward: the same of one forward.
    """

    recipe: Recipe
    seed: int
    backend: str
    moved: float
    curve: list[tuple[int, float | None, float, float]]
    added: int
    added_forward: int
    ms: float = 0.0
    own_ms: float = 0.0


def recipes(shared: dict[str, Any], sparsity: float) -> tuple[Recipe, ...]:
    """The methods: equal options, but for the mask and the way back to the weights."""
    mask = {"mask": "small", "sparsity": sparsity}
    return (
        Recipe("MeZO", "mezo", shared),
        Recipe(f"MeZO, smallest {100.0 * (1.0 - sparsity):g} %", "mezo", {**shared, **mask}),
        Recipe("MeZO, replay", "mezo", {**shared, "restore": "replay"}),
        Recipe("MeZO as published", "mezo-eager", shared),
    )


def _first_step_memory(options: TrainOptions, data: Data, weights: dict[str, Any]) -> list[int]:
    """Bytes added by the first step of a new run, with all it allocates to keep, and by a forward.

    The batch is the first of the run; the runs are thrown away.
    """
    generator = torch.Generator().manual_seed(options.seed)
    samples, labels = next(iter(data.batches(options.batch_size, generator)))

    @torch.no_grad()
    def forward(run: Run) -> None:
        cross_entropy(run.model(data.inputs(samples)), labels)

    def step(run: Run) -> None:
        run.step(samples, labels)

    return [
        added_memory(lambda: make_run(options, data, weights), call, options.device)
        for call in (step, forward)
    ]


def _moved(run: Run) -> float:
    total = sum(p.numel() for p in run.model.parameters())
    active = run.optimizer.num_active if isinstance(run.optimizer, MeZO) else total
    return 100.0 * active / total


def tune(
    cases: Sequence[Recipe], shared: TrainOptions, data: Data, weights: dict[str, Any],
    on_epoch: Callable[[], None] = lambda: None,
) -> list[Tuning]:  # fmt: skip
    """Fine-tune with every method from the same weights on the same windows.

    The methods take turns, an epoch each, so that they share whatever else the machine does.

    Args:
        cases: the methods.
        shared: as for ``MezoStudyOptions``, with the seed of the runs.
        data: on the device to train on.
        weights: of the model, as ``Run`` takes them.
        on_epoch: called after an epoch of all methods.
    """
    runs, tunings = [], []
    for recipe in cases:
        options = replace(shared, recipe=check_recipe(recipe))
        memory = _first_step_memory(options, data, weights)
        run = make_run(options, data, weights)
        used = backend_in_use(recipe.optimizer, shared.backend, shared.device)
        start = (0, None, *run.evaluate())
        tunings.append(Tuning(recipe, shared.seed, used, _moved(run), [start], *memory))
        runs.append(run)
    epochs = [train(run, shared.epochs, shared.batch_size, shared.seed) for run in runs]
    for losses in zip(*epochs, strict=True):
        for run, tuning, loss in zip(runs, tunings, losses, strict=True):
            tuning.curve.append((len(run.seconds), loss, *run.evaluate()))
            tuning.ms, tuning.own_ms = run.whole_ms_per_step(), run.ms_per_step()
        on_epoch()
    return tunings


def run_mezo_study(options: MezoStudyOptions) -> None:
    """Fine-tune with every method and seed, print a table, write CSV files and a picture.

    Raises:
        UserError: a package, the weights, the device or the output folder is missing.
        BackendUnavailableError: the backend cannot run here.
    """
    require("matplotlib.pyplot", "rich.progress")
    shared = options.shared
    check_device(shared.device)
    check_train(shared)
    assert shared.load is not None
    weights = load_weights(shared.load, shared.model_name)
    data = load_data(shared)
    folder = make_folder(options.out)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    cases = recipes(shared.recipe.options, options.sparsity)
    console = make_console()
    console.print(f"{data.summary()}; weights of {shared.load}; {shared.device}", highlight=False)
    facts = mezo_report.facts(options.command, shared.device)  # of the source as it is now
    start = time.perf_counter()
    tunings: list[Tuning] = []
    with make_progress(console, "epochs") as progress:
        for seed in range(options.seeds):
            task = progress.add_task(f"seed {seed}", total=shared.epochs)
            own = replace(shared, seed=seed)
            tunings += tune(cases, own, data, weights, functools.partial(progress.advance, task))
    seconds = time.perf_counter() - start
    console.print(mezo_report.make_table(tunings))
    for note in mezo_report.NOTES:
        console.print(f"- {note}", highlight=False)
    try:
        written = mezo_report.write(tunings, shared, data, facts, folder)
    except OSError as error:
        raise UserError(f"--out: cannot write to {folder}: {error.strerror}") from error
    names = ", ".join(str(path) for path in written)
    console.print(f"{seconds:.0f} s. Written: {names}", highlight=False, soft_wrap=True)
