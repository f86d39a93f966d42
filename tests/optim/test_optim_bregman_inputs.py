"""Bad and unusual input to the Bregman optimizers: refused untouched, or taken in stride."""

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, sparse_model, through_disk
from regularizer_cases import REGS, drive, weight
from sparse_optim import AdaBreg, LinBreg, ProxSGD, bregman_param_groups
from torch import nn

NAN, INF = float("nan"), float("inf")
CLASSES = [(LinBreg, {"lr": 0.1, "momentum": 0.9}), (AdaBreg, {"lr": 0.05})]


def snapshot(opt):
    """Everything a refused call must leave as it is."""
    params = [p.detach().clone() for g in opt.param_groups for p in g["params"]]
    return params, through_disk(opt.state_dict())


def assert_untouched(opt, before):
    params, state = snapshot(opt)
    for a, b in zip(params, before[0], strict=True):
        assert_same_bits(a, b)
    assert state["param_groups"] == before[1]["param_groups"]
    assert state["state"].keys() == before[1]["state"].keys()
    for k, own in before[1]["state"].items():
        for name, value in own.items():
            now = state["state"][k][name]
            assert torch.equal(now, value) if isinstance(value, torch.Tensor) else now == value


@pytest.mark.parametrize(("cls", "options"), CLASSES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("case", REGS)
def test_not_finite_gradients_in_a_full_step_of_a_cycle(backend, cls, options, value, case):
    a, b = nn.Parameter(torch.zeros(3)), weight(case)
    groups = [{"params": [("bias", a)], "reg": "none"}, {"params": [("w", b)], **REGS[case]}]
    opt = cls(groups, lam=0.3, coarse_steps=2, backend=backend, **options)
    for _ in range(2):
        a.grad, b.grad = torch.ones(3), torch.randn(b.shape)
        opt.step()
    assert not opt.next_is_coarse
    opt.set_lam(0.2)  # waits for this full step
    before = snapshot(opt)
    b.grad.view(-1)[-1] = value
    with pytest.raises(ValueError, match=r"step: the gradient of parameter 'w' of shape.*NaN"):
        opt.step()
    assert_untouched(opt, before)
    b.grad.view(-1)[-1] = 0.0
    opt.step()
    assert opt.steps_taken == 3
    assert opt.param_groups[1]["lam"] == 0.2


def test_not_finite_gradients_of_singular_values():
    p = nn.Parameter(torch.randn(3, 4))
    opt = LinBreg([p], lr=0.1, reg="nuclear", lam=0.3)
    p.grad = torch.randn(3, 4)
    opt.step()
    before = snapshot(opt)
    p.grad[0, 0] = NAN
    with pytest.raises(ValueError, match=r"\['params'\]\[0\].*NaN"):
        opt.step()
    assert_untouched(opt, before)


def test_not_finite_gradients_without_a_cycle_propagate():
    p = nn.Parameter(torch.zeros(2))
    opt = LinBreg([p], lr=0.1, reg="l1", lam=0.3)
    p.grad = torch.tensor([NAN, -4.0])
    opt.step()
    assert p.isnan().tolist() == [True, False]


@pytest.mark.parametrize(("cls", "options"), [*CLASSES, (ProxSGD, {"lr": 0.1})])
def test_options_set_out_of_range_are_found_in_the_next_step(cls, options):
    p = weight("l1")
    opt = cls([p], reg="l1", lam=0.3, **options)
    p.grad = torch.ones_like(p)
    opt.step()
    for name, wrong in {
        "lam": -0.1, "lr": NAN, "lam_scale": INF, "weight_decay": -1.0, "reg": "l0", "delta": 0.0,
        "dual_leak": -0.5, "fine_scale": 0.5,
    }.items():  # fmt: skip
        good, opt.param_groups[0][name] = opt.param_groups[0][name], wrong
        before = opt.param_groups[0]["cycle_step"], p.detach().clone()
        with pytest.raises(ValueError, match=name):
            opt.step()
        opt.param_groups[0][name] = good
        assert opt.steps_taken == before[0]
        assert_same_bits(p.detach(), before[1])
    opt.step()
    assert opt.steps_taken == 2


@pytest.mark.parametrize("cls", [LinBreg, AdaBreg, ProxSGD])
@pytest.mark.parametrize("rates", [[], [0.1], [0.1, 0.2, 0.3]])
def test_lists_of_rates_of_the_wrong_length(cls, rates):
    groups = [{"params": [nn.Parameter(torch.ones(2))]} for _ in range(2)]
    with pytest.raises(ValueError, match=rf"lr has {len(rates)} values for 2"):
        cls(groups, lr=rates)
    opt = cls(groups, lr=[0.1, 0.2])
    assert [g["lr"] for g in opt.param_groups] == [0.1, 0.2]
    with pytest.raises(ValueError, match="lr"):
        cls(groups, lr=[0.1, -0.2])


@pytest.mark.parametrize("cls", [LinBreg, AdaBreg, ProxSGD])
@pytest.mark.parametrize(("shape", "options", "word"), [
    ((3,), {"reg": "l1_l2", "groups": "rows"}, "2 dimensions; parameter 'w'"),
    ((3, 2, 2, 2), {"reg": "l1_l2", "groups": "rows"}, "2 dimensions; parameter 'w'"),
    ((3, 2), {"reg": "sparse_group", "groups": "kernels"}, "4 dimensions; parameter 'w'"),
    ((), {"reg": "l1_l2", "groups": "filters"}, "2 dimensions or more; parameter 'w'"),
    ((3,), {"reg": "l1_l2", "groups": "blocks", "block": (2, 2)}, "or more; parameter 'w'"),
    ((3,), {"reg": "nuclear"}, "2 dimensions or more; parameter 'w'"),
    ((3, 2), {"reg": "l1_l2"}, "groups"),
    ((3, 2), {"reg": "l1_l2", "groups": "columns"}, "groups"),
    ((3, 2), {"reg": "l1_l2", "groups": "blocks"}, "block"),
    ((3, 2), {"reg": "l1_l2", "groups": "blocks", "block": (2, 0)}, "block"),
    ((3, 2), {"reg": "sparse_group", "groups": "rows", "l1_ratio": 1.5}, "l1_ratio"),
])  # fmt: skip
def test_tensors_that_cannot_be_grouped(cls, shape, options, word):
    with pytest.raises(ValueError, match=word):
        cls([("w", nn.Parameter(torch.ones(shape)))], lam=0.1, **options)
    opt = cls([("a", nn.Parameter(torch.ones(2, 2)))], lam=0.1)
    with pytest.raises(ValueError, match=word):
        opt.add_param_group({"params": [("w", nn.Parameter(torch.ones(shape)))], **options})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("cls", [LinBreg, AdaBreg])
def test_cycles_and_regularisers_that_exclude_each_other(cls):
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"nuclear.*multilevel=False"):
        cls([p], reg="nuclear", lam=0.1, coarse_steps=1)
    cls([{"params": [p], "multilevel": False}], reg="nuclear", lam=0.1, coarse_steps=1)
    with pytest.raises(ValueError, match="fine_scale"):
        cls([p], reg="l1_l2", groups="rows", lam=0.1, coarse_steps=1, fine_scale=2.0)


@pytest.mark.parametrize("when", ["step", "init_dual", "sync_from_params"])
def test_negative_weights_with_l1_pos(when):
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor([1.0, -1e-3]))
    opt = LinBreg([a, b], lr=0.1, reg="l1_pos", lam=0.1, coarse_steps=1)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    with pytest.raises(ValueError, match=r"\['params'\]\[1\].*negative"):
        getattr(opt, when)()
    assert opt.steps_taken == 0
    assert not any("dual" in s for s in opt.state.values())
    assert a.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("change", ["group sizes", "shape", "active"])
def test_checkpoints_that_do_not_fit_change_nothing(change):
    def make(shape=(10, 7)):
        p, q = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(2))
        opt = LinBreg([{"params": [p]}, {"params": [q]}], lr=0.1, reg="l1", lam=0.3, coarse_steps=2)
        p.grad, q.grad = torch.ones(shape), torch.ones(2)
        opt.step()
        return opt

    saved = make((10, 7) if change != "shape" else (7, 10)).state_dict()
    if change == "group sizes":
        saved["param_groups"][0]["params"].append(9)
    if change == "active":
        saved["state"][0]["active"] = saved["state"][0]["active"][:-1]
    opt = make()
    before = snapshot(opt)
    with pytest.raises(ValueError, match=r"load_state_dict: (the groups|active of|dual of)"):
        opt.load_state_dict(saved)
    assert_untouched(opt, before)


@pytest.mark.parametrize(("cls", "options"), CLASSES)
def test_unusual_tensors_in_a_cycle(backend, cls, options):
    """0-dim, empty, channels_last, transposed, shared, sometimes without a gradient."""
    shared = nn.Linear(6, 8)
    other = nn.Linear(6, 8)
    other.weight = shared.weight
    groups = bregman_param_groups(nn.ModuleList([shared, other]), lam=0.2)
    conv = weight("kernels").detach().to(memory_format=torch.channels_last)
    loose = [nn.Parameter(conv), nn.Parameter(torch.randn(8, 6).t()), nn.Parameter(torch.empty(0))]
    plain = [nn.Parameter(x.detach().clone().contiguous()) for x in loose]
    scalar = nn.Parameter(torch.tensor(1.5))
    made = []
    for own in (loose, plain):
        extra = [
            {"params": [own[0]], "reg": "l1_l2", "groups": "kernels", "lam": 0.2},
            {"params": [own[1]], "reg": "l1_l2", "groups": "rows", "lam": 0.2},
            {"params": [own[2]], "reg": "l1", "lam": 0.2},
        ]
        made.append(cls(extra, coarse_steps=3, backend=backend, **options))
    rest = cls([*groups, {"params": [scalar], "reg": "l1", "lam": 0.2}], coarse_steps=3,
               backend=backend, **options)  # fmt: skip
    assert sum(p is shared.weight for g in rest.param_groups for p in g["params"]) == 1
    strides = [p.stride() for p in loose]
    for step in range(9):
        for i, (p, q) in enumerate(zip(loose, plain, strict=True)):
            p.grad = None if step % 4 == i else torch.randn(p.shape)
            q.grad = None if p.grad is None else p.grad.clone()
        for opt in made:
            opt.step()
        x = torch.randn(4, 6)
        rest.zero_grad()
        (shared(x).square().mean() + other(x).sum() + scalar.square()).backward()
        rest.step()
        for p, q in zip(loose, plain, strict=True):
            assert_same_bits(p.detach().contiguous(), q.detach())
    assert [p.stride() for p in loose] == strides
    assert scalar.item() != 1.5
    assert made[0].active_counts()[0] is not None


@pytest.mark.parametrize("case", ["rows", "filters", "kernels", "blocks", "l1", "nuclear"])
def test_empty_weights(backend, case):
    shape = {"rows": (0, 4), "filters": (4, 0, 3), "kernels": (2, 0, 3, 3)}.get(case, (3, 0))
    p = nn.Parameter(torch.empty(shape))
    options = {"reg": "nuclear"} if case == "nuclear" else {**REGS[case], "coarse_steps": 1}
    opt = LinBreg([p], lr=0.1, lam=0.3, backend=backend, **options)
    for _ in range(4):
        p.grad = torch.empty(shape)
        opt.step()
    opt.set_lam(0.5)
    opt.set_lam(0.1, transfer="keep")
    opt.step()
    assert [int(n) for n in opt.live_counts()] == [0]
    assert opt.sparsity() == 0.0


@pytest.mark.parametrize(("cls", "options"), CLASSES)
def test_m12_accumulation_and_scaled_gradients(backend, cls, options):
    """Micro-steps do not move the cycle; a step the scaler skips leaves everything as it was."""
    data = [batch(seed=s) for s in range(4)]
    models = [sparse_model(), sparse_model()]
    opts = [
        cls(bregman_param_groups(m, lam=0.05), coarse_steps=2, backend=backend, **options)
        for m in models
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=10**6)
    for step in range(7):
        for model, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            for x, y in data:
                loss = cross_entropy(model(x), y)
                (scaler.scale(loss) if opt is opts[1] else loss).backward()
                assert opt.steps_taken == step
        opts[0].step()
        if step in (1, 2, 3):  # full or coarse
            before = snapshot(opts[1])
            grads = [p.grad.clone() for p in models[1].parameters()]
            models[1][0].weight.grad[0, 0] = INF
            scaler.step(opts[1])
            scaler.update(2.0**6)
            assert_untouched(opts[1], before)
            for p, g in zip(models[1].parameters(), grads, strict=True):
                p.grad = g
        scaler.step(opts[1])
        scaler.update(2.0**6)
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert_same_bits(p.detach(), q.detach())


@pytest.mark.parametrize(("cls", "options"), CLASSES)
def test_groups_added_in_mid_phase_join_the_cycle(backend, cls, options):
    first, late = weight("l1"), weight("rows")
    opt = cls([first], reg="l1", lam=0.2, coarse_steps=4, backend=backend, **options)
    drive([opt], [first], 2)
    opt.add_param_group({"params": [late], "reg": "l1_l2", "groups": "rows", "coarse_steps": 4})
    on = (late.detach() != 0).any(1)
    for _ in range(2):
        first.grad, late.grad = torch.randn(first.shape), torch.randn(late.shape)
        assert opt.next_is_coarse
        opt.step()
        assert not late.detach()[~on].any()
    assert opt.active_counts()[1] == int(on.sum()) * late.shape[1]
    opt.step()
    assert opt.steps_taken == 5
    assert opt.state[late]["dual"][~on].any()
