"""The multilevel cycle and LinBreg/AdaBreg in a training program (bregman.md section 12)."""

import math

import pytest
import torch
from optim_cases import (
    assert_same_params,
    batch,
    cross_entropy,
    mlp,
    sparse_model,
    train_plain,
)
from sparse_optim import AdaBreg, LinBreg, bregman_param_groups
from torch import nn

F64 = torch.float64
LIN = [(LinBreg, {"lr": 0.1}), (LinBreg, {"lr": 0.1, "momentum": 0.9, "nesterov": True})]
ALL = [*LIN, (AdaBreg, {"lr": 0.02})]


@pytest.mark.parametrize(("cls", "options"), ALL)
def test_m1_m2_bitwise_until_a_refresh_finds_a_zero(backend, cls, options):
    """Dense start, tiny lam: coordinates may cross zero inside phases, none is 0 at a refresh."""
    models = []
    for m in (0, 1, 4):
        model = mlp()
        groups = bregman_param_groups(model, lam=1e-7)
        opt = cls(groups, coarse_steps=m, backend=backend, **options)
        train_plain(model, opt, 15)
        assert all("count" not in s for s in opt.state.values())
        assert ("active" in opt.state[model[0].weight]) == (m > 0)
        models.append(model)
    assert_same_params(models[0], models[1])
    assert_same_params(models[0], models[2])
    assert (models[0][0].weight != mlp()[0].weight).all()


@pytest.mark.parametrize(("cls", "options"), ALL)
def test_m3_frozen_entries_keep_every_bit_whatever_their_gradient(backend, cls, options):
    model = sparse_model()
    lam = 0.2
    opt = cls(bregman_param_groups(model, lam=lam), coarse_steps=4, phase_offset=4,
              backend=backend, **options)  # fmt: skip
    train_plain(model, opt, 6)  # one full step, four coarse, one full
    assert opt.next_is_coarse
    x, y = batch()
    frozen = {}
    for step in range(4):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        before = {}
        for p in opt.param_groups[0]["params"]:
            off = opt.state[p]["dual"].abs() <= lam if step == 0 else frozen[p]
            before[p] = (off, {k: v.clone() for k, v in opt.state[p].items()
                               if isinstance(v, torch.Tensor) and v.shape == p.shape})  # fmt: skip
            p.grad[off] = torch.tensor(float("nan" if step % 2 else "inf"))
            assert off.any()
            assert not off.all()
        opt.step()
        for p, (off, tensors) in before.items():
            frozen[p] = off
            assert not p.detach()[off].any()
            for k, v in tensors.items():
                assert torch.equal(opt.state[p][k][off], v[off]), k
                assert not torch.equal(opt.state[p][k][~off], v[~off]), k
            assert p.isfinite().all()
    assert not opt.next_is_coarse


@pytest.mark.parametrize("offset", [0, 3, 9])
def test_m4_one_full_step_per_cycle(offset):
    p = nn.Parameter(torch.zeros(3))
    opt = LinBreg([p], lr=0.1, reg="l1", lam=0.5, coarse_steps=9, phase_offset=offset)
    full = 0
    for n in range(1, 601):
        p.grad = torch.zeros(3)
        coarse = opt.next_is_coarse
        opt.step()
        assert opt.last_was_coarse == coarse
        full += not coarse
        assert full == (n + offset) // 10
    assert opt.steps_taken == 600


@pytest.mark.parametrize(
    ("a", "b", "lam", "tau", "k"), [(1, 2, 0.5, 0.0525, 5), (1, 1, 0.5, 0.0170, 30)]
)
@pytest.mark.parametrize("offset", [0, 4, 9])
def test_m5_births_cost_full_steps(backend, a, b, lam, tau, k, offset):
    assert math.floor(lam / (tau * a * abs(b))) + 1 == k
    p = nn.Parameter(torch.zeros(1, dtype=F64))
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, coarse_steps=9, phase_offset=offset,
                  backend=backend)  # fmt: skip
    values = []
    for _ in range(1200):
        p.grad = a * (p.detach() - b)
        opt.step()
        values.append(float(p.detach()))
    born = next(i for i, v in enumerate(values) if v != 0) + 1
    assert born == 10 * k - offset
    assert values[-1] == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize("m", [0, 4, 9])
def test_m6_least_squares_is_monotone_with_exact_support(m):
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(60, 40, generator=generator, dtype=F64)
    truth = torch.zeros(40, dtype=F64)
    chosen = torch.randperm(40, generator=generator)[:9]
    truth[chosen] = torch.randn(9, generator=generator, dtype=F64).sign() * 2
    b, lip = a @ truth, float(torch.linalg.matrix_norm(a, 2)) ** 2
    p = nn.Parameter(torch.zeros(40, dtype=F64))
    opt = LinBreg([p], lr=1.8 / lip, reg="l1", lam=20.0, coarse_steps=m)
    last, dense, steps = math.inf, 0, 0
    while last > 1e-12 and steps < 6000:
        residual = a @ p.detach() - b
        loss = 0.5 * float(residual.square().sum())
        assert loss <= last + 1e-12
        last = loss
        p.grad = a.T @ residual
        dense += not opt.next_is_coarse
        opt.step()
        steps += 1
    assert last <= 1e-12
    assert torch.equal(p.detach() != 0, truth != 0)
    assert dense < 200
    assert m == 0 or steps > 4 * dense * 0.9


@pytest.mark.parametrize(("cls", "options"), ALL)
def test_m7_from_zero_coarse_steps_move_nothing_regularised(backend, cls, options):
    model = mlp()
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.zero_()
    opt = cls(bregman_param_groups(model, lam=0.01), coarse_steps=5, backend=backend, **options)
    bias = model[2].bias.detach().clone()
    train_plain(model, opt, 5)
    for p in opt.param_groups[0]["params"]:
        assert not opt.state[p]["dual"].any()
        assert not p.detach().any()
    assert not torch.equal(model[2].bias.detach(), bias)  # plain parameters step in both phases


def test_m9_a_member_may_touch_zero_and_come_back_within_a_phase(backend):
    """The phase follows plain LinBreg on the active coordinates."""
    start = torch.tensor([0.3, 0.0, -0.4], dtype=F64)
    signs = [1.0] * 12 + [-1.0] * 12
    a, b = nn.Parameter(start.clone()), nn.Parameter(start[[0, 2]].clone())
    coarse = LinBreg([a], lr=0.05, reg="l1", lam=0.2, coarse_steps=24, backend=backend)
    plain = LinBreg([b], lr=0.05, reg="l1", lam=0.2, backend=backend)
    touched = False
    for s in signs:
        a.grad = torch.full((3,), s, dtype=F64)
        b.grad = torch.full((2,), s, dtype=F64)
        coarse.step()
        plain.step()
        assert torch.equal(a.detach()[[0, 2]], b.detach())
        assert float(a.detach()[1]) == 0.0
        touched |= float(a.detach()[0]) == 0.0
    assert touched
    assert float(a.detach()[0]) != 0.0


@pytest.mark.parametrize(("m", "time", "fine"), [
    (0, "coordinate", 501), (9, "coordinate", 501), (9, "global", 203), (99, "global", 122),
    (99, "coordinate", 501),
])  # fmt: skip
def test_m10_adabreg_time(m, time, fine):
    """A live coordinate keeps the tensor's clock running; the other one waits for full steps."""
    p = nn.Parameter(torch.zeros(1, dtype=F64))
    opt = AdaBreg([p], lr=1e-3, adam_time=time, reg="l1", lam=0.5, coarse_steps=m)
    full = 0
    for _ in range(510 * (m + 1)):
        p.grad = -torch.ones(1, dtype=F64)
        full += not opt.next_is_coarse
        opt.step()
        if float(p.detach()) != 0.0:
            break
    assert full == fine
