"""What ZO-SAM's estimate is worth: its cosine with the gradient, measured and in theory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparse_kernels import derive_key, zo_combine_

from .. import ZOSAM
from .data import Dataset, epoch_batches
from .methods import Plan
from .runner import Run, train
from .study import SPARSE_LR, make_case, spread

DIRECTIONS = (1, 4, 16, 64, 256)
DISTRIBUTIONS = ("normal", "rademacher")
ALL_DIRECTIONS = 1024  # per line, shared out among its estimates
FEWEST_DRAWS = 8  # estimates per line at least
TRAINED_EPOCHS = 3
_SEED = 0


@dataclass(frozen=True)
class Quality:
    """Estimates with q directions at one point of the training, on one batch.

    Attributes:
        stage: how far the model is trained.
        distribution: of the directions.
        directions: q, per estimate.
        active: d, number of weights.
        loss, gradient_norm: at the weights.
        draws: number of estimates.
        cosine, error: of estimate and gradient, the mean and its standard error.
        agreement: share of the directions, ties apart, along which the difference of the losses has
            the sign of the slope g.z; None if all tied.
        ties: share of the directions whose two losses were equal.
    """

    stage: str
    distribution: str
    directions: int
    active: int
    loss: float
    gradient_norm: float
    draws: int
    cosine: float
    error: float
    agreement: float | None
    ties: float


def expected_cosine(directions: int, active: int) -> float:
    """Mean cosine of gradient and estimate for normal directions far fewer than weights.

    ``sqrt(2 / d) Gamma((q + 1) / 2) / Gamma(q / 2)``: the estimate is nearly as long as if the
    directions were orthogonal, so its cosine is the length of q normal numbers over sqrt(d).

    Args:
        directions: q.
        active: d, much larger than q.

    Example:
        >>> round(1.0 / expected_cosine(1, 186_000))
        541
    """
    q = directions
    return math.sqrt(2.0 / active) * math.exp(math.lgamma((q + 1) / 2) - math.lgamma(q / 2))


def large_q_cosine(directions: int, active: int) -> float:
    """The same for many directions, as many as weights or more included: sqrt(q / (d + q + 1))."""
    return math.sqrt(directions / (active + directions + 1))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).double()


def measure(
    model: nn.Module, closure: Callable[[], Tensor], stage: str, directions: int,
    distribution: str, draws: int, backend: str,
) -> Quality:  # fmt: skip
    """Draw estimates with ``ZOSAM`` and compare them with the gradient of the same loss.

    Args:
        model: in the mode and at the weights to measure at; only its ``.grad`` is changed.
        closure: the loss, with autograd if asked for.
        stage: for the table.
        directions: q, per estimate.
        distribution: "normal" or "rademacher".
        draws: number of estimates, at least 2.
        backend: as the optimizers take it.
    """
    params = list(model.parameters())
    model.zero_grad()
    loss = closure()
    loss.backward()
    gradient = _flat([p.grad for p in params if p.grad is not None])
    uids = list(range(len(params)))
    optimizer = ZOSAM(
        params, torch.optim.SGD, num_directions=directions, distribution=distribution, seed=_SEED,
        bn_modules=model, uids=uids, backend=backend, lr=SPARSE_LR,
    )  # fmt: skip
    before = _flat(params)
    cosines: list[float] = []
    same = tied = 0
    for t in range(draws):
        optimizer.probe(closure)
        ascent = _flat(params) - before
        optimizer.restore()
        length = float(ascent.norm())
        cosines.append(float(ascent @ gradient / gradient.norm()) / length if length else 0.0)
        assert optimizer.last_probe is not None
        slopes = torch.stack(
            [gradient @ z for z in _directions(params, uids, t, directions, distribution, backend)]
        )
        signs = optimizer.last_probe.coef.sign()
        same += int((signs * slopes.sign() > 0).sum())
        tied += int((signs == 0).sum())
    mean, deviation = spread(cosines)
    assert deviation is not None
    total = draws * directions
    return Quality(
        stage, distribution, directions, optimizer.num_active, float(loss.detach()),
        float(gradient.norm()), draws, mean, deviation / math.sqrt(draws),
        same / (total - tied) if tied < total else None, tied / total,
    )  # fmt: skip


@torch.no_grad()
def _directions(
    params: Sequence[Tensor], uids: Sequence[int], step: int, count: int, distribution: str,
    backend: str,
) -> Iterator[Tensor]:  # fmt: skip
    """The directions of a probe, flat, drawn once more."""
    for i in range(count):
        z = [torch.zeros_like(p) for p in params]
        zo_combine_(
            z, [1.0], seed=derive_key(_SEED, step), directions=[i], uids=uids,
            distribution=distribution, backend=backend,
        )  # fmt: skip
        yield _flat(z)


def measure_all(
    plan: Plan, data: Dataset, backend: str, directions: Sequence[int],
    on_row: Callable[[], None] = lambda: None,
) -> Iterator[Quality]:  # fmt: skip
    """Both distributions and every q, at the start and after a few epochs of dense SGD.

    The loss is that of one training batch, as in a step of ZO-SAM with its default radius and
    smoothing.

    Args:
        plan: model and batch size.
        data: on the device to train on.
        backend: as the optimizers take it.
        directions: the q.
        on_row: called after every line.
    """
    for epochs, stage in ((0, "initialisation"), (TRAINED_EPOCHS, f"{TRAINED_EPOCHS} epochs")):
        batches = epoch_batches(data.train, plan.batch_size, torch.Generator().manual_seed(_SEED))
        images, labels = next(batches)
        x = data.inputs(images)
        steps = max(1, epochs * (1 + sum(1 for _ in batches)))
        recipe = make_case("SGD", "sgd", SPARSE_LR, {}).recipe
        run = Run(plan.model, data, recipe, backend, _SEED, steps)
        for _ in train(run, epochs, plan.batch_size, _SEED):
            pass

        def closure(model: nn.Module = run.model, x: Tensor = x, y: Tensor = labels) -> Tensor:
            return cross_entropy(model(x), y)

        for distribution in DISTRIBUTIONS:
            for q in directions:
                draws = max(FEWEST_DRAWS, ALL_DIRECTIONS // q)
                yield measure(run.model, closure, stage, q, distribution, draws, backend)
                on_row()
