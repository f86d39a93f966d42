"""The fused base step in a training program: parameters that come and go, groups, loss scaling."""

import copy

import pytest
import torch
from optim_cases import assert_same_bits, bits
from sam_cases import OurCalls, draw, inject, injected_step, make_params, random_masks
from sparse_optim import SAM, SSAM, RandomMask
from torch import nn
from torch.optim import SGD, Adam, AdamW

BASES = [
    (SGD, {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.01}),
    (SGD, {"momentum": 0.9, "nesterov": True}),
    (SGD, {}),
    (Adam, {"weight_decay": 0.01}),
    (AdamW, {}),
]


def both(base, options, params, backend, **own):
    """SSAM over the parameters, the plain base over copies of them."""
    opt = SSAM(params, base, rho=0.3, lr=0.05, backend=backend, **own, **options)
    opt.set_masks(random_masks(params))
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    return opt, base(copies, lr=0.05, **options), copies


def assert_close(base, params, copies):
    for p, q in zip(params, copies, strict=True):
        if base is SGD:
            assert_same_bits(p.detach(), q.detach())
        else:
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("base", "options"), BASES)
def test_parameters_that_appear_and_disappear_between_the_passes(backend, base, options):
    """(g1, g2) there or not, for every parameter and step; the base sees g2 alone."""
    params = make_params(((5, 3), (9,), (4,), (2, 2), ()))
    opt, other, copies = both(base, options, params, backend)
    with_gradient = [
        ([1, 1, 0, 0, 1], [1, 0, 1, 0, 1]),
        ([0, 1, 1, 0, 1], [1, 1, 1, 0, 0]),
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        ([0, 0, 0, 1, 0], [1, 1, 1, 0, 1]),
    ]
    for (first, second), (has1, has2) in zip(draw(params, 4), with_gradient, strict=True):
        before = [p.detach().clone() for p in params]
        first, second = (
            [g if there else None for g, there in zip(grads, has, strict=True)]
            for grads, has in ((first, has1), (second, has2))
        )
        injected_step(opt, params, first, second)
        inject(copies, second)
        other.step()
        for p, w, h in zip(params, before, has2, strict=True):
            assert torch.equal(p.detach(), w) is not bool(h)
        assert_close(base, params, copies)
    ours, theirs = opt.base_optimizer.state_dict()["state"], other.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    if base is not SGD:
        assert {k: v["step"] for k, v in ours.items()} == {k: v["step"] for k, v in theirs.items()}


@pytest.mark.parametrize(("base", "options"), BASES)
def test_a_group_with_rho_0_beside_others(backend, base, options):
    params, still = make_params(), make_params(seed=8)
    groups = [{"params": params}, {"params": still, "rho": 0.0}]
    opt = SAM(groups, base, rho=0.3, lr=0.05, backend=backend, **options)
    copies = [nn.Parameter(p.detach().clone()) for p in (*params, *still)]
    other = base(copies, lr=0.05, **options)
    for first, second in draw(copies, 5):
        inject([*params, *still], first)
        before = [bits(p) for p in still]
        opt.first_step(zero_grad=True)
        assert all(torch.equal(bits(p), b) for p, b in zip(still, before, strict=True))
        inject([*params, *still], second)
        with OurCalls() as calls:
            opt.second_step()
        assert {"restore_sgd_", "restore_adamw_"} & set(calls.names)
        for p, g in zip((*params, *still), second, strict=True):
            assert torch.equal(p.grad, g)  # gradients are left as they were
        inject(copies, second)
        other.step()
        assert_close(base, [*params, *still], copies)


@pytest.mark.parametrize(("base", "options"), BASES)
def test_layouts_and_mixed_dtypes_in_one_group(backend, base, options):
    shapes = ((3, 4), (2, 3, 4, 5), (6, 8), (), (0,), (7,))
    params = make_params(shapes)
    params[1] = nn.Parameter(params[1].detach().to(memory_format=torch.channels_last))
    params[2] = nn.Parameter(params[2].detach().t())
    params[5] = nn.Parameter(params[5].detach().double())
    opt, other, copies = both(base, options, params, backend)
    strides, pointers = [p.stride() for p in params], [p.data_ptr() for p in params]
    for first, second in draw(params, 4):
        assert not second[1].is_contiguous(memory_format=torch.channels_last)
        injected_step(opt, params, first, second)
        inject(copies, second)
        other.step()
        assert_close(base, params, copies)
    assert [p.stride() for p in params] == strides
    assert [p.data_ptr() for p in params] == pointers


def scaled_step(opt, params, scaler, first, second):
    scale = scaler.get_scale()
    inject(params, [g * scale for g in first])
    opt.first_step(zero_grad=True)
    inject(params, [g * scale for g in second])
    scaler.step(opt)
    scaler.update()
    opt.zero_grad()


@pytest.mark.parametrize(("base", "options"), BASES)
def test_property_35_loss_scaling_on_packed_backups(backend, base, options):
    params = make_params()
    opt, other, copies = both(base, options, params, backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    scaler.scale(torch.ones(()))
    steps = draw(params, 9)
    for i, (first, second) in enumerate(steps):
        if i in (0, 4):  # the first step of all, and one with state
            before = [bits(p) for p in params]
            state = copy.deepcopy(opt.base_optimizer.state_dict()["state"])
            bad = [g.clone() for g in second]
            bad[1][3] = float("inf")
            scale = scaler.get_scale()
            scaled_step(opt, params, scaler, first, bad)
            assert scaler.get_scale() == scale / 2
            assert all(torch.equal(bits(p), b) for p, b in zip(params, before, strict=True))
            after = opt.base_optimizer.state_dict()["state"]
            assert after.keys() == state.keys()
            for k, values in state.items():
                for name, v in values.items():
                    assert torch.equal(after[k][name], v)
        scaled_step(opt, params, scaler, first, second)
        inject(copies, second)
        other.step()
        assert_close(base, params, copies)
    assert int(opt.skipped_steps) == 2
    assert scaler.get_scale() > 2.0**8


@pytest.mark.parametrize("where", ["first", "second"])
@pytest.mark.parametrize(("base", "options"), BASES)
def test_property_15_a_suppressed_step_builds_no_state(backend, base, options, where):
    params = make_params()
    opt, other, copies = both(base, options, params, backend)
    for first, second in draw(params, 3):
        before, state = [bits(p) for p in params], dict(opt.state)
        bad = [g.clone() for g in (first if where == "first" else second)]
        bad[0][2, 2] = float("nan")
        pair = (bad, second) if where == "first" else (first, bad)
        injected_step(opt, params, *pair)
        assert all(torch.equal(bits(p), b) for p, b in zip(params, before, strict=True))
        assert dict(opt.state) == state
        injected_step(opt, params, first, second)
        inject(copies, second)
        other.step()
        assert_close(base, params, copies)
    assert int(opt.skipped_steps) == 3


@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
def test_property_37_the_backup_holds_the_perturbed_entries_only(backend, ptype, sparsity):
    """itemsize per perturbed entry, 1/8 byte per entry of mask, 1/1024 of ranks."""
    params = make_params(((300, 100), (8192,), (5, 5)), dtype=ptype)
    opt = SSAM(params, SGD, sparsity=sparsity, mask=RandomMask(), lr=0.1, backend=backend)
    steps = draw(params, 2)
    injected_step(opt, params, *steps[0])
    numel = sum(p.numel() for p in params)
    packed = opt._packed
    size = torch.empty((), dtype=ptype).element_size()
    held = [b.numel() * b.element_size() for b in packed._buffers.values()]
    assert sum(held) == size * opt.mask.live
    masks = sum(w.numel() * 4 for w in packed._words.values())
    ranks = sum(r.numel() * r.element_size() for r in packed._ranks.values())
    assert masks <= numel / 8 + 4 * len(params)
    assert ranks <= numel / 1024 + 8 * len(params)
    assert opt._copies._copies == {}
    pointers = {place: b.data_ptr() for place, b in packed._buffers.items()}
    injected_step(opt, params, *steps[1])
    assert opt._packed is packed
    opt.update_mask()  # as many entries: the buffers are used again
    injected_step(opt, params, *steps[1])
    assert {place: b.data_ptr() for place, b in opt._packed._buffers.items()} == pointers


@pytest.mark.parametrize(("base", "options"), BASES)
def test_property_36_operator_calls_do_not_grow_with_the_tensors(backend, base, options):
    counts = []
    for shapes in (((4, 3),), ((4, 3),) * 40):
        params = make_params(shapes)
        opt = SSAM(
            params, base, rho=0.3, lr=0.05, weight_mask=random_masks(params, 0.8),
            sparsity=0.5, mask=RandomMask(), norm="masked", backend=backend, **options,
        )  # fmt: skip
        steps = draw(params, 2)
        injected_step(opt, params, *steps[0])
        with OurCalls() as calls:
            injected_step(opt, params, *steps[1])
        counts.append(calls.names)
    assert counts[0] == counts[1]
    step = "restore_sgd_" if base is SGD else "restore_adamw_"
    expected = ["grad_norm", "masked_perturb_", "grad_norm", "mask_apply_", step]
    assert counts[0] == expected
