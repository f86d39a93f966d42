"""LinBreg and AdaBreg on problems with known answers (bregman.md section 12: T, N6, N11, N12)."""

import math

import pytest
import torch
from optim_cases import birth, run, zero_param
from sparse_optim import AdaBreg, LinBreg
from torch import nn

F64 = torch.float64


@pytest.mark.parametrize(("a", "b", "lam", "delta", "tau", "k"), [
    (1.0, 2.0, 0.5, 1.0, 0.1, 3), (2.0, -0.7, 0.3, 2.0, 0.05, 5), (0.5, 1.0, 1.0, 1.0, 0.3, 7),
])  # fmt: skip
def test_t1_birth_step_value_and_limit(backend, a, b, lam, delta, tau, k):
    p = zero_param()
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
    values = run(opt, p, lambda w: a * (w - b), 400).reshape(-1)
    assert birth(values) == k == math.floor(lam / (tau * a * abs(b))) + 1
    expected = delta * (k * tau * a * b - math.copysign(lam, b))
    assert float(values[k - 1]) == pytest.approx(expected, abs=1e-12)
    ratio = (values[k] - b) / (values[k - 1] - b)
    assert float(ratio) == pytest.approx(1 - delta * tau * a, abs=1e-9)
    assert float(values[-1]) == pytest.approx(b, abs=1e-9)
    dual = b / delta + math.copysign(lam, b)
    assert float(opt.state[p]["dual"]) == pytest.approx(dual, abs=1e-9)


def test_t1_at_unit_rate_the_step_after_birth_lands_on_the_target():
    p = zero_param()
    opt = LinBreg([p], lr=0.5, reg="l1", lam=0.7, delta=2.0)
    values = run(opt, p, lambda w: w - 0.3, 40).reshape(-1)
    assert float(values[birth(values)]) == pytest.approx(0.3, abs=1e-12)


def test_t2_births_are_ordered_and_the_limit_is_unbiased(backend):
    a = torch.tensor([1.0, 0.3, 2.0, 0.7], dtype=F64)
    b = torch.tensor([0.5, 2.0, 0.9, -1.0], dtype=F64)
    p = zero_param(4)
    opt = LinBreg([p], lr=0.1, reg="l1", lam=0.41, backend=backend)
    values = run(opt, p, lambda w: a * (w - b), 3000)
    births = [birth(values[:, i]) for i in range(4)]
    order = (a * b.abs()).argsort(descending=True).tolist()
    assert [births[i] for i in order] == sorted(births)
    assert births[order[0]] < births[order[-1]]
    torch.testing.assert_close(values[-1], b, rtol=0, atol=1e-9)


def test_t3_decay_acts_on_the_support_only(backend):
    p = nn.Parameter(torch.tensor([1.5, 0.0, -2.0], dtype=F64))
    opt = LinBreg([p], lr=0.1, weight_decay=0.5, reg="l1", lam=0.2, delta=0.8, backend=backend)
    opt.init_dual()
    opt.state[p]["dual"][1] = 0.15
    start = p.detach().clone()
    values = run(opt, p, torch.zeros_like, 12)
    factor = (1 - 0.8 * 0.1 * 0.5) ** 12
    torch.testing.assert_close(values[-1], factor * start, rtol=1e-12, atol=1e-12)
    assert float(opt.state[p]["dual"][1]) == 0.15


@pytest.mark.parametrize(("c", "step"), [(1.0, 500), (1e-3, 500), (1e-6, 505)])
def test_t3b_adabreg_births_ignore_the_size_of_the_gradient(backend, c, step):
    """lam = 0.4995: at 0.5 the last case stands exactly on the threshold after 505 steps."""
    p = zero_param()
    opt = AdaBreg([p], lr=1e-3, reg="l1", lam=0.4995, backend=backend)
    values = run(opt, p, lambda w: torch.full((1,), -c), 510)
    assert birth(values) == step == math.floor(0.4995 * (1 + 1e-8 / c) / 1e-3) + 1
    q = zero_param()
    linear = LinBreg([q], lr=1e-1, reg="l1", lam=0.503 * c, backend=backend)
    assert birth(run(linear, q, lambda w: torch.full((1,), -c), 20)) == 6


@pytest.mark.parametrize(("s", "limit"), [
    (0.25, (0.85, 0.30)), (0.5, (0.9, 0.2)), (1.0, (1.0, 0.0)), (2.0, (1.0, 0.0)),
])  # fmt: skip
def test_t4_basis_pursuit(backend, s, limit):
    row, target, delta = torch.tensor([2.0, 1.0], dtype=F64), 2.0, 1.0
    p = zero_param(2)
    opt = LinBreg([p], lr=0.3, reg="l1", lam=s / delta, delta=delta, backend=backend)
    values = run(opt, p, lambda w: row * (row @ w - target), 4000)
    torch.testing.assert_close(values[-1], torch.tensor(limit, dtype=F64), rtol=0, atol=1e-6)
    dual = opt.state[p]["dual"]
    assert float(dual[0] / dual[1]) == pytest.approx(2.0, abs=1e-9)


def least_squares(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=F64)


def test_t5_descent_and_rate(backend):
    a = least_squares(12, 20)
    truth = torch.zeros(20, dtype=F64)
    truth[[2, 7, 11]] = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    b, delta, lam = a @ truth, 0.8, 0.6
    lip = float(torch.linalg.matrix_norm(a, 2)) ** 2

    def loss(w):
        return 0.5 * float((a @ w - b).square().sum())

    p = zero_param(20)
    tau = 1.9 / (delta * lip)
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
    opt.init_dual()
    for _ in range(300):
        w, v = p.detach().clone(), opt.state[p]["dual"].clone()
        p.grad = a.T @ (a @ w - b)
        opt.step()
        step = p.detach() - w
        xi = (opt.state[p]["dual"] - p.detach() / delta) - (v - w / delta)
        gain = float(xi @ step) / tau + (1 / (delta * tau) - lip / 2) * float(step @ step)
        assert loss(p.detach()) + gain <= loss(w) + 1e-10

    def energy(w):
        return lam * float(w.abs().sum()) + float(w @ w) / (2 * delta)

    def distance(w, v):  # Bregman distance from the truth with subgradient v
        return energy(truth) - energy(w) - float(v @ (truth - w))

    p = zero_param(20)
    tau = 1.0 / (delta * lip)
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
    opt.init_dual()
    start = last = distance(p.detach(), opt.state[p]["dual"])
    for k in range(1, 2001 if backend == "auto" else 301):
        p.grad = a.T @ (a @ p.detach() - b)
        opt.step()
        now = distance(p.detach(), opt.state[p]["dual"])
        assert now <= last + 1e-10
        assert loss(p.detach()) <= start / (k * tau) + 1e-10
        last = now


@pytest.mark.parametrize(("form", "c", "step"), [
    ("sgd", 1.0, 12), ("sgd", 0.3, 26), ("ema", 1.0, 60), ("ema", 0.3, 177),
])  # fmt: skip
def test_n11_momentum_birth_clock(backend, form, c, step):
    p = zero_param()
    opt = LinBreg([p], lr=0.01, momentum=0.9, momentum_form=form, reg="l1", lam=0.503,
                  backend=backend)  # fmt: skip
    assert birth(run(opt, p, lambda w: torch.full((1,), -c), 200)) == step


@pytest.mark.parametrize("ptype", [torch.bfloat16, torch.float16])
def test_n6_16_bit_weights_with_fp32_duals(backend, ptype):
    for a, b, lam, delta, tau, k in ((1, 2, 0.5, 1, 0.1, 3), (2, -0.75, 0.3, 2, 0.05, 5)):
        p = nn.Parameter(torch.zeros(1, dtype=ptype))
        opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
        assert birth(run(opt, p, lambda w, a=a, b=b: a * (w - b), 10)) == k
        assert opt.state[p]["dual"].dtype == torch.float32
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    opt = LinBreg([p], lr=1.03e-3, reg="l1", lam=0.6, backend=backend)
    assert birth(run(opt, p, lambda w: torch.full((1,), -1.0), 600)) == 583
    dual = torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(2000):
        dual += 1.03e-3
    assert float(dual) == 0.5  # what a 16-bit dual would have done


def test_n6_unregularised_16_bit_weights_have_a_master(backend):
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    opt = LinBreg([p], lr=1e-3, backend=backend)
    run(opt, p, lambda w: torch.ones(1), 500)
    assert float(p.detach()) == pytest.approx(0.5, abs=2e-3)  # plain bf16 would stay at 1
    assert opt.state[p]["dual"].dtype == torch.float32


def test_n12_the_support_is_decided_by_the_dual(backend):
    """theta = 1e-8 rounds to 0 in fp16, yet its entry is live and joins the active set."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    opt = LinBreg([p], lr=0.0, reg="l1", lam=0.01, coarse_steps=2, phase_offset=2, backend=backend)
    opt.init_dual()
    opt.state[p]["dual"][0] = 0.01 + 1e-8
    for phase in ("full", "coarse"):
        p.grad = torch.zeros_like(p)
        opt.step()
        assert not p.detach().any(), phase
        assert int(opt.live_counts()[0]) == 1
    assert int(opt.active_counts()[0]) == 1
