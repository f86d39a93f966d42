"""Accuracy over sparsity: Sparse SAM and sparse training against SGD and SAM, several seeds."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .data import Data, Dataset
from .methods import PLANS, Plan, Recipe
from .runner import Run, train
from .sparse import DYNAMIC
from .variants import check_recipe

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
# Sparse networks of this size want larger steps than the plans take: at those some methods learn
# next to nothing in a dozen epochs. Set by hand on seed 0; the dense runs beside them take it too.
SPARSE_LR = 0.1
DENSE = ("SGD", "SAM")  # what every other method is compared with
_CURVES: dict[str, dict[str, Any]] = {
    "SSAM-F": {"mask": "fisher"},
    "SSAM-D": {"mask": "dynamic"},
    "SSAM-F rows": {"mask": "fisher", "pattern": "row"},
}


@dataclass(frozen=True)
class Case:
    """One line of the summary: a method at one sparsity, in per cent; None where it has none."""

    recipe: Recipe
    sparsity: float | None = None

    @property
    def method(self) -> str:
        """Name in tables."""
        return self.recipe.label

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells cases apart."""
        return self.method, self.sparsity, *sorted(self.recipe.options.items())


@dataclass(frozen=True)
class Outcome:
    """One training run; per cents. ``perturbed`` is None for methods that do not perturb.

    ``corrupted`` is the accuracy by corruption of the test images, the mean over its amounts;
    ``seconds`` is the time of all steps, ``ms`` the optimizer's share of one, ``loss`` that of the
    test samples, ``flops`` of training in theory and issued, in per cent of dense SGD.
    """

    case: Case
    seed: int
    steps: int
    accuracy: float
    perturbed: float | None
    zeros: float
    seconds: float = 0.0
    corrupted: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    flops: tuple[float, float] = (100.0, 100.0)
    ms: float = 0.0

    @property
    def corrupted_mean(self) -> float | None:
        """Mean over the corruptions; None without any."""
        return statistics.fmean(self.corrupted.values()) if self.corrupted else None


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over the seeds of one case.

    ``corrupted`` holds a mean per corruption, ``corrupted_mean`` and ``corrupted_deviation`` are
    over the seeds of the mean over all of them. ``seconds``, ``flops`` and ``ms`` are means.
    """

    case: Case
    seeds: int
    mean: float
    deviation: float | None
    perturbed: float | None
    zeros: float
    steps: int = 0
    corrupted: dict[str, float] = field(default_factory=dict)
    corrupted_mean: float | None = None
    corrupted_deviation: float | None = None
    loss: float = 0.0
    loss_deviation: float | None = None
    seconds: float = 0.0
    flops: tuple[float, float] = (100.0, 100.0)
    ms: float = 0.0


def plan_of(model: str, epochs: int | None) -> Plan:
    """The demo's plan for a model, with its number of epochs or another one."""
    plan = next(plan for plan in PLANS if plan.model == model)
    return plan if epochs is None else replace(plan, epochs=epochs)


def make_case(
    label: str, optimizer: str, lr: float, options: dict[str, Any], sparsity: float | None = None
) -> Case:
    """A case with checked options; ``sparsity`` is a fraction here."""
    recipe = check_recipe(Recipe(label, optimizer, {"lr": lr, **options}))
    return Case(recipe, None if sparsity is None else 100.0 * sparsity)


def perturbation_cases(plan: Plan, sparsities: Sequence[float]) -> list[Case]:
    """SGD, SAM, and Sparse SAM at every sparsity; 2:4 has its own."""
    lr = float(next(r for r in plan.recipes if r.optimizer == "sam").option("lr"))
    cases = [make_case(name, name.lower(), lr, {}) for name in DENSE]
    for label, options in _CURVES.items():
        cases += [make_case(label, "ssam", lr, {**options, "sparsity": s}, s) for s in sparsities]
    return [*cases, make_case("SSAM-F 2:4", "ssam", lr, {"mask": "fisher", "pattern": "2:4"}, 0.5)]


def sparse_options(method: str, sparsity: float, distribution: str) -> dict[str, Any]:
    """Options that make a recipe train with a sparse training method."""
    options: dict[str, Any] = {"sparse_method": method, "weight_sparsity": sparsity}
    if method in DYNAMIC:
        options["weight_distribution"] = distribution
    return options


def training_cases(methods: Sequence[str], sparsity: float, distribution: str) -> list[Case]:
    """SGD and SAM, dense and with every sparse training method.

    All that take a distribution among the layers take the same, so that methods are compared.
    """
    cases = []
    for name in DENSE:
        cases.append(make_case(name, name.lower(), SPARSE_LR, {}))
        for method in methods:
            options = sparse_options(method, sparsity, distribution)
            cases.append(
                make_case(f"{name} + {method}", name.lower(), SPARSE_LR, options, sparsity)
            )
    return cases


def _perturbed(run: Run) -> float | None:
    """Per cent of all weights and biases that the last step could perturb."""
    if "rho" not in run.recipe.all_options():
        return None
    masks = run.masks()
    total = sum(p.numel() for p in run.model.parameters())
    if masks:
        return 100.0 * sum(int(m.sum()) for m in masks.values()) / total
    scheduler = None if run.sparse is None else run.sparse.scheduler
    gone = 0 if scheduler is None else scheduler.mask.numel - scheduler.mask.live
    return 100.0 * (total - gone) / total


def train_case(
    case: Case, plan: Plan, data: Data, backend: str, seed: int,
    on_epoch: Callable[[], None] = lambda: None, *, steps: int | None = None,
    corrupted: Mapping[str, Sequence[Dataset]] | None = None,
) -> Outcome:  # fmt: skip
    """Train once; equal seeds start all methods at the same weights and give the same batches.

    Args:
        case: method and sparsity.
        plan: model, epochs and batch size.
        data: on the device to train on.
        backend: as the optimizers take it.
        seed: of weights, data order, masks and mask samples.
        on_epoch: called after every epoch.
        steps: of the run, its schedules as long; default the plan's epochs.
        corrupted: test images to measure the accuracy on after training, by corruption.
    """
    per_epoch = data.steps(plan.batch_size)
    steps = plan.epochs * per_epoch if steps is None else steps
    run = Run(plan.model, data, case.recipe, backend, seed, steps, sizes=plan.sizes)
    epochs = math.ceil(steps / per_epoch)
    start = time.perf_counter()
    for _ in train(run, epochs, plan.batch_size, seed):
        on_epoch()
    seconds = time.perf_counter() - start
    found = {
        name: statistics.fmean([run.accuracy(part) for part in parts])
        for name, parts in (corrupted or {}).items()
    }
    loss, accuracy = run.evaluate()
    return Outcome(
        case, seed, steps, accuracy, _perturbed(run), run.sparsity(), seconds, found, loss,
        run.flops_percent(), run.ms_per_step(),
    )  # fmt: skip


def run_cases(
    cases: Sequence[Case], plan: Plan, data: Data, backend: str, seeds: int,
    on_epoch: Callable[[Case, int], None] = lambda case, seed: None,
) -> Iterator[Outcome]:  # fmt: skip
    """Train every case with seeds 0 to ``seeds`` - 1; arguments as in ``train_case``."""
    for case in cases:
        for seed in range(seeds):
            progress = functools.partial(on_epoch, case, seed)
            yield train_case(case, plan, data, backend, seed, progress)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation of a sample (n - 1); None for one value.

    Example:
        >>> spread([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """One summary per case, in the order of the outcomes.

    The deviation is that of a sample (n - 1); None for one seed.
    """
    by_case: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in outcomes:
        by_case.setdefault(outcome.case.key, []).append(outcome)
    summaries = []
    for own in by_case.values():
        mean, deviation = spread([o.accuracy for o in own])
        perturbed = [o.perturbed for o in own if o.perturbed is not None]
        corrupted = [o.corrupted_mean for o in own if o.corrupted_mean is not None]
        loss, loss_deviation = spread([o.loss for o in own])
        summaries.append(
            Summary(
                case=own[0].case,
                seeds=len(own),
                mean=mean,
                deviation=deviation,
                perturbed=statistics.fmean(perturbed) if perturbed else None,
                zeros=statistics.fmean([o.zeros for o in own]),
                steps=own[0].steps,
                corrupted={
                    name: statistics.fmean([o.corrupted[name] for o in own])
                    for name in own[0].corrupted
                },
                corrupted_mean=statistics.fmean(corrupted) if corrupted else None,
                corrupted_deviation=spread(corrupted)[1] if corrupted else None,
                loss=loss,
                loss_deviation=loss_deviation,
                seconds=statistics.fmean([o.seconds for o in own]),
                flops=(
                    statistics.fmean([o.flops[0] for o in own]),
                    statistics.fmean([o.flops[1] for o in own]),
                ),
                ms=statistics.fmean([o.ms for o in own]),
            )
        )
    return summaries
