"""Changing lam: transfers, queues in a coarse phase, counts (bregman.md section 4, N3, M13)."""

import itertools

import pytest
import torch
from optim_cases import assert_same_bits, shrink
from regularizer_cases import GROUPED, REGS, drive, group_sums, threshold, weight
from sparse_optim import LinBreg, ProxSGD
from torch import nn

F64 = torch.float64
PAIRS = [(0.5, 0.2), (0.3, 0.7), (0.1, 0.11), (0.6180339, 0.3141592), (0.0, 0.4), (0.4, 0.0)]


def trained(case, lam, backend="reference", ptype=torch.float32, delta=0.7, **own):
    """An optimizer whose dead entries have accumulated something."""
    p = weight(case, ptype)
    options = {"lr": 0.03, "lam": lam, "delta": delta, **REGS[case], **own}
    opt = LinBreg([p], backend=backend, **options)
    drive([opt], [p], 4)
    return opt, p


@pytest.mark.parametrize("case", REGS)
@pytest.mark.parametrize(("old", "new"), PAIRS)
@pytest.mark.parametrize("ptype", [torch.float32, F64])
def test_n3_rescale_keeps_weights_support_and_history(backend, case, old, new, ptype):
    opt, p = trained(case, old, backend, ptype)
    before, v = p.detach().clone(), opt.state[p]["dual"].clone()
    opt.set_lam(new)
    after, w = p.detach(), opt.state[p]["dual"]
    eps = torch.finfo(ptype).eps
    torch.testing.assert_close(after, before, rtol=32 * eps, atol=16 * eps)
    assert torch.equal(after == 0, before == 0)
    assert opt.param_groups[0]["lam"] == new
    assert int(opt.live_counts()[0]) == int(before.count_nonzero())
    if old == 0.0:  # nothing to scale: subgradient start
        assert not w[before == 0].any()
        return
    xi, scaled = w - after / 0.7, (v - before / 0.7) * (new / old)
    torch.testing.assert_close(xi, scaled, rtol=64 * eps, atol=32 * eps)
    if case in GROUPED:  # xi is in the subdifferential of the new J
        lam, lam_groups = threshold(case, new)
        reach = group_sums(case, shrink(xi, lam).square()).sqrt()
        bound = lam_groups * group_sums(case, torch.ones_like(w)).sqrt()
        assert (reach <= bound + 64 * eps).all()
    else:
        assert float(xi.max()) <= new + 32 * eps
        assert case == "l1_pos" or float(xi.min()) >= -new - 32 * eps


@pytest.mark.parametrize("case", ["l1", "l1_pos", "rows", "sparse_rows"])
def test_rescaling_never_moves_the_support(case):
    """Duals at the threshold up to rounding, many pairs of lam."""
    generator = torch.Generator().manual_seed(6)
    for old, new in itertools.pairwise(torch.rand(60, generator=generator).tolist()):
        p = weight(case)
        opt = LinBreg([p], lr=0.0, lam=old, **REGS[case])
        opt.init_dual()
        on, v = p.detach() != 0, opt.state[p]["dual"]
        nearly = torch.rand(v.shape, generator=generator) < 0.5
        factor = torch.randint(-2, 3, v.shape, generator=generator) * 2.0**-24
        if case in ("l1", "l1_pos"):
            v[nearly & ~on] = old * (1 - factor.abs())[nearly & ~on]
        p.grad = torch.zeros_like(p)
        opt.step()
        on = p.detach() != 0
        opt.set_lam(new)
        assert torch.equal(p.detach() != 0, on)
        opt.step()
        assert torch.equal(p.detach() != 0, on)


@pytest.mark.parametrize("case", ["l1", "l1_pos"])
def test_n3_keep_moves_live_weights_by_delta_times_the_change(backend, case):
    opt, p = trained(case, 0.5, backend, F64)
    before, v = p.detach().clone(), opt.state[p]["dual"].clone()
    opt.set_lam(0.6, transfer="keep")
    assert_same_bits(opt.state[p]["dual"], v)
    moved = before - 0.7 * 0.1 * before.sign()
    dies = before.abs() <= 0.7 * 0.1
    assert not p.detach()[dies].any()
    torch.testing.assert_close(p.detach()[~dies], moved[~dies], rtol=1e-12, atol=1e-12)
    assert int(opt.live_counts()[0]) == int(p.count_nonzero())
    assert opt.sparsity() == 1 - int(p.count_nonzero()) / p.numel()
    opt.set_lam(0.2, transfer="keep")
    lower = -float("inf") if case == "l1_pos" else -0.2
    assert_same_bits(p.detach(), 0.7 * (v - v.clamp(lower, 0.2)))


@pytest.mark.parametrize("case", REGS)
def test_n3_auto_keeps_where_lam_rises_and_rescales_where_it_falls(backend, case):
    for new, transfer in ((0.6, "keep"), (0.4, "rescale")):
        (a, p), (b, q) = trained(case, 0.5, backend), trained(case, 0.5, backend)
        a.set_lam(new, transfer="auto")
        b.set_lam(new, transfer=transfer)
        assert_same_bits(p.detach(), q.detach())
        assert_same_bits(a.state[p]["dual"], b.state[q]["dual"])


@pytest.mark.parametrize("case", REGS)
@pytest.mark.parametrize("transfer", ["rescale", "keep", "auto"])
def test_m13_a_change_in_a_coarse_phase_waits_for_the_full_step(backend, case, transfer):
    def make():
        return trained(case, 0.5, backend, coarse_steps=5, phase_offset=0)

    (a, p), (b, q) = make(), make()
    assert a.last_was_coarse
    assert a.next_is_coarse
    a.set_lam(0.35, transfer=transfer)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(p.shape, generator=generator)
    p.grad, q.grad = grad, grad.clone()
    a.step()
    b.step()
    assert not a.next_is_coarse
    assert a.param_groups[0]["lam"] == 0.5
    assert_same_bits(p.detach(), q.detach())
    assert_same_bits(a.state[p]["dual"], b.state[q]["dual"])
    b.set_lam(0.35, transfer=transfer)  # waits as well: the phase's last step
    assert b.param_groups[0]["lam"] == 0.5
    a.step()
    b.step()
    assert a.param_groups[0]["lam"] == b.param_groups[0]["lam"] == 0.35
    assert a.param_groups[0]["queued_lam"] is None
    assert_same_bits(p.detach(), q.detach())
    assert_same_bits(a.state[p]["dual"], b.state[q]["dual"])
    a.set_lam(0.2, transfer=transfer)  # between full and coarse step: at once
    assert a.param_groups[0]["lam"] == 0.2


def test_a_queued_change_is_saved_and_the_last_one_counts():
    opt, p = trained("l1", 0.5, coarse_steps=9)
    opt.set_lam(0.9)
    opt.set_lam(0.25, transfer="keep")
    other = LinBreg([nn.Parameter(p.detach().clone())], reg="l1", lam=0.5, coarse_steps=9)
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["queued_lam"] == [0.25, 1]
    (q,) = other.param_groups[0]["params"]
    drive([opt, other], [p, q], 6)
    assert opt.param_groups[0]["lam"] == other.param_groups[0]["lam"] == 0.25
    assert_same_bits(p.detach(), q.detach())


def test_lam_between_asking_for_the_active_set_and_the_first_coarse_step():
    """The set that was asked for is found again under the new lam."""
    opt, p = trained("l1", 0.2, coarse_steps=2, phase_offset=2)
    assert opt.next_is_coarse
    assert not opt.last_was_coarse
    first = opt.active_index(p)[0].numel()
    opt.set_lam(0.9, transfer="keep")
    index, _ = opt.active_index(p)
    assert index.numel() < first
    assert torch.equal(index.long(), p.detach().reshape(-1).nonzero().reshape(-1))


def test_groups_of_parameters_and_scales():
    a, b, c = (nn.Parameter(torch.full((3,), 2.0, dtype=F64)) for _ in range(3))
    groups = [{"params": [a]}, {"params": [b], "lam_scale": 2.0}, {"params": [c], "reg": "none"}]
    opt = LinBreg(groups, lr=0.1, reg="l1", lam=0.5)
    opt.init_dual()
    opt.set_lam(0.75, transfer="keep")
    assert [g["lam"] for g in opt.param_groups] == [0.75, 0.75, 0.5]
    assert a.tolist() == [1.75] * 3
    assert b.tolist() == [1.5] * 3
    assert c.tolist() == [2.0] * 3
    opt.set_lam(0.25, group=1)
    assert [g["lam"] for g in opt.param_groups] == [0.75, 0.25, 0.5]
    assert b.tolist() == [1.5] * 3
    assert opt.state[b]["dual"].tolist() == [2.0] * 3
    for bad in ({"value": -0.1}, {"value": 1.0, "transfer": "x"}, {"value": 1.0, "group": 3}):
        with pytest.raises(ValueError, match=r"lam|transfer|group"):
            opt.set_lam(**bad)
        assert [g["lam"] for g in opt.param_groups] == [0.75, 0.25, 0.5]
    prox = ProxSGD([nn.Parameter(torch.ones(2))], reg="l1", lam=0.5)
    prox.set_lam(0.7)
    assert prox.param_groups[0]["lam"] == 0.7
    with pytest.raises(ValueError, match="rescale"):
        prox.set_lam(0.7, transfer="rescale")
