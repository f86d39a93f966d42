"""Perturbing in every k-th step, and where gradients are looked at (interval, check_gradients)."""

import math

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    assert_same_params,
    batch,
    bits,
    cross_entropy,
    mlp,
    through_disk,
)
from sam_cases import OurCalls, draw, inject, injected_step, make_params, random_masks
from sparse_optim import SAM, SSAM, RandomMask
from torch import nn
from torch.optim import SGD, AdamW, RMSprop

BASES = [(SGD, {"momentum": 0.9, "nesterov": True}), (AdamW, {}), (RMSprop, {})]


def interval_oracle(model, base, interval, steps, x, y, rho, **options):
    """A base optimizer that is given the gradient at w + e in every interval-th step."""
    opt = base(model.parameters(), **options)
    for step in range(steps):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        if step % interval == 0:
            with torch.no_grad():
                old = [p.clone() for p in model.parameters()]
                norm = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm()
                for p in model.parameters():
                    p.add_(rho * p.grad / (norm + 1e-12))
            opt.zero_grad()
            cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p, w in zip(model.parameters(), old, strict=True):
                    p.copy_(w)
        opt.step()


@pytest.mark.parametrize("use", ["steps", "closure", "two calls", "context", "perturbs"])
@pytest.mark.parametrize("interval", [1, 2, 3])
@pytest.mark.parametrize(("base", "options"), BASES)
def test_every_kth_step_perturbs_however_it_is_called(backend, base, options, interval, use):
    x, y = batch(dtype=torch.float64)
    model, other = (mlp(dtype=torch.float64, norm=True).eval() for _ in "ab")
    opt = SAM(model.parameters(), base, rho=0.3, interval=interval, lr=0.02, backend=backend,
              closure_calls=2 if use == "two calls" else 1, **options)  # fmt: skip
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        loss = cross_entropy(model(x), y)
        loss.backward()
        return float(loss.detach())

    for step in range(7):
        assert opt.perturbs is (step % interval == 0)
        opt.zero_grad()
        if use == "two calls":
            assert opt.step(closure) > 0
            continue
        closure()
        if use == "steps":
            opt.first_step(zero_grad=True)
            closure()  # at w in the steps between: a second pass that changes nothing
            opt.second_step()
        elif use == "closure":
            value = opt.step(closure)
            assert (value is None) is (step % interval != 0)
        elif use == "context":
            with opt.perturbed():
                closure()
            opt.step()
        elif opt.perturbs:
            opt.first_step(zero_grad=True)
            closure()
            opt.second_step()
        else:
            opt.step()
    passes = -(-7 // interval) + 7
    assert calls == (14 if use in ("steps", "context") else passes)
    interval_oracle(other, base, interval, 7, x, y, 0.3, lr=0.02, **options)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_the_steps_between_call_no_kernel_of_the_ascent(backend):
    params = make_params()
    opt = SSAM(params, SGD, mask=RandomMask(), interval=2, check_gradients=False, lr=0.1,
               momentum=0.9, backend=backend)  # fmt: skip
    (first, second), *rest = draw(params, 2)
    injected_step(opt, params, first, second)
    inject(params, rest[0][0])
    with OurCalls() as calls:
        opt.step()
    assert calls.names == []


def test_a_step_at_lr_0_between_counts_and_clears_like_any_other(backend):
    """A warm-up from 0: the step counts, and weights that do not exist get no momentum."""
    params = make_params()
    exists = random_masks(params)
    opt = SAM(params, SGD, interval=2, lr=0.1, momentum=0.9, weight_mask=exists, backend=backend)
    (first, second), (third, _) = draw(params, 2)
    injected_step(opt, params, first, second)
    opt.param_groups[0]["lr"] = 0.0
    inject(params, third)
    opt.step()
    assert opt.perturbs
    for p, m in zip(params, exists, strict=True):
        assert (opt.state[p]["momentum_buffer"][~m] == 0).all()


def test_the_count_survives_a_checkpoint(backend):
    a, b = make_params(), make_params(seed=9)
    opt, resumed = (
        SAM(ps, SGD, rho=0.3, interval=3, lr=0.1, momentum=0.9, backend=backend) for ps in (a, b)
    )
    steps = draw(a, 8)
    for pair in steps[:4]:
        injected_step(opt, a, *pair)
    resumed.load_state_dict(through_disk(opt.state_dict()))
    for p, q in zip(a, b, strict=True):
        q.data.copy_(p.data)
    for pair in steps[4:]:
        assert opt.perturbs is resumed.perturbs
        moved = []
        for o, params in ((opt, a), (resumed, b)):
            inject(params, pair[0])
            before = params[0].detach().clone()
            o.first_step(zero_grad=True)
            moved.append(not torch.equal(params[0], before))
            inject(params, pair[1])
            o.second_step()
        assert moved == [opt._steps % 3 == 1] * 2
    assert_same_params(a, b)


def test_an_interrupted_step_does_not_count(backend):
    params = make_params()
    opt = SAM(params, SGD, rho=0.3, interval=2, lr=0.1, backend=backend)
    first, second = draw(params, 1)[0]
    inject(params, first)
    opt.first_step()
    opt.restore()
    assert opt.perturbs
    injected_step(opt, params, first, second)
    assert not opt.perturbs
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="interval"):
            SAM(params, SGD, interval=bad, lr=0.1)


@pytest.mark.parametrize("perturbing", [False, True])
def test_statistics_advance_once_in_both_kinds_of_step(backend, perturbing):
    x, y = batch()
    plain, model = mlp(norm=True), mlp(norm=True)
    opt = SAM(model.parameters(), SGD, interval=2, bn_modules=model, lr=0.0, backend=backend)
    opt._steps = 0 if perturbing else 1
    plain(x)
    cross_entropy(model(x), y).backward()
    opt.first_step(zero_grad=True)
    cross_entropy(model(x), y).backward()
    opt.second_step()
    assert_same_bits(model[1].running_mean, plain[1].running_mean)
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("perturbing", [False, True])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_property_15_check_gradients_looks_at_the_second_ones(backend, check, perturbing, bad):
    params = make_params()
    opt = SAM(params, SGD, rho=0.3, interval=2, check_gradients=check, lr=0.1, momentum=0.9,
              backend=backend)  # fmt: skip
    steps = draw(params, 3)
    injected_step(opt, params, *steps[0])
    if perturbing:
        injected_step(opt, params, *steps[1])
    before = [bits(p) for p in params]
    spoiled = [g.clone() for g in steps[2][1]]
    spoiled[1][7] = bad
    injected_step(opt, params, steps[2][0], spoiled)
    unchanged = [torch.equal(bits(p), b) for p, b in zip(params, before, strict=True)]
    assert unchanged == [check, check]
    assert int(opt.skipped_steps) == int(check)
    assert params[1].isfinite().all().item() is check


def test_property_15_without_the_check_the_first_gradients_still_count(backend):
    params = make_params()
    opt = SAM(params, SGD, rho=0.3, check_gradients=False, lr=0.1, backend=backend)
    first, second = draw(params, 1)[0]
    before = [bits(p) for p in params]
    spoiled = [g.clone() for g in first]
    spoiled[0][3, 3] = math.nan
    inject(params, spoiled)
    opt.first_step(zero_grad=True)
    assert all(torch.equal(bits(p), b) for p, b in zip(params, before, strict=True))
    inject(params, second)
    opt.second_step()
    assert all(torch.equal(bits(p), b) for p, b in zip(params, before, strict=True))
    assert int(opt.skipped_steps) == 1


def test_a_scaler_skips_a_plain_step_as_well(backend):
    model = nn.Linear(4, 2)
    opt = SAM(model.parameters(), SGD, rho=0.3, interval=2, lr=0.1, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    x = torch.ones(3, 4)
    for step in range(4):
        opt.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        if opt.perturbs:
            opt.first_step(zero_grad=True)
            scaler.scale(model(x).square().mean()).backward()
        if step == 1:
            model.bias.grad[0] = math.inf
        before = bits(model.weight)
        scaler.step(opt)
        scaler.update()
        assert torch.equal(bits(model.weight), before) is (step == 1)
    assert int(opt.skipped_steps) == 1
    assert scaler.get_scale() == 2.0**3
