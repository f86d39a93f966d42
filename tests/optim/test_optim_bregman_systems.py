"""LinBreg and AdaBreg in a program: checkpoints, groups, scaling, bad input (bregman.md)."""

import copy

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    batch,
    cross_entropy,
    sparse_model,
    through_disk,
    train_plain,
)
from sparse_optim import AdaBreg, LinBreg, bregman_param_groups
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

F64 = torch.float64
LIN = [(LinBreg, {"lr": 0.1}), (LinBreg, {"lr": 0.1, "momentum": 0.9, "nesterov": True})]
ALL = [*LIN, (AdaBreg, {"lr": 0.02})]


@pytest.mark.parametrize(("cls", "options"), ALL)
@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16])
def test_p6_m11_n8_resuming_in_mid_cycle_is_bitwise(backend, cls, options, ptype):
    def make(model):
        groups = bregman_param_groups(model, lam=0.03, delta=0.9)
        return cls(groups, coarse_steps=4, backend=backend, **options)

    a = sparse_model(dtype=ptype)
    data = batch(dtype=ptype)
    opt = make(a)
    train_plain(a, opt, 13, data)  # inside the third phase
    assert opt.next_is_coarse
    member = a[0].weight
    alive = (member.detach() != 0).nonzero()[0]
    with torch.no_grad():  # a member of A that is zero just now
        opt.state[member]["dual"][tuple(alive)] = 0.01
        member[tuple(alive)] = 0.0
    state, weights = through_disk(opt.state_dict()), through_disk(a.state_dict())
    b = sparse_model(0.9, dtype=ptype)
    train_plain(b, make(b), 2, data)
    resumed = make(b)
    b.load_state_dict(weights)
    resumed.load_state_dict(state)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        for k, v in opt.state[p].items():
            w = resumed.state[q][k]
            if isinstance(v, torch.Tensor):
                assert w.dtype == v.dtype
                assert torch.equal(v, w)
            else:
                assert v == w
    before = a[2].weight.detach().clone()
    twin, twin_opt = copy.deepcopy((a, opt))
    train_plain(a, opt, 20, data)
    train_plain(b, resumed, 20, data)
    train_plain(twin, twin_opt, 20, data)
    assert not torch.equal(a[2].weight, before)
    for p, q, r in zip(a.parameters(), b.parameters(), twin.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())
        assert_same_bits(p.detach(), r.detach())


def test_n10_load_keeps_dtypes_and_counts():
    p = nn.Parameter(torch.zeros(5, dtype=torch.bfloat16))
    opt = AdaBreg([p], lr=1e-3, reg="l1", lam=0.1, coarse_steps=1)
    p.grad = torch.ones(5, dtype=torch.bfloat16)
    opt.step()
    opt.step()
    opt.state[p]["count"].fill_(501)
    opt.state[p]["step"] = 501
    other = AdaBreg([nn.Parameter(torch.zeros_like(p))], coarse_steps=1)
    other.load_state_dict(through_disk(opt.state_dict()))
    (state,) = other.state.values()
    assert state["dual"].dtype == state["exp_avg"].dtype == torch.float32
    assert state["count"].dtype == state["active"].dtype == torch.int32
    assert state["count"].tolist() == [501] * 5
    assert state["step"] == 501


def test_m12_a_step_the_scaler_skips_does_not_move_the_cycle():
    model = sparse_model()
    x, y = batch()
    opt = LinBreg(bregman_param_groups(model, lam=0.03), lr=0.1, coarse_steps=2, phase_offset=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    train_plain(model, opt, 3)
    position, dual = opt.steps_taken, opt.state[model[0].weight]["dual"].clone()
    active, coarse = opt.state[model[0].weight]["active"].clone(), opt.next_is_coarse
    opt.zero_grad()
    scaler.scale(cross_entropy(model(x), y)).backward()
    model[2].bias.grad[0] = float("inf")
    scaler.step(opt)
    scaler.update()
    assert opt.steps_taken == position
    assert opt.next_is_coarse == coarse
    assert torch.equal(opt.state[model[0].weight]["dual"], dual)
    assert torch.equal(opt.state[model[0].weight]["active"], active)
    opt.zero_grad()
    scaler.scale(cross_entropy(model(x), y)).backward()
    scaler.step(opt)
    scaler.update()
    assert opt.steps_taken == position + 1


def test_groups_of_one_optimizer(backend):
    """multilevel=False steps fully always; per-group options act; one cycle for all."""
    a, b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    groups = [{"params": [a]}, {"params": [b], "multilevel": False, "lam_scale": 2.0}]
    opt = LinBreg(groups, lr=0.25, reg="l1", lam=0.5, coarse_steps=10, backend=backend)
    for _ in range(5):
        a.grad, b.grad = torch.full((4,), -1.0), torch.full((4,), -1.0)
        opt.step()
    assert not a.detach().any()
    assert b.detach().tolist() == [0.25] * 4  # 5 * 0.25 - 2 * 0.5
    assert "active" not in opt.state[b]
    with pytest.raises(ValueError, match="coarse_steps"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "coarse_steps": 3})
    late = nn.Parameter(torch.ones(1))
    opt.add_param_group({"params": [late], "reg": "none"})
    assert opt.param_groups[2]["cycle_step"] == 5
    late.grad = torch.ones(1)
    a.grad = b.grad = None
    before = b.detach().clone()
    opt.step()
    assert late.item() == 0.75
    assert torch.equal(b.detach(), before)  # no gradient, no step


def test_param_groups_sort_by_module_type():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 6)
            self.attend = nn.MultiheadAttention(6, 2)
            self.conv = nn.Conv1d(6, 4, 3)
            self.scale = nn.LayerNorm((4, 4))
            self.weight = nn.Parameter(torch.ones(3, 3))
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.embed.weight  # tied
            self.last = nn.Linear(4, 2)
            self.last.bias.requires_grad_(False)

    net = Net()
    first, rest = bregman_param_groups(net, lam=0.2, delta=0.5)
    expected = [
        net.attend.in_proj_weight,
        net.attend.out_proj.weight,
        net.conv.weight,
        net.last.weight,
    ]
    assert {id(p) for p in first["params"]} == {id(p) for p in expected}
    assert (first["reg"], first["lam"], first["delta"], rest["reg"]) == ("l1", 0.2, 0.5, "none")
    sizes = len(first["params"]) + len(rest["params"])
    assert sizes == len([p for p in net.parameters() if p.requires_grad])


def test_odd_parameters_closures_and_schedules(backend):
    params = [
        nn.Parameter(torch.tensor(1.5)),
        nn.Parameter(torch.empty(0)),
        nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(6, 8).t()),
        nn.Parameter(torch.randn(7, dtype=F64)),
        nn.Parameter(torch.randn(7).bfloat16()),
        nn.Parameter(torch.randn(4)),
    ]
    pointers = [p.data_ptr() for p in params]
    strides = [p.stride() for p in params]
    start = [p.detach().clone() for p in params]
    opt = LinBreg(params, lr=0.1, momentum=0.5, reg="l1", lam=0.2, coarse_steps=2, backend=backend)
    schedule = CosineAnnealingLR(opt, 10)

    def closure():
        opt.zero_grad()
        loss = sum(p.double().sum() for p in params[:6])
        loss.backward()
        return loss.detach()

    for _ in range(4):
        assert float(opt.step(closure)) != 0.0
        schedule.step()
    for p, w in zip(params[:6], start, strict=False):
        assert p.numel() == 0 or not torch.equal(p.detach(), w)
        expected = torch.full_like(w, 0.0)
        v = opt.state[p]["dual"]
        assert v.stride() == p.stride() or p.numel() == 0
        expected = v - v.clamp(-0.2, 0.2)
        assert torch.equal(p.detach(), expected.to(p.dtype))
    assert torch.equal(params[6].detach(), start[6])
    assert [p.data_ptr() for p in params] == pointers
    assert [p.stride() for p in params] == strides


def test_sync_from_params_and_edits(backend):
    p = nn.Parameter(torch.tensor([1.0, 0.0]))
    opt = LinBreg([p], lr=0.1, reg="l1", lam=0.5, coarse_steps=3, phase_offset=3, backend=backend)
    p.grad = torch.tensor([0.0, -3.0])
    opt.step()
    with torch.no_grad():
        p[0] = 9.0
    p.grad = torch.zeros(2)
    opt.step()
    torch.testing.assert_close(p.detach(), torch.tensor([1.0, 0.0]))  # the readout overwrites edits
    with torch.no_grad():
        p[0], p[1] = 2.0, -1.0
    opt.sync_from_params()
    assert opt.state[p]["dual"].tolist() == [2.5, -1.5]
    opt.step()
    assert p.detach().tolist() == [2.0, -1.0]


@pytest.mark.parametrize("cls", [LinBreg, AdaBreg])
def test_bad_arguments_change_nothing(cls):
    for options, word in (
        ({"lr": -1.0}, "lr"),
        ({"lam": float("nan")}, "lam"),
        ({"lam_scale": -1.0}, "lam_scale"),
        ({"delta": 0.0}, "delta"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"reg": "l2"}, "reg"),
        ({"coarse_steps": -1}, "coarse_steps"),
        ({"coarse_steps": 1.5}, "coarse_steps"),
        ({"coarse_steps": 2, "phase_offset": 3}, "phase_offset"),
        ({"backend": "metal"}, "backend"),
        ({"momentum": 1.0}, "momentum") if cls is LinBreg else ({"betas": (0.9, 1.0)}, "betas"),
        ({"nesterov": True}, "nesterov") if cls is LinBreg else ({"eps": -1.0}, "eps"),
        ({"momentum_form": "x"}, "momentum_form")
        if cls is LinBreg
        else ({"adam_time": "x"}, "time"),
    ):
        with pytest.raises(ValueError, match=word):
            cls([nn.Parameter(torch.ones(2))], **options)
    a, table = nn.Parameter(torch.ones(2)), nn.Embedding(4, 2, sparse=True)
    opt = cls([a, table.weight], lr=0.1, reg="l1", lam=0.1)
    a.grad = torch.ones(2)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"\['params'\]\[1\].*layout"):
        opt.step()
    assert a.detach().tolist() == [1.0, 1.0]
    assert not opt.state
    opt.param_groups[0]["lam"] = -1.0
    table.weight.grad = None
    with pytest.raises(ValueError, match="lam"):
        opt.step()
    assert a.detach().tolist() == [1.0, 1.0]
