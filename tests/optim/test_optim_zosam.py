"""ZO-SAM: estimator, ascent, losses that fail, restore (zero-order.md section 8)."""

import math

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    directions,
)
from sparse_optim import ZOSAM, MeZO
from torch import nn
from torch.optim import SGD

DISTRIBUTIONS = ["normal", "rademacher"]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_property_1_coefficients_of_a_linear_loss(backend, distribution, smoothing):
    a = torch.randn(40, dtype=torch.float64)
    p = nn.Parameter(torch.randn(40, dtype=torch.float64))
    mask = torch.rand(40) < 0.6
    opt = ZOSAM([p], SGD, 0.3, 3, smoothing, distribution, 11, weight_mask=[mask], lr=0.1,
                backend=backend)  # fmt: skip
    opt.probe(lambda: a @ p)
    z = directions(opt.last_probe, 0, 40, 3, distribution) * mask
    delta = smoothing or 0.3 / math.sqrt(int(mask.sum()))
    assert opt.last_probe.smoothing == pytest.approx(delta)
    torch.testing.assert_close(opt.last_probe.coef, z @ a, rtol=1e-6, atol=1e-7)


def test_property_1_quadratic_has_no_bias_and_cubic_is_second_order():
    p = nn.Parameter(torch.full((6,), 0.7, dtype=torch.float64))

    def coef(loss, delta):
        opt = ZOSAM([p], SGD, 0.1, 1, delta, seed=5, lr=0.1, backend="reference")
        opt.probe(loss)
        z = directions(opt.last_probe, 0, 6, 1)[0]
        opt.restore()
        return float(opt.last_probe.coef[0]), z

    for delta in (1e-2, 0.5):
        c, z = coef(lambda: p.square().sum(), delta)
        assert c == pytest.approx(float(2 * 0.7 * z.sum()), rel=1e-9)
    errors = []
    for delta in (0.1, 0.2):
        c, z = coef(lambda: p.pow(3).sum(), delta)
        errors.append(c - float(3 * 0.49 * z.sum()))
    assert errors[1] / errors[0] == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_property_1_the_estimate_is_unbiased(distribution):
    """10^4 directions: the mean within 4 standard errors of a, E||g||^2 likewise."""
    d, q, steps = 8, 25, 400
    a = torch.linspace(-1, 1, d, dtype=torch.float64)
    p = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    opt = MeZO([p], lr=1.0, num_directions=q, smoothing=0.1, distribution=distribution, seed=3)
    estimates = []
    for _ in range(steps):
        with torch.no_grad():
            p.zero_()
        opt.step(lambda: a @ p)
        estimates.append(-p.detach().clone())
    g = torch.stack(estimates)
    spread = g.std(0) / math.sqrt(steps)
    assert ((g.mean(0) - a).abs() < 4 * spread).all()
    squares = g.square().sum(1)
    offset = 1 if distribution == "normal" else -1
    expected = (d + q + offset) / q * float(a.square().sum())
    assert abs(float(squares.mean()) - expected) < 4 * float(squares.std()) / math.sqrt(steps)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("m", [1, 3])
def test_property_3_the_ascent_depends_on_signs_and_ratios_only(backend, m, distribution):
    a = torch.randn(50)
    seen = {}
    for k in (1.0, 4.0, -1.0):
        p = nn.Parameter(torch.zeros(50))  # w+ is then e itself
        opt = ZOSAM([p], SGD, 0.3, m, 0.01, distribution, 7, lr=0.1, backend=backend)
        opt.probe(lambda k=k, p=p: k * (a @ p))
        seen[k] = p.detach().clone()
    assert_same_bits(seen[1.0], seen[4.0])
    assert torch.equal(seen[-1.0], -seen[1.0])
    assert float(seen[1.0].norm()) == pytest.approx(0.3, rel=1e-5)
    if m == 1:
        z = directions(opt.last_probe, 0, 50, 1, distribution)[0]
        sign = torch.sign(a.double() @ z)
        expected = 0.3 * sign * z / z.norm()
        torch.testing.assert_close(seen[1.0].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("smoothing", [None, 1e-3])
def test_property_4_length(backend, m, distribution, smoothing):
    params = [nn.Parameter(torch.zeros(300, 7)), nn.Parameter(torch.zeros(13))]
    params.append(nn.Parameter(torch.zeros(11, dtype=torch.float64)))  # a second dtype
    targets = [torch.randn(p.shape, dtype=p.dtype) for p in params]
    masks = [torch.rand(300, 7) < 0.5, None, torch.arange(11) < 6]
    opt = ZOSAM(params, SGD, 0.7, m, smoothing, distribution, 1, weight_mask=masks, lr=0.1,
                backend=backend)  # fmt: skip
    assert opt.num_active == int(masks[0].sum()) + 13 + 6

    def loss():
        return sum((p * t).sum().double() for p, t in zip(params, targets, strict=True))

    opt.probe(loss)
    e = torch.cat([p.detach().double().reshape(-1) for p in params])
    torch.testing.assert_close(float(e.norm()), 0.7, rtol=1e-5, atol=0)
    assert not params[0].detach()[~masks[0]].any()


@pytest.mark.parametrize("m", [1, 4])
def test_property_4_cosine_with_the_gradient(m):
    d, trials = 400, 300
    a = torch.randn(d)
    p = nn.Parameter(torch.zeros(d))
    opt = ZOSAM([p], SGD, 1.0, m, 0.01, seed=2, lr=0.1)
    cosines = []
    for _ in range(trials):
        opt.probe(lambda: a @ p)
        cosines.append(float(a @ p.detach() / (a.norm() * p.detach().norm())))
    cosines = torch.tensor(cosines)
    expected = math.sqrt(2 / d) * math.gamma((m + 1) / 2) / math.gamma(m / 2)
    assert abs(float(cosines.mean()) - expected) < 4 * float(cosines.std()) / math.sqrt(trials)


@pytest.mark.parametrize("m", [1, 3])
def test_property_5_uphill_on_a_convex_quadratic(backend, m):
    q = torch.randn(12, 12, dtype=torch.float64)
    q = q @ q.T
    w = torch.randn(12, dtype=torch.float64)
    p = nn.Parameter(w.clone())

    def loss():
        return 0.5 * p @ q @ p

    start = float(loss().detach())
    opt = ZOSAM([p], SGD, 0.1, m, 1e-3, seed=9, lr=0.1, backend=backend)
    for _ in range(40):
        opt.probe(loss)
        assert float(loss().detach()) > start
    opt.restore()
    assert torch.equal(p.detach(), w)
    descent = MeZO([p], lr=1e-4, num_directions=m, seed=9, backend=backend)
    for _ in range(60):
        descent.step(loss)
    assert float(loss().detach()) < start


@pytest.mark.parametrize("values", [(1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf")),
                                    (float("-inf"), float("inf"))])  # fmt: skip
@pytest.mark.parametrize("m", [1, 2])
def test_property_6_ties_and_losses_that_are_not_finite(backend, values, m):
    start = torch.randn(30)
    p = nn.Parameter(start.clone())
    opt = ZOSAM([p], SGD, 0.5, m, seed=1, lr=0.1, backend=backend)
    script = iter(values + ((3.0, 2.0) if m == 2 else ()))
    opt.probe(lambda: next(script))
    tie = values[0] == values[1]
    assert (int(opt.ties), int(opt.nonfinite)) == (int(tie), int(not tie))
    assert float(opt.last_probe.coef[0]) == 0.0
    if m == 1:
        assert torch.equal(p.detach(), start)  # a plain base step
    else:
        z = directions(opt.last_probe, 0, 30, 2)[1]
        torch.testing.assert_close(
            (p.detach() - start).double(), 0.5 * z / z.norm(), rtol=0, atol=1e-6
        )
    p.grad = torch.ones(30)
    opt.step()
    assert_same_bits(p.detach(), start - 0.1 * torch.ones(30))
    script = iter(values + ((3.0, 2.0) if m == 2 else ()))
    before = p.detach().clone()
    mezo = MeZO([p], lr=0.1, num_directions=m, seed=1, backend=backend)
    mezo.step(lambda: next(script))
    assert torch.equal(p.detach(), before) == (m == 1)
    assert p.isfinite().all()


def test_huge_slopes_do_not_overflow(backend):
    p = nn.Parameter(torch.zeros(20))
    opt = ZOSAM([p], SGD, 0.5, 2, 1e-30, seed=1, lr=0.1, backend=backend)
    script = iter([3e38, -3e38, 1e38, 2e38])
    opt.probe(lambda: torch.tensor(next(script)))
    torch.testing.assert_close(float(p.detach().norm()), 0.5, rtol=1e-5, atol=0)
    opt.restore()
    mezo = MeZO([p], lr=1.0, smoothing=1e-30, seed=1, backend=backend)
    script = iter([3e38, -3e38])
    mezo.step(lambda: next(script))
    assert p.isfinite().all()
