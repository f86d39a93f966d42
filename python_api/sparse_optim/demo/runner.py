"""One training run: steps, the optimizer's own time, FLOPs and test accuracy."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import SSAM, ZOSAM, MeZO, SparseFlops
from .._sam import SAM
from . import models
from .data import Dataset
from .methods import FISHER_SAMPLES, Recipe, build_optimizer, prepare_model

_WARM_UP = 5  # steps that allocate state and fill caches
_EVAL_BATCH = 512


class Stopwatch:
    """Adds up the time inside ``on()`` blocks without that of ``off()`` blocks inside them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._total = 0.0

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Count the block."""
        start = self._now()
        yield
        self._total += self._now() - start

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Leave the block out of the ``on()`` block around it."""
        start = self._now()
        yield
        self._total -= self._now() - start

    def take(self) -> float:
        """Seconds since the last call."""
        total, self._total = self._total, 0.0
        return total


class Run:
    """A model, its optimizer and what is recorded about them.

    Args:
        model: name of a model.
        data: on the device to train on.
        recipe: optimizer and options.
        backend: as the optimizers take it.
        seed: of the initial weights and random directions.
        total_steps: length of the cosine schedule that takes lr to 0.
    """

    def __init__(
        self, model: str, data: Dataset, recipe: Recipe, backend: str, seed: int, total_steps: int
    ) -> None:
        device = data.mean.device
        torch.manual_seed(seed)
        self.model: nn.Module = models.build(model, data.shape, data.classes)
        prepare_model(self.model, recipe, seed)
        self.model.to(device)
        self.data, self.recipe, self.total_steps = data, recipe, total_steps
        self.optimizer = build_optimizer(self.model, recipe, backend, seed)
        example = data.inputs(data.train.images[:1])
        self.flops = SparseFlops(self.model, example, self.optimizer)
        self.mask_samples = 0
        self.seconds: list[float] = []
        self._watch = Stopwatch(device)

    # -- one step ----------------------------------------------------------------------------

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch; return its loss, on the device."""
        lr = self.recipe.option("lr")
        lr *= 0.5 * (1.0 + math.cos(math.pi * len(self.seconds) / self.total_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x = self.data.inputs(images)
        if isinstance(self.optimizer, SAM):
            loss = self._sam_step(self.optimizer, x, labels)
        elif isinstance(self.optimizer, ZOSAM):
            loss = self._zosam_step(self.optimizer, x, labels)
        elif isinstance(self.optimizer, MeZO):
            with self._watch.on():
                loss = self.optimizer.step(lambda: self._untimed_loss(x, labels))
        else:
            loss = self._backward(x, labels)
            with self._watch.on():
                self.optimizer.step()
        self.seconds.append(self._watch.take())
        self.flops.step(samples=len(labels))
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

    def _sam_step(self, optimizer: SAM, x: Tensor, labels: Tensor) -> Tensor:
        loss = self._backward(x, labels)
        with self._watch.on():
            optimizer.first_step()
        self._backward(x, labels)
        with self._watch.on():
            optimizer.second_step()
        return loss

    def _zosam_step(self, optimizer: ZOSAM, x: Tensor, labels: Tensor) -> Tensor:
        with self._watch.on():
            optimizer.probe(lambda: self._untimed_loss(x, labels))
        loss = self._backward(x, labels)
        with self._watch.on():
            optimizer.step()
        return loss

    def start_epoch(self, generator: torch.Generator) -> None:
        """Renew the Fisher mask of Sparse SAM on samples drawn from ``generator``."""
        if isinstance(self.optimizer, SSAM):
            split = self.data.train
            chosen = torch.randperm(len(split), generator=generator)[:FISHER_SAMPLES]
            chosen = chosen.to(split.labels.device)
            samples = (self.data.inputs(split.images[chosen]), split.labels[chosen])
            self.optimizer.update_mask(self.model, samples, cross_entropy)
            self.mask_samples += len(chosen)

    # -- results -----------------------------------------------------------------------------

    @torch.no_grad()
    def accuracy(self) -> float:
        """Per cent of the test images classified correctly."""
        self.model.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.data.mean.device)
        for x, labels in self.data.test_batches(_EVAL_BATCH):
            right += (self.model(x).argmax(1) == labels).sum()
        self.model.train()
        return 100.0 * int(right) / len(self.data.test)

    @torch.no_grad()
    def sparsity(self) -> float:
        """Per cent of the convolution and linear weights that are exactly zero."""
        weights = [layer.weight for layer in self.flops.layers]
        zeros = sum(int((w == 0).sum()) for w in weights)
        return 100.0 * zeros / sum(w.numel() for w in weights)

    def flops_percent(self) -> float:
        """Training FLOPs in per cent of dense SGD on the same samples, mask passes included."""
        report = self.flops.report()
        # a mask sample costs what a training sample does: forward, input and weight gradients
        mask = 3.0 * self.flops.dense_forward * self.mask_samples
        return report["theoretical_percent"] + 100.0 * mask / report["dense_flops"]

    def ms_per_step(self) -> float:
        """Median milliseconds of optimizer work per step, over whole coarse-fine cycles."""
        cycle = int(self.recipe.all_options().get("coarse_steps", 0)) + 1
        kept = self.seconds[_WARM_UP:] if len(self.seconds) >= _WARM_UP + cycle else self.seconds
        cycle = min(cycle, len(kept))
        means = [
            statistics.fmean(kept[i : i + cycle]) for i in range(0, len(kept) - cycle + 1, cycle)
        ]
        return 1e3 * statistics.median(means)


@torch.no_grad()
def largest_difference(a: nn.Module, b: nn.Module) -> float:
    """Largest absolute difference between two models' parameters; NaN if any is."""
    gaps = [(p - q).abs().max() for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    return float(torch.stack(gaps).max())
