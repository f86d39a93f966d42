"""One training run: steps, the optimizer's own time, FLOPs, test loss and accuracy."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import SAM, SSAM, ZOSAM, DynamicMask, FeedbackLambda, ImplicitMask, MeZO, SparseFlops
from . import models
from ._support import UserError
from .data import Data
from .eager_mezo import EagerMeZO
from .methods import (
    FISHER_SAMPLES,
    Recipe,
    build_implicit,
    build_optimizer,
    prepare_model,
)
from .regularized import build_control
from .sparse import SparseMethod
from .stopwatch import Stopwatch, median_ms


class Run:
    """A model, its optimizer and what is recorded about them.

    Args:
        model: name of a model.
        data: on the device to train on.
        recipe: optimizer and options.
        backend: as the optimizers take it.
        seed: of the initial weights and random directions.
        total_steps: length of the cosine schedule that takes lr to 0.
        sizes: as ``models.build`` takes them.
        weights: the model's state to start from; None: new weights.
        track_support: count births and deaths of weights, as ``SparseFlops`` does.

    Raises:
        ValueError: an option is out of range.
        UserError: the weights do not fit the model.
    """

    def __init__(
        self, model: str, data: Data, recipe: Recipe, backend: str, seed: int, total_steps: int,
        *, sizes: dict[str, int] | None = None, weights: dict[str, Any] | None = None,
        track_support: bool = False,
    ) -> None:  # fmt: skip
        device = data.device
        torch.manual_seed(seed)
        self.model: nn.Module = models.build(model, data.shape, data.classes, **(sizes or {}))
        if weights is None:
            prepare_model(self.model, recipe, seed)
        else:
            self._load(weights)
        self.model.to(device)
        self.data, self.recipe, self.total_steps = data, recipe, total_steps
        self.optimizer = build_optimizer(self.model, recipe, backend, seed)
        self.control = build_control(self.optimizer, recipe.all_options())
        self.implicit = build_implicit(self.model, recipe, backend, seed)
        self.sparse: SparseMethod | None = None
        method = recipe.all_options().get("sparse_method", "none")
        if method != "none":
            self.sparse = SparseMethod(
                method, self.model, self.optimizer, recipe.option("weight_sparsity"),
                recipe.option("weight_distribution"), recipe.option("sparse_start"), data=data,
                loss_fn=cross_entropy, total_steps=total_steps, seed=seed, backend=backend,
            )  # fmt: skip
        example, _ = next(iter(data.test_batches()))
        scheduler = None if self.sparse is None else self.sparse.scheduler
        self.flops = SparseFlops(self.model, example[:1], self.optimizer, scheduler, track_support)
        if self.sparse is not None:
            self.flops.count_passes(*self.sparse.scoring, dense=True)
        self.seconds: list[float] = []  # of the optimizer
        self.step_seconds: list[float] = []
        self._watch, self._whole = Stopwatch(device), Stopwatch(device)

    def _load(self, weights: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:  # its first line names the class, the others what is wrong
            why = str(error).splitlines()[-1].strip()
            raise UserError(
                f"the loaded weights are of a model of another size or for other data: {why}"
            ) from error

    # -- one step ----------------------------------------------------------------------------

    def step(self, samples: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch; return its loss, on the device."""
        with self._whole.on():
            loss = self._step(samples, labels)
        self.seconds.append(self._watch.take())
        self.step_seconds.append(self._whole.take())
        self.flops.step(len(labels), self.step_seconds[-1], parts={"optimizer": self.seconds[-1]})
        return loss

    def _step(self, samples: Tensor, labels: Tensor) -> Tensor:
        done = len(self.seconds)
        progress = done / self.total_steps
        if self.sparse is not None:
            self.sparse.rewind(done)
            progress = self.sparse.progress(done)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.option("lr") * 0.5 * (1.0 + math.cos(math.pi * progress))
        x = self.data.inputs(samples)
        if isinstance(self.optimizer, SAM):
            return self._sam_step(self.optimizer, x, labels)
        if isinstance(self.optimizer, ZOSAM):
            return self._zosam_step(self.optimizer, x, labels)
        if isinstance(self.optimizer, MeZO | EagerMeZO):
            with self._watch.on():
                return self.optimizer.step(lambda: self._untimed_loss(x, labels))
        loss = self._backward(x, labels)
        self._update()
        return loss

    def _backward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x), labels)
        loss.backward()
        return loss.detach()

    def _untimed_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """A loss asked for by the optimizer: the forward is not the optimizer's time."""
        with self._watch.off():
            return cross_entropy(self.model(x), labels)

    def _update(self) -> None:
        """The optimizer's step with the gradients at w, unless a mask update takes its place."""
        with self._watch.on():
            if self.sparse is None or not self.sparse.step():
                self.optimizer.step()
            if isinstance(self.control, FeedbackLambda):  # the other one has its hook
                self.control.step()

    def _sam_step(self, optimizer: SAM, x: Tensor, labels: Tensor) -> Tensor:
        with self.implicit or contextlib.nullcontext():
            loss = self._backward(x, labels)
        if not optimizer.perturbs:
            self._update()
            return loss
        with self._watch.on():
            if self.sparse is not None and self.sparse.step():
                return loss
            optimizer.first_step()
        self._backward(x, labels)
        with self._watch.on():
            optimizer.second_step()
        return loss

    def _zosam_step(self, optimizer: ZOSAM, x: Tensor, labels: Tensor) -> Tensor:
        late = None  # the sparse training method, if its update wants the gradients at w + e
        if self.sparse is not None:
            late = self.sparse if self.sparse.wants_perturbed else None
        with self._watch.on():
            if self.sparse is not None and late is None:
                self.sparse.step()
            optimizer.probe(lambda: self._untimed_loss(x, labels))
        loss = self._backward(x, labels)
        with self._watch.on():
            if late is not None:
                optimizer.restore()
            if late is None or not late.step(perturbed=True):
                optimizer.step()
        return loss

    def _masked(self) -> SSAM | ImplicitMask | None:
        """Who holds the mask of Sparse SAM."""
        return self.optimizer if isinstance(self.optimizer, SSAM) else self.implicit

    def start_epoch(self, generator: torch.Generator) -> None:
        """Renew the mask of Sparse SAM, if it needs samples on those drawn from ``generator``."""
        if self.sparse is not None:
            self.sparse.rewind(len(self.seconds))  # before the weights are scored
        masked = self._masked()
        if masked is None:
            return
        if masked.policy.needs_data:
            samples = self.data.samples(FISHER_SAMPLES, generator)
            masked.update_mask(self.model, samples, cross_entropy)
            self.flops.count_passes(len(samples[1]), 1, 1)
        elif isinstance(masked.policy, DynamicMask):
            masked.update_mask(len(self.seconds) / self.total_steps)
        else:
            masked.update_mask()

    # -- results -----------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, data: Data | None = None) -> tuple[float, float]:
        """Mean loss on the test samples, the run's or those of other data, and per cent of their
        labels foretold."""
        data = self.data if data is None else data
        self.model.eval()
        right = torch.zeros((), dtype=torch.int64, device=data.device)
        total = torch.zeros((), dtype=torch.float64, device=data.device)
        count = 0
        for x, labels in data.test_batches():
            scores = self.model(x)
            right += (scores.argmax(1) == labels).sum()
            total += cross_entropy(scores, labels, reduction="sum")
            count += labels.numel()
        self.model.train()
        return float(total) / count, 100.0 * int(right) / count

    def accuracy(self, data: Data | None = None) -> float:
        """Per cent of the test samples' labels foretold, the run's or those of other data."""
        return self.evaluate(data)[1]

    def result_text(self) -> str:
        """What ``evaluate`` finds, as the data tell it."""
        return self.data.result_text(*self.evaluate())

    @torch.no_grad()
    def nonzeros(self) -> dict[str, tuple[int, int]]:
        """Nonzero and all entries of the convolution and linear weights; reads the device once."""
        layers = self.flops.layers
        live = torch.stack([layer.weight.count_nonzero() for layer in layers]).tolist()
        return {x.name: (n, x.weight.numel()) for x, n in zip(layers, live, strict=True)}

    def sparsity(self) -> float:
        """Per cent of the convolution and linear weights that are exactly zero."""
        live, total = (sum(column) for column in zip(*self.nonzeros().values(), strict=True))
        return 100.0 * (total - live) / total

    def masks(self) -> dict[str, Tensor]:
        """What Sparse SAM perturbs: a bool mask on the CPU by name; empty for other methods.

        Weights that a sparse training method has taken away are not perturbed. The implicit form
        has masks of weights only.
        """
        masked = self._masked()
        if masked is None or masked.mask is None:
            return {}
        if self.implicit is None:
            names = [name for name, _ in self.model.named_parameters()]
        else:
            names = [f"{layer}.weight" for layer in self.implicit.layers]
        found = {n: m.cpu() for n, m in zip(names, masked.mask.to_bool(), strict=True)}
        if self.sparse is not None:
            scheduler = self.sparse.scheduler
            for name, exists in zip(scheduler.weights, scheduler.mask.to_bool(), strict=True):
                found[name] &= exists.cpu()
        return found

    def flops_percent(self) -> tuple[float, float]:
        """Training FLOPs so far in per cent of dense SGD on the same samples, passes that find
        masks included: in theory and issued (``SparseFlops``)."""
        report = self.flops.report()
        return report["theoretical_percent"], report["issued_percent"]

    def ms_per_step(self) -> float:
        """Median milliseconds of optimizer work per step, over whole coarse-fine cycles."""
        cycle = int(self.recipe.all_options().get("coarse_steps", 0)) + 1
        return median_ms(self.seconds, cycle)

    def whole_ms_per_step(self) -> float:
        """Median milliseconds of a whole step."""
        return median_ms(self.step_seconds)


@torch.no_grad()
def largest_difference(a: nn.Module, b: nn.Module) -> float:
    """Largest absolute difference between two models' parameters; NaN if any is."""
    gaps = [(p - q).abs().max() for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    return float(torch.stack(gaps).max())


def train(
    run: Run, epochs: int, batch_size: int, seed: int,
    on_step: Callable[[Tensor], None] = lambda loss: None,
) -> Iterator[float]:  # fmt: skip
    """Train epoch by epoch; the last one ends early if the run was made for fewer steps.

    Args:
        run: new (mutated).
        epochs, batch_size: as the run was made for.
        seed: of the data order and of the samples that masks are scored with: equal seeds give all
            methods the same batches.
        on_step: called after every step with its loss.

    Yields:
        The mean loss of each epoch.
    """
    order, mask_order = (torch.Generator().manual_seed(seed) for _ in range(2))
    for _ in range(epochs):
        run.start_epoch(mask_order)
        batches = itertools.islice(
            run.data.batches(batch_size, order), run.total_steps - len(run.seconds)
        )
        losses = []
        for samples, labels in batches:
            losses.append(run.step(samples, labels))
            on_step(losses[-1])
        yield float(torch.stack(losses).mean())
