"""Group regularisers, l1_pos and the nuclear norm: invariants in both phases (bregman.md 12)."""

import pytest
import torch
from optim_cases import assert_same_bits, shrink
from regularizer_cases import (
    ENTRIES,
    GROUPED,
    OPTIMIZERS,
    REGS,
    drive,
    group_sums,
    threshold,
    weight,
)
from sparse_optim import LinBreg
from torch import nn

F64 = torch.float64


def check_groups(case, v, theta, lam, delta):
    """P3 with the l1 part taken off first; every group dead or exactly at its threshold."""
    lam_entries, lam_groups = threshold(case, lam)
    s = shrink(v, lam_entries)
    norms, sizes = group_sums(case, s.square()).sqrt(), group_sums(case, torch.ones_like(s))
    bound = lam_groups * sizes.sqrt()
    dead = norms <= bound
    sure = (norms - bound).abs() > 1e-12 * bound
    assert torch.equal(group_sums(case, theta.abs())[sure] == 0, dead[sure])
    alive = sure & ~dead
    length = group_sums(case, theta.square()).sqrt()
    expected = bound * theta / torch.where(alive, length, 1.0)
    torch.testing.assert_close((s - theta / delta)[alive], expected[alive], rtol=1e-10, atol=1e-12)
    return bool(dead.any()), bool(alive.any())


@pytest.mark.parametrize("case", REGS)
@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
def test_p1_p2_p3_in_every_step_of_both_phases(backend, case, cls, options):
    lam, delta = 0.3, 0.7
    p = weight(case, F64)
    opt = cls([p], reg=REGS[case]["reg"], lam=lam, delta=delta, coarse_steps=3, phase_offset=3,
              backend=backend, **_layout(case), **options)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    seen = set()
    for _ in range(13):
        p.grad = torch.randn(p.shape, generator=generator, dtype=F64) * 1.5
        opt.step()
        v, theta = opt.state[p]["dual"], p.detach()
        assert not torch.signbit(theta[theta == 0]).any()  # N7
        assert int(opt.live_counts()[0]) == int(theta.count_nonzero())
        if case in GROUPED:
            dead, alive = check_groups(case, v, theta, lam, delta)
            seen |= {("dead", dead), ("alive", alive)}
            continue
        lower = -float("inf") if case == "l1_pos" else -lam
        assert_same_bits(theta, delta * (v - v.clamp(lower, lam)))
        xi = v - theta / delta
        assert float(xi.max()) <= lam + 1e-12
        assert case == "l1_pos" or float(xi.min()) >= -lam - 1e-12
        torch.testing.assert_close(xi[theta != 0], (lam * theta.sign())[theta != 0])
        seen |= {("dead", bool((theta == 0).any())), ("alive", bool((theta != 0).any()))}
    assert {("dead", True), ("alive", True)} <= seen


def _layout(case):
    return {k: v for k, v in REGS[case].items() if k != "reg"}


@pytest.mark.parametrize("case", [*REGS, "nuclear"])
@pytest.mark.parametrize("delta", [0.1, 1.0, 7.0])
@pytest.mark.parametrize(("ptype", "tolerance"), [(torch.float32, 2e-6), (F64, 1e-12)])
def test_p4_the_start_reads_out_the_weights(backend, case, delta, ptype, tolerance):
    """A step of length 0 writes delta prox(v0); supports are equal but for nuclear's dense ones."""
    p = weight(case, ptype)
    start = p.detach().clone()
    options = {"reg": "nuclear"} if case == "nuclear" else REGS[case]
    opt = LinBreg([p], lr=0.0, lam=0.4, delta=delta, backend=backend, **options)
    opt.init_dual()
    with torch.no_grad():
        p.fill_(9.0)
    p.grad = torch.ones_like(p)
    opt.step()
    torch.testing.assert_close(p.detach(), start, rtol=tolerance, atol=tolerance)
    if case != "nuclear":
        assert torch.equal(p.detach() == 0, start == 0)


@pytest.mark.parametrize("case", [*REGS, "nuclear"])
def test_p7_readouts_are_firmly_nonexpansive(backend, case):
    delta, shown, duals = 0.7, [], []
    for seed in (1, 2):
        p = weight(case, F64)
        with torch.no_grad():
            p.zero_()
        options = {"reg": "nuclear"} if case == "nuclear" else REGS[case]
        opt = LinBreg([p], lr=1.0, lam=0.6, delta=delta, backend=backend, **options)
        generator = torch.Generator().manual_seed(seed)
        p.grad = torch.randn(p.shape, generator=generator, dtype=F64)
        opt.step()
        shown.append(p.detach().clone())
        duals.append(opt.state[p]["dual"].clone())
    gap, reach = shown[0] - shown[1], duals[0] - duals[1]
    assert 0 < gap.norm() <= delta * reach.norm() * (1 + 1e-12)
    assert (gap * reach).sum() >= gap.square().sum() / delta * (1 - 1e-12)


def test_n1_nuclear_by_hand(backend):
    p = nn.Parameter(torch.zeros(2, 2, dtype=F64))
    opt = LinBreg([p], lr=1.0, reg="nuclear", lam=2.0, delta=0.5, backend=backend)
    p.grad = -torch.diag(torch.tensor([3.0, 1.0], dtype=F64))
    opt.step()
    expected = torch.diag(torch.tensor([0.5, 0.0], dtype=F64))
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


def test_n1_a_rank_1_start_stays_rank_1(backend):
    p = nn.Parameter(torch.outer(torch.randn(6, dtype=F64), torch.randn(12, dtype=F64)))
    with torch.no_grad():
        p.copy_(p.reshape(6, 3, 2, 2).reshape(6, 12))
    opt = LinBreg([p], lr=1.0, reg="nuclear", lam=0.5, backend=backend)
    p.grad = 1e-3 * torch.randn(6, 12, dtype=F64)
    opt.step()
    assert int(torch.linalg.matrix_rank(p.detach(), tol=1e-9)) == 1
    conv = nn.Parameter(torch.randn(4, 3, 2, 2, dtype=F64))
    conv_opt = LinBreg([conv], lr=1.0, reg="nuclear", lam=0.5, backend=backend)
    conv.grad = torch.randn(4, 3, 2, 2, dtype=F64)
    conv_opt.step()
    v = conv_opt.state[conv]["dual"].reshape(4, 12)
    singular = torch.linalg.svdvals(conv.detach().reshape(4, 12))
    torch.testing.assert_close(singular, (torch.linalg.svdvals(v) - 0.5).clamp(min=0))


@pytest.mark.parametrize(("factor", "shown"), [(3.0, 0.0), (4.0, 0.25)])
def test_n2_kernels_at_and_beyond_the_threshold(backend, factor, shown):
    """A 3x3 kernel: the threshold is 3 lam; at 4 lam delta / 4 of the dual is left."""
    lam, delta = 0.5, 2.0
    p = nn.Parameter(torch.zeros(1, 2, 3, 3, dtype=F64))
    opt = LinBreg([p], lr=1.0, reg="l1_l2", groups="kernels", lam=lam, delta=delta, backend=backend)
    v = torch.zeros(1, 2, 3, 3, dtype=F64)
    v[0, 0, 1, 2] = factor * lam
    p.grad = -v
    opt.step()
    assert_same_bits(p.detach(), delta * shown * v)


def test_entries_and_groups_of_the_sparse_group_thresholds_share_lam():
    """l1_ratio 1 is the plain l1 readout, 0 the plain group readout: lam enters once."""
    v = torch.randn(8, 5, dtype=F64)
    shown = {}
    for name, options in {
        "l1": {"reg": "l1"},
        "rows": {"reg": "l1_l2", "groups": "rows"},
        "all l1": {"reg": "sparse_group", "groups": "rows", "l1_ratio": 1.0},
        "all rows": {"reg": "sparse_group", "groups": "rows", "l1_ratio": 0.0},
    }.items():
        p = nn.Parameter(torch.zeros_like(v))
        opt = LinBreg([p], lr=1.0, lam=0.5, **options)
        p.grad = -v
        opt.step()
        shown[name] = p.detach()
    torch.testing.assert_close(shown["l1"], shown["all l1"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shown["rows"], shown["all rows"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", REGS)
def test_bf16_weights_are_the_cast_of_the_fp32_readout(backend, case):
    p, q = weight(case, torch.bfloat16), None
    q = nn.Parameter(p.detach().float())
    options = {"lr": 0.1, "lam": 0.3, "coarse_steps": 2, "phase_offset": 2, **REGS[case]}
    opts = [LinBreg([x], backend=backend, **options) for x in (p, q)]
    drive(opts, [p, q], 7, torch.bfloat16)
    assert_same_bits(p.detach(), q.detach().bfloat16())
    assert_same_bits(opts[0].state[p]["dual"], opts[1].state[q]["dual"])
    assert set(ENTRIES) < set(REGS)
