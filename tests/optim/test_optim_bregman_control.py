"""Controllers of sparsity and sparse starts (bregman.md sections 4, 5; N4, N5, N9, N13, M15)."""

import copy
import math
import pickle

import pytest
import torch
from optim_cases import assert_same_bits, birth, run, through_disk, zero_param
from regularizer_cases import group_sums, weight
from sparse_optim import (
    AdaBreg,
    CubicRamp,
    FeedbackLambda,
    LinBreg,
    ProxSGD,
    QuantileLambda,
    sparse_init_,
)
from torch import nn

F64 = torch.float64


# -- N4 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ptype", [torch.float32, F64])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 3.0), (0.7, 1.3)])
@pytest.mark.parametrize("reg", ["l1", "l1_pos"])
def test_n4_exactly_k_entries_live(backend, ptype, scales, reg):
    """K = 1,234 of 10,007, in every full step; also with a tensor that has no gradient."""
    params = [nn.Parameter(torch.zeros(n, dtype=ptype)) for n in (7000, 3007)]
    groups = [{"params": [p], "lam_scale": s} for p, s in zip(params, scales, strict=True)]
    opt = LinBreg(groups, lr=0.5, reg=reg, lam=0.1, coarse_steps=2, phase_offset=2, backend=backend)
    QuantileLambda(opt, 1 - 1234 / 10_007)
    for step in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, dtype=ptype)
        if step == 3:
            params[1].grad = None
        opt.step()
        if opt.last_was_coarse:
            continue
        assert sum(int(p.count_nonzero()) for p in params) == 1234
        assert sum(int(n) for n in opt.live_counts()) == 1234
        for g, p in zip(opt.param_groups, params, strict=True):
            v, lam = opt.state[p]["dual"], g["lam"] * g["lam_scale"]
            assert torch.equal(p != 0, (v.abs() if reg == "l1" else v) > lam)
    assert len({g["lam"] for g in opt.param_groups}) == 1


def test_n4_weights_without_a_gradient_follow_lam_too(backend):
    a, b = nn.Parameter(torch.zeros(100)), nn.Parameter(torch.zeros(100))
    opt = LinBreg([a, b], lr=1.0, reg="l1", lam=0.1, backend=backend)
    QuantileLambda(opt, 0.8)
    a.grad, b.grad = torch.randn(100), torch.randn(100)
    opt.step()
    a.grad, b.grad = 3 * torch.randn(100), None
    before = b.detach().clone()
    opt.step()
    assert int(a.count_nonzero()) + int(b.count_nonzero()) == 40
    assert not torch.equal(b.detach(), before)


def test_n4_ties_at_lam_die(backend):
    p = nn.Parameter(torch.zeros(10))
    opt = LinBreg([p], lr=1.0, reg="l1", lam=0.1, backend=backend)
    control = QuantileLambda(opt, 0.5)
    p.grad = torch.tensor([3.0, 3.0, -2.0, 2.0, 2.0, -2.0, 2.0, 1.0, 1.0, 0.0])
    opt.step()
    assert control.lam == 2.0
    assert p.tolist() == [-1.0, -1.0] + [0.0] * 8


@pytest.mark.parametrize("case", ["rows", "kernels", "filters", "blocks"])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_n4_groups_are_ranked_by_their_own_thresholds(backend, case, scale):
    p = weight(case)
    with torch.no_grad():
        p.zero_()
    layout = {"groups": case, "block": (3, 4)}
    opt = LinBreg([p], lr=1.0, reg="l1_l2", lam=0.1, lam_scale=scale, backend=backend, **layout)
    QuantileLambda(opt, 0.6)
    keep = math.floor(0.4 * p.numel() + 0.5)
    for _ in range(3):
        p.grad = torch.randn(p.shape)
        opt.step()
        v = opt.state[p]["dual"].double()
        sizes = group_sums(case, torch.ones_like(v))
        score = (group_sums(case, v.square()) / sizes).sqrt()
        levels = score.unique().flip(0).tolist()
        counts = [int((score >= s).sum()) for s in levels]
        best = max([n for n in counts if n <= keep], default=0)
        assert int(p.count_nonzero()) == best
        assert best > keep - int(sizes.max())


def test_quantile_follows_a_ramp_and_is_saved_copied_and_removed():
    p = nn.Parameter(torch.zeros(1000))
    opt = LinBreg([p], lr=1.0, reg="l1", lam=0.1)
    control = QuantileLambda(opt, 0.5, every=2, target_ramp=CubicRamp(0.9, 0.1, 0, 10))
    for t in range(1, 6):
        p.grad = torch.randn(1000)
        lam = control.lam
        opt.step()
        if t % 2:
            assert opt.sparsity() == pytest.approx(0.1 + 0.8 * (1 - t / 10) ** 3, abs=1e-3)
        else:
            assert control.lam == lam
    for opt2, control2 in (
        copy.deepcopy((opt, control)),
        pickle.loads(pickle.dumps((opt, control))),
    ):
        (q,) = opt2.param_groups[0]["params"]
        q.grad = torch.randn(1000)
        opt2.step()
        assert control2.full_steps == 6
    other = QuantileLambda(LinBreg([nn.Parameter(torch.zeros(3))], reg="l1", lam=0.1), 0.1)
    other.load_state_dict(through_disk(control.state_dict()))
    assert (other.target, other.every, other.full_steps) == (0.5, 2, 5)
    with pytest.raises(ValueError, match="already"):
        QuantileLambda(opt, 0.3)
    control.remove()
    lam = control.lam
    p.grad = torch.randn(1000)
    opt.step()
    assert control.lam == lam


# -- N13 -------------------------------------------------------------------------------------


def teacher_student(cls, lr, lam, transfer, steps=1500, every=10, target=0.8, start=0.05):
    """Two layers, a sparse teacher; sparsity at the end and lam every ``every`` steps."""
    generator = torch.Generator().manual_seed(0)

    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8))

    teacher, student = net(1), net(2)
    sparse_init_(teacher, 0.2, generator=generator)
    sparse_init_(student, start, generator=generator)
    weights = [student[0].weight, student[2].weight]
    biases = [student[0].bias, student[2].bias]
    opt = cls([{"params": weights, "reg": "l1", "lam": lam}, {"params": biases}], lr=lr)
    control = FeedbackLambda(opt, target, every=every, transfer=transfer)
    lams = []
    for _ in range(steps):
        x = torch.randn(32, 24, generator=generator)
        opt.zero_grad()
        nn.functional.mse_loss(student(x), teacher(x).detach()).backward()
        opt.step()
        control.step()
        lams.append(control.lam)
    return opt.sparsity(), lams


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "lr", "lams"), [
    (LinBreg, 0.1, (0.01, 0.1, 1.0)), (AdaBreg, 1e-2, (0.02, 0.1, 0.5)),
])  # fmt: skip
@pytest.mark.parametrize("transfer", ["keep", "auto"])
def test_n13_feedback_ends_at_the_target_from_any_lam(cls, lr, lams, transfer):
    for lam in lams:
        sparsity, _ = teacher_student(cls, lr, lam, transfer)
        assert abs(sparsity - 0.8) <= 0.02


@pytest.mark.slow
def test_n13_rescale_winds_up():
    """From a dense start lam has no hold on live weights: it grows and the target is far."""
    with pytest.warns(UserWarning, match="winds up"):
        sparsity, lams = teacher_student(LinBreg, 0.1, 0.1, "rescale", start=1.0)
    assert sparsity < 0.6
    assert lams[-1] == 1e3  # at its clamp


def test_feedback_by_hand():
    """Factors, crossings, bounds; skipped and coarse steps do not count; saved and loaded."""
    p = nn.Parameter(torch.zeros(10))
    opt = LinBreg([p], lr=1.0, reg="l1", lam=0.5, coarse_steps=1, phase_offset=1)
    control = FeedbackLambda(opt, 0.5, every=1, gain=0.5, gain_decay=0.5, max_lam=0.6)
    control.step()
    assert control.lam == 0.5  # no step was taken
    p.grad = -torch.arange(10.0)
    opt.step()  # 9 live: sparsity 0.1, gap 0.4
    control.step()
    assert control.lam == opt.param_groups[0]["lam"] == pytest.approx(0.6)
    control.step()  # a loss scaler skipped the step
    assert control.lam == 0.6
    p.grad = torch.arange(10.0) * 0.9
    opt.step()
    control.step()
    assert control.full_steps == 1
    p.grad = torch.arange(10.0) * 0.0  # full: v = 0.1 k: live k > 6
    with torch.no_grad():
        opt.state[p]["dual"].copy_(torch.arange(10.0) * 0.1 + 0.01)
    opt.step()  # live 6, 7, 8, 9: sparsity 0.6, gap -0.1, crossing 1
    control.step()
    assert control.crossings == 1
    assert control.lam == pytest.approx(0.6 / (1 + 0.5 * 0.1))
    other = FeedbackLambda(LinBreg([zero_param()], reg="l1", lam=0.5), 0.1)
    other.load_state_dict(through_disk(control.state_dict()))
    assert other.state_dict() == control.state_dict()
    with pytest.raises(ValueError, match="crossings"):
        other.load_state_dict({k: v for k, v in control.state_dict().items() if k != "crossings"})
    prox = FeedbackLambda(ProxSGD([nn.Parameter(torch.ones(4))], lr=0.1, reg="l1", lam=0.5), 0.9)
    prox.opt.param_groups[0]["params"][0].grad = torch.ones(4)
    prox.every = 1
    prox.opt.step()
    prox.step()
    assert prox.opt.param_groups[0]["lam"] == prox.lam > 0.5


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 1.5, float("nan")])
def test_targets_outside_0_1(wrong):
    opt = LinBreg([zero_param()], reg="l1", lam=0.5)
    for control in (FeedbackLambda, QuantileLambda):
        with pytest.raises(ValueError, match="target"):
            control(opt, wrong)
    assert opt._readout_hook is None
    control = QuantileLambda(opt, 0.5, target_ramp=lambda t: wrong)
    with pytest.raises(ValueError, match="target_ramp"):
        control._choose()


@pytest.mark.parametrize("options", [
    {"reg": "nuclear"}, {"reg": "sparse_group", "groups": "rows"}, {"reg": "l1", "fine_scale": 2.0},
    {"reg": "none"},
])  # fmt: skip
def test_what_quantile_refuses(options):
    opt = LinBreg([nn.Parameter(torch.ones(3, 4))], lam=0.5, **options)
    with pytest.raises(ValueError, match=r"QuantileLambda|nothing to control"):
        QuantileLambda(opt, 0.5)
    assert opt._readout_hook is None


# -- N5, N9, M15 -----------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.01, 0.1])
def test_n5_a_sparse_start_keeps_the_variance_of_a_dense_one(density):
    generator = torch.Generator().manual_seed(8)
    layer = nn.Linear(2000, 1000)
    found = sparse_init_(layer, density, generator=generator)
    assert found == {"weight": density}
    assert int(layer.weight.count_nonzero()) == density * 2_000_000
    x = torch.randn(256, 2000, generator=generator)
    variance = (x @ layer.weight.detach().t()).var()
    assert float(variance) == pytest.approx(2.0, rel=0.05)  # 2 / fan_in, fan_in entries


@pytest.mark.parametrize(("share", "steps", "born"), [
    (1.1, 2500, 2397), pytest.param(0.9, 100_000, None, marks=pytest.mark.slow),
])  # fmt: skip
def test_n9_the_leak_sets_a_floor_under_gradients(share, steps, born):
    """Below gamma lam / lr no birth, ever."""
    gamma, lr, lam = 1e-3, 0.1, 0.5
    p = zero_param()
    opt = LinBreg([p], lr=lr, reg="l1", lam=lam, dual_leak=gamma)
    g = share * gamma * lam / lr
    assert birth(run(opt, p, lambda w: torch.full_like(w, -g), steps)) == born
    if born is None:
        assert float(opt.state[p]["dual"]) == pytest.approx(share * lam, rel=1e-9)


def test_n9_live_entries_do_not_leak(backend):
    p = nn.Parameter(torch.tensor([1.0, 0.0], dtype=F64))
    opt = LinBreg([p], lr=0.1, reg="l1", lam=0.5, dual_leak=0.1, backend=backend)
    opt.init_dual()
    opt.state[p]["dual"][1] = 0.4
    p.grad = torch.zeros(2, dtype=F64)
    opt.step()
    torch.testing.assert_close(opt.state[p]["dual"], torch.tensor([1.5, 0.36], dtype=F64))


def test_m15_fine_scale_restores_the_clock_and_caps_what_is_born(backend):
    a, b, lam, tau = 1.0, 2.0, 0.5, 0.9
    p = zero_param()
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, coarse_steps=9, fine_scale=10.0, backend=backend)
    values = run(opt, p, lambda w: a * (w - b), 200)
    assert birth(values) == 10
    assert float(values[9]) == pytest.approx(tau * b)  # lr |d|, not fine_scale lr |d| - lam
    assert 10 * tau * b - lam == pytest.approx(17.5)  # what it would be without the cap
    assert float(values.max()) <= 2.0
    assert float(values[-1]) == pytest.approx(b, abs=1e-9)
    assert_same_bits(values[9:10].clamp(max=2.0), values[9:10])
