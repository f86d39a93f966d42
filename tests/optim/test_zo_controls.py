"""ZO-SAM's controls, and the cosine of its estimate with the gradient."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
import torch
from demo_cases import few_digits, new_run
from sparse_optim.demo import data, runner, zo_controls, zo_cosine
from torch import Tensor, nn

from sparse_kernels import derive_key, zo_combine_


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits(128)


# -- controls ------------------------------------------------------------------------------------


def refuse() -> Tensor:
    raise AssertionError("a forward")


def moves(sign: str, model: nn.Module, closure, steps: int, **options) -> list[Tensor]:
    """e of some probes at the same weights, flat."""
    optimizer = zo_controls.SIGNS[sign](
        model.parameters(), torch.optim.SGD, rho=0.3, seed=11, lr=0.1, **options
    )
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    found = []
    for _ in range(steps):
        optimizer.probe(closure)
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before)
        optimizer.restore()
    return found


@pytest.mark.parametrize("count", [1, 3, 70])
def test_random_sign_is_a_counter_based_draw_without_forwards(count):
    model = nn.Linear(7, 5)
    found = moves("random", model, refuse, 40, num_directions=count)
    params = list(model.parameters())
    signs = []
    for t, e in enumerate(found):
        total = torch.zeros(40)
        for i in range(count):
            word = derive_key(11, t, zo_controls.SIGN_STREAM + i // 64)
            sign = -1.0 if word >> (i % 64) & 1 else 1.0
            z = [torch.zeros_like(p) for p in params]
            zo_combine_(z, [1.0], seed=derive_key(11, t), directions=[i])
            total += sign * torch.cat([part.reshape(-1) for part in z])
            signs.append(sign)
        torch.testing.assert_close(e, 0.3 * total / total.norm(), rtol=1e-4, atol=1e-6)
    # fair and independent: 4 deviations of a sum of signs, and of neighbours' products
    n = len(signs)
    assert abs(sum(signs)) <= 4 * math.sqrt(n)
    assert abs(sum(a * b for a, b in itertools.pairwise(signs))) <= 4 * math.sqrt(n)


def test_controls_take_zosams_direction_with_another_sign():
    torch.manual_seed(3)
    model, x = nn.Linear(6, 4), torch.randn(8, 6)

    def loss() -> Tensor:
        return model(x).square().mean()

    up, down, random = (moves(sign, model, loss, 20) for sign in ("uphill", "downhill", "random"))
    agree = 0
    for u, d, r in zip(up, down, random, strict=True):
        torch.testing.assert_close(d, -u, rtol=0.0, atol=1e-6)
        same = bool((r @ u) > 0)
        torch.testing.assert_close(r, u if same else -u, rtol=1e-4, atol=1e-6)
        agree += same
    assert 0 < agree < 20


@pytest.mark.parametrize(("sign", "forwards"), [("uphill", 3), ("downhill", 3), ("random", 1)])
def test_forwards_of_a_step(sign, forwards, digits):
    run = new_run(digits, "zosam", sparse_method="snip", weight_sparsity=0.8, sign=sign)
    calls = []
    run.model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    images, labels = digits.train.images[:16], digits.train.labels[:16]
    run.step(images, labels)
    assert calls == [False] * (forwards - 1) + [True]
    assert run.optimizer.last_step_probes == forwards - 1
    zeros = run.sparse.scheduler.mask.to_bool()
    for weight, exists in zip(run.sparse.scheduler.weights.values(), zeros, strict=True):
        assert not weight[~exists].any()


def test_sign_changes_the_training(digits):
    accuracy = {}
    for sign in zo_controls.SIGNS:
        run = new_run(digits, "zosam", sign=sign, rho=0.5)
        list(runner.train(run, 1, 32, 0))
        accuracy[sign] = [p.detach().clone() for p in run.model.parameters()]
    for first, second in (("uphill", "downhill"), ("uphill", "random"), ("downhill", "random")):
        assert not torch.equal(accuracy[first][0], accuracy[second][0])


# -- cosines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_theory_of_the_cosine(count):
    """Against explicit normal directions, with the share q / d that the formula leaves out."""
    size, draws = 4000, 500
    generator = torch.Generator().manual_seed(count)
    cosines = []
    for _ in range(draws):
        z = torch.randn(size, count, generator=generator, dtype=torch.float64)
        estimate = z @ z[0]  # the gradient is the first unit vector
        cosines.append(float(estimate[0] / estimate.norm()))
    error = np.std(cosines, ddof=1) / math.sqrt(draws)
    theory = zo_cosine.expected_cosine(count, size)
    assert np.mean(cosines) == pytest.approx(theory, abs=4 * error + theory * (count + 1) / size)
    assert error < 0.05 * theory
    if count == 16:
        assert zo_cosine.large_q_cosine(count, size) == pytest.approx(theory, rel=0.03)
    if count == 1:
        assert theory == pytest.approx(math.sqrt(2.0 / (math.pi * size)))


def linear_loss(size: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(size, 1, bias=True).double()
    return model, torch.randn(1, size, dtype=torch.float64)


@pytest.mark.parametrize("distribution", zo_cosine.DISTRIBUTIONS)
@pytest.mark.parametrize("count", [1, 4])
def test_measured_cosine(count, distribution):
    """A linear loss: every sign is right if the directions are those of the probe."""
    model, x = linear_loss(2000)
    before = [p.detach().clone() for p in model.parameters()]
    row = zo_cosine.measure(
        model, lambda: model(x).sum(), "start", count, distribution, 200, "auto"
    )
    assert (row.agreement, row.ties) == (1.0, 0.0)
    assert row.active == 2001
    assert row.gradient_norm == pytest.approx(math.sqrt(float(x.square().sum()) + 1.0))
    theory = zo_cosine.expected_cosine(count, row.active)
    assert row.cosine == pytest.approx(theory, abs=4 * row.error + theory * 0.003)
    assert row.error < 0.1 * theory
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_ties_are_no_agreement():
    model, x = linear_loss(50)
    row = zo_cosine.measure(model, lambda: 0.0 * model(x).sum(), "start", 2, "normal", 3, "auto")
    assert (row.agreement, row.ties, row.cosine) == (None, 1.0, 0.0)


def test_examples():
    assert doctest.testmod(zo_cosine).failed == 0
