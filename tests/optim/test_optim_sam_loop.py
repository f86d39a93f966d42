"""SAM and SSAM: phases, bad gradients, statistics, published formulas (sparse-sam.md)."""

import copy

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    assert_same_params,
    batch,
    bits,
    cross_entropy,
    mlp,
    norm_of,
    train_sam,
)
from sparse_optim import SAM, SSAM, Phase, RandomMask
from torch import nn
from torch.optim import SGD, AdamW


def test_property_13_odd_parameters(backend):
    params = [
        nn.Parameter(torch.randn(3, 4)),
        nn.Parameter(torch.tensor(1.5)),
        nn.Parameter(torch.empty(0)),
        nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(6, 8).t()),
        nn.Parameter(torch.randn(7, dtype=torch.float64)),
        nn.Parameter(torch.randn(7).bfloat16()),
        nn.Parameter(torch.randn(4), requires_grad=False),
        nn.Parameter(torch.randn(4)),  # never gets a gradient
    ]
    opt = SSAM(params, SGD, rho=0.5, sparsity=0.3, mask=RandomMask(), lr=0.1, backend=backend)
    before = [bits(p) for p in params]
    for p in params[:7]:
        p.grad = torch.randn_like(p)
    grads = [p.grad.double().clone() for p in params[:7]]
    masks = opt.mask.to_bool()
    strides = [p.stride() for p in params]
    opt.first_step()
    whole = norm_of(grads)
    for p, b, g, m in zip(params[:7], before, grads, masks, strict=False):
        moved = p.detach().double() - b.view(p.dtype).double()
        atol = 0.02 if p.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(moved, 0.5 * g * m / whole, rtol=0, atol=atol)
    params[0].grad = None  # the gradient disappears in the second pass
    opt.second_step()
    assert torch.equal(bits(params[0]), before[0])
    assert torch.equal(bits(params[7]), before[7])
    assert torch.equal(bits(params[8]), before[8])
    assert not torch.equal(bits(params[3]), before[3])
    assert [p.stride() for p in params] == strides


def test_property_14_phases(backend):
    model = mlp()
    x, y = batch()
    opt = SAM(model.parameters(), SGD, rho=0.1, lr=0.1, momentum=0.9, backend=backend)
    assert opt.phase == "idle"
    with pytest.raises(RuntimeError, match="first_step first"):
        opt.second_step()
    with pytest.raises(RuntimeError, match="needs a closure"):
        opt.step()
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        opt.first_step()
    cross_entropy(model(x), y).backward()
    before = model[0].weight.detach().clone()
    opt.first_step()
    for call in (
        opt.first_step,
        opt.state_dict,
        lambda: opt.load_state_dict({}),
        lambda: opt.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        lambda: copy.deepcopy(opt),
        lambda: opt.step(lambda: None),
    ):
        with pytest.raises(RuntimeError, match="perturbed"):
            call()
    opt.zero_grad()
    with pytest.raises(RuntimeError, match="no parameter has a gradient at w"):
        opt.second_step()
    assert_same_bits(model[0].weight.detach(), before)
    assert opt.phase is Phase.IDLE


def test_property_14_a_step_at_lr_0_builds_state(backend):
    model = mlp()
    opt = SAM(model.parameters(), AdamW, lr=0.0, backend=backend)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step(closure=None)
    assert_same_params(before, model)
    assert set(opt.state) == set(model.parameters())


@pytest.mark.parametrize("base", [SGD, AdamW])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("where", ["g1", "g2", "both"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_property_15_a_non_finite_gradient_changes_nothing(base, fused, where, bad):
    extra = {"momentum": 0.9} if base is SGD else {}
    for warm in (0, 2):
        model = mlp()
        x, y = batch()
        opt = SAM(model.parameters(), base, rho=0.3, lr=0.1, fused=fused, **extra)
        train_sam(model, opt, warm)
        params = [bits(p) for p in model.parameters()]
        state = copy.deepcopy(opt.base_optimizer.state_dict()["state"])
        cross_entropy(model(x), y).backward()
        if where != "g2":
            model[0].weight.grad[0, 0] = bad
        opt.first_step(zero_grad=True)
        if where != "g2":
            assert torch.equal(bits(model[0].bias), params[1])  # e = 0, selected
        cross_entropy(model(x), y).backward()
        if where != "g1":
            model[2].bias.grad[1] = bad
        opt.second_step(zero_grad=True)
        for p, b in zip(model.parameters(), params, strict=True):
            assert torch.equal(bits(p), b)
        after = opt.base_optimizer.state_dict()["state"]
        if warm:
            for k, values in state.items():
                for name, v in values.items():
                    assert torch.equal(torch.as_tensor(after[k][name]), torch.as_tensor(v)), name
        assert int(opt.skipped_steps) == 1
        train_sam(model, opt, 1)
        assert not torch.equal(bits(model[0].weight), params[0])
        assert model[0].weight.isfinite().all()
        assert int(opt.skipped_steps) == 1


def test_property_16_statistics_and_random_state_advance_once(backend):
    x, _ = batch()
    plain = mlp(norm=True)
    plain(x)
    model = mlp(norm=True)
    opt = SAM(model.parameters(), SGD, rho=0.5, lr=0.1, bn_modules=model, backend=backend)
    train_sam(model, opt, 1)
    for name in ("running_mean", "running_var"):
        assert_same_bits(getattr(model[1], name), getattr(plain[1], name))
    assert int(model[1].num_batches_tracked) == 1

    dropping = mlp(dropout=0.5)
    torch.manual_seed(7)
    for _ in range(2):
        dropping(x)
    expected = torch.get_rng_state()
    torch.manual_seed(7)
    train_sam(dropping, SAM(dropping.parameters(), SGD, lr=0.1, backend=backend), 1)
    assert torch.equal(torch.get_rng_state(), expected)


def test_without_bn_modules_the_statistics_advance_twice():
    model = mlp(norm=True)
    train_sam(model, SAM(model.parameters(), SGD, lr=0.1), 1)
    assert int(model[1].num_batches_tracked) == 2


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("use", ["steps", "closure", "context"])
def test_property_38_the_published_code_in_plain_torch(backend, adaptive, use):
    """davda54/sam's step, in fp64 where nothing but the eps order could differ."""
    x, y = batch(dtype=torch.float64)
    ours, theirs = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    rho = 1.0 if adaptive else 0.1
    base = SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    opt = SAM(ours.parameters(), SGD, rho=rho, adaptive=adaptive, lr=0.1, momentum=0.9,
              weight_decay=1e-3, backend=backend)  # fmt: skip
    for _ in range(20):
        base.zero_grad()
        cross_entropy(theirs(x), y).backward()
        with torch.no_grad():
            scaled = [(p.abs() if adaptive else 1.0) * p.grad for p in theirs.parameters()]
            scale = rho / (torch.stack([s.norm(p=2) for s in scaled]).norm(p=2) + 1e-12)
            old = [p.clone() for p in theirs.parameters()]
            for p in theirs.parameters():
                p.add_((p.square() if adaptive else 1.0) * p.grad * scale)
        base.zero_grad()
        cross_entropy(theirs(x), y).backward()
        with torch.no_grad():
            for p, w in zip(theirs.parameters(), old, strict=True):
                p.copy_(w)
        base.step()

        opt.zero_grad()
        cross_entropy(ours(x), y).backward()
        if use == "steps":
            opt.first_step(zero_grad=True)
            cross_entropy(ours(x), y).backward()
            opt.second_step()
        elif use == "closure":

            def closure():
                loss = cross_entropy(ours(x), y)
                loss.backward()
                return loss.detach()

            assert float(opt.step(closure)) > 0.0
        else:
            with opt.perturbed():
                cross_entropy(ours(x), y).backward()
            opt.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_closure_calls_2_makes_both_passes():
    a, b = mlp(), mlp()
    x, y = batch()
    opt = SAM(a.parameters(), SGD, rho=0.3, closure_calls=2, lr=0.1)
    calls = []

    def closure():
        loss = cross_entropy(a(x), y)
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    for _ in range(3):
        assert opt.step(closure) == calls[-2]
    train_sam(b, SAM(b.parameters(), SGD, rho=0.3, lr=0.1), 3)
    assert_same_params(a, b)
    assert len(calls) == 6


def test_ssam_dense_norm_is_the_published_formula_over_a_run(backend):
    """Property 38 for SSAM with an injected mask: e = m * (rho g / ||g||)."""
    x, y = batch(dtype=torch.float64)
    ours, theirs = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    masks = [torch.rand(p.shape) < 0.5 for p in ours.parameters()]
    base = SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    opt = SSAM(ours.parameters(), SGD, rho=0.4, eps=1e-7, lr=0.1, momentum=0.9, backend=backend)
    opt.set_masks(masks)
    for _ in range(20):
        base.zero_grad()
        cross_entropy(theirs(x), y).backward()
        with torch.no_grad():
            old = [p.clone() for p in theirs.parameters()]
            scale = 0.4 / (norm_of([p.grad for p in theirs.parameters()]) + 1e-7)
            for p, m in zip(theirs.parameters(), masks, strict=True):
                p.add_(p.grad * scale * m)
        base.zero_grad()
        cross_entropy(theirs(x), y).backward()
        with torch.no_grad():
            for p, w in zip(theirs.parameters(), old, strict=True):
                p.copy_(w)
        base.step()
    train_double(ours, opt, x, y, 20)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def train_double(model, opt, x, y, steps):
    for _ in range(steps):
        cross_entropy(model(x), y).backward()
        opt.first_step(zero_grad=True)
        cross_entropy(model(x), y).backward()
        opt.second_step(zero_grad=True)
