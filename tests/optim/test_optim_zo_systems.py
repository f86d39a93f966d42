"""ZO-SAM and MeZO in a training program (zero-order.md section 8, properties 19 to 27)."""

import copy

import pytest
import torch
from optim_cases import assert_same_params, batch, cross_entropy, mlp, through_disk
from sparse_optim import ZOSAM
from torch import nn
from torch.optim import SGD, Adam, AdamW

from sparse_kernels.reference import philox


def train(model, opt, steps=5, **forward):
    x, y = batch()
    for _ in range(steps):
        opt.probe(lambda: cross_entropy(model(x), y))
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
    return model


def train_base(model, opt, steps=5):
    x, y = batch()
    for _ in range(steps):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
    return model


@pytest.mark.parametrize("off", ["rho", "interval"])
def test_property_19_switched_off_it_is_the_base(backend, off):
    a, b = mlp(dropout=0.3), mlp(dropout=0.3)
    torch.manual_seed(3)
    train_base(a, AdamW(a.parameters(), lr=0.05), 4)
    opt = ZOSAM(b.parameters(), AdamW, 0.0 if off == "rho" else 0.5, seed=1, lr=0.05,
                interval=1 if off == "rho" else 10, backend=backend)  # fmt: skip
    opt._steps = 1  # an interval's first step probes
    torch.manual_seed(3)
    train(b, opt, 4)
    assert_same_params(a, b)
    assert opt.probe_count == 0


def test_interval_probes_every_kth_step():
    model = mlp()
    opt = ZOSAM(model.parameters(), SGD, 0.1, seed=1, interval=3, lr=0.1)
    counts = []
    for _ in range(7):
        train(model, opt, 1)
        counts.append(opt.last_step_probes)
    assert counts == [2, 0, 0, 2, 0, 0, 2]


@pytest.mark.parametrize("pair", [True, False])
def test_property_19_and_21_random_states(backend, pair):
    """Probes share one dropout mask, and the training forward draws what it would have drawn."""
    model = mlp(dropout=0.5)
    x, y = batch()
    opt = ZOSAM(model.parameters(), SGD, 0.1, 2, 1e-4, seed=1, pair_rng=pair, lr=0.0,
                backend=backend)  # fmt: skip
    torch.manual_seed(5)
    cross_entropy(model(x), y).backward()
    after_plain, plain = torch.get_rng_state(), model[0].weight.grad.clone()
    torch.manual_seed(5)
    losses = opt.probe(lambda: cross_entropy(model(x), y))
    opt.restore()
    opt.zero_grad()
    cross_entropy(model(x), y).backward()
    assert (losses[:, 0] != losses[:, 1]).all()
    same = torch.equal(torch.get_rng_state(), after_plain)
    assert same == pair
    assert torch.equal(model[0].weight.grad, plain) == pair
    # at delta = 1e-4 paired losses agree to about 1e-3; with other masks they do not
    gaps = (losses[:, 0] - losses[:, 1]).abs().max()
    assert (float(gaps) < 5e-3) == pair


class Counting(nn.Module):
    """A normalisation layer of the user's own, with statistics under its own names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("centre", torch.zeros(9))

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)  # reassigns its buffer
        return x - x.mean(0)


@pytest.mark.parametrize("layer", [
    lambda: nn.BatchNorm1d(9),
    lambda: nn.Sequential(nn.Unflatten(1, (3, 3)), nn.InstanceNorm1d(3, track_running_stats=True),
                          nn.Flatten()),
    Counting,
], ids=["batch", "instance", "custom"])  # fmt: skip
@pytest.mark.parametrize("m", [1, 2])
def test_property_20_statistics_advance_once(backend, layer, m):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 9), layer(), nn.Linear(9, 3))
    x, y = batch()
    opt = ZOSAM(model.parameters(), SGD, 0.1, m, seed=1, bn_modules=[model[1]], lr=0.1,
                backend=backend)  # fmt: skip
    start = {k: v.clone() for k, v in model[1].named_buffers()}
    weight = model[0].weight.detach().clone()
    opt.probe(lambda: cross_entropy(model(x), y))
    for k, v in model[1].named_buffers():
        assert torch.equal(v, start[k]), k
    assert not torch.equal(model[0].weight, weight)
    twin = copy.deepcopy(model)  # stands at w + e
    twin(x)
    cross_entropy(model(x), y).backward()
    opt.step()
    changed = False
    for k, v in model[1].named_buffers():
        assert torch.equal(v, twin[1].get_buffer(k)), k
        changed |= not torch.equal(v, start[k])
    assert changed


@pytest.mark.parametrize(("base", "options"), [
    (SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    (SGD, {"momentum": 0.9, "foreach": True}),
    (AdamW, {}),
    (Adam, {"fused": True}),
])  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_property_22_the_base_sees_the_masked_gradient_of_the_perturbed_point(
    backend, base, options, masked
):
    def close(a, b):  # SGD fused with the restore has torch's bits, Adam rounds elsewhere
        exact = base is SGD
        torch.testing.assert_close(a, b, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-7)

    model, other = mlp(), mlp()
    x, y = batch()
    masks = [torch.rand(p.shape) < 0.6 for p in model.parameters()] if masked else None
    opt = ZOSAM(model.parameters(), base, 0.5, 2, seed=1, weight_mask=masks, lr=0.05,
                backend=backend, **options)  # fmt: skip
    other.load_state_dict(model.state_dict())
    plain = base(other.parameters(), lr=0.05, **options)
    for _ in range(4):
        opt.probe(lambda: cross_entropy(model(x), y))
        moved = copy.deepcopy(model)
        grads = torch.autograd.grad(cross_entropy(moved(x), y), moved.parameters())
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.mask_grads_()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
        for i, (p, g) in enumerate(zip(other.parameters(), grads, strict=True)):
            p.grad = g.clone() if masks is None else g * masks[i]
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        plain.step()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            close(p, q)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert set(opt.state[p]) == set(plain.state[q])
        for k, v in plain.state[q].items():
            close(torch.as_tensor(opt.state[p][k]), torch.as_tensor(v))
    assert not torch.equal(model[0].weight, mlp()[0].weight)
    if masked:
        for p, m in zip(model.parameters(), masks, strict=True):
            assert not p.detach()[~m].any()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("overflow", [None, 0, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_property_22_loss_scaling(unscale, overflow, fused):
    a, b = mlp(), mlp()
    x, y = batch()
    opts = [
        ZOSAM(m.parameters(), SGD, 0.2, seed=1, lr=0.1, momentum=0.9, fused=fused) for m in (a, b)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for i in range(4):
        for model, opt, scaled in ((a, opts[0], False), (b, opts[1], True)):
            opt.probe(lambda model=model: cross_entropy(model(x), y))
            opt.zero_grad()
            loss = cross_entropy(model(x), y)
            if not scaled:
                loss.backward()
                if i == overflow:
                    opt.restore()
                else:
                    opt.step()
                continue
            scaler.scale(loss).backward()
            if i == overflow:
                model[0].bias.grad[0] = float("inf")
            if unscale:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
            assert opt.phase == "idle"
    assert_same_params(a, b)
    assert int(opts[1].skipped_steps) == (overflow is not None)


def test_property_23_accumulation_under_one_perturbation(backend):
    """Gradients of two half batches at a fixed e add up to the whole batch's."""
    a, b = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    x, y = batch(dtype=torch.float64)
    halves = [(x[:8], y[:8]), (x[8:], y[8:])]
    for model, parts in ((a, [(x, y)]), (b, halves)):
        opt = ZOSAM(model.parameters(), SGD, 0.5, seed=1, lr=0.1, backend=backend)
        opt.probe(lambda model=model: cross_entropy(model(x), y))
        for u, v in parts:
            (cross_entropy(model(u), v) / len(parts)).backward()
        opt.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("masked", [False, True])
def test_property_25_resuming_continues_bit_for_bit(backend, distribution, masked):
    def make(model, seed):
        masks = [torch.arange(p.numel()).reshape(p.shape) % 4 > 0 for p in model.parameters()]
        return ZOSAM(model.named_parameters(), AdamW, 0.3, 2, None, distribution, seed, interval=2,
                     weight_mask=masks if masked else None, lr=0.05, backend=backend)  # fmt: skip

    a = mlp()
    opt = make(a, 5)
    train(a, opt, 3)
    state, weights = through_disk(opt.state_dict()), through_disk(a.state_dict())
    twin, twin_opt = copy.deepcopy((a, opt))
    train(a, opt, 4)
    b = mlp(seed=8)
    resumed = make(b, 6)
    b.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(b, resumed, 4)
    train(twin, twin_opt, 4)
    assert_same_params(a, b)
    assert_same_params(a, twin)
    assert resumed.last_probe.key == opt.last_probe.key
    assert resumed.probe_count == opt.probe_count == 4
    assert resumed.weight_mask == opt.weight_mask


def test_property_26_a_mask_that_changes_between_steps(backend):
    model = mlp()
    x, y = batch()
    opt = ZOSAM(model.parameters(), SGD, 0.5, seed=1, lr=0.1, momentum=0.9, backend=backend)
    train(model, opt, 2)
    w = model[0].weight
    first = [torch.ones(p.shape, dtype=torch.bool) for p in model.parameters()]
    second = copy.deepcopy(first)
    first[0][:, :3] = False
    second[0][:, 3:] = False

    def loss():
        assert not w.detach()[~mask[0]].any()
        return cross_entropy(model(x), y)

    for mask in (first, second):
        opt.set_weight_mask(mask)
        born = mask is second
        if born:
            assert not w.detach()[:, :3].any()  # grown weights start at 0, without momentum
            assert not opt.state[w]["momentum_buffer"][:, :3].any()
        for _ in range(3):
            opt.probe(loss)
            assert w.detach()[mask[0]].all()  # perturbed from this probe on
            opt.zero_grad()
            loss().backward()
            opt.step()
            assert not w.detach()[~mask[0]].any()
    opt.set_weight_mask(None)
    opt.probe(lambda: cross_entropy(model(x), y))
    assert w.detach().all()


def test_zosam_groups_share_the_norm_and_scale_their_part(backend):
    a, b, c = (nn.Parameter(torch.zeros(20)) for _ in range(3))
    target = torch.randn(20)
    groups = [{"params": [a]}, {"params": [b], "rho": 0.1}, {"params": [c], "rho": 0.0}]
    opt = ZOSAM(groups, SGD, 0.4, seed=3, lr=0.1, backend=backend)
    opt.probe(lambda: (a + b + c) @ target)
    key = opt.last_probe.key
    z = [philox.normal(key, i, 0, 0, 20) for i in range(2)]
    unit = torch.cat(z).norm()
    assert a.detach().any()
    sign = torch.sign(opt.last_probe.coef[0]).float()
    torch.testing.assert_close(a.detach(), sign * 0.4 * z[0] / unit, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(b.detach(), sign * 0.1 * z[1] / unit, rtol=1e-5, atol=1e-7)
    assert not c.detach().any()
    assert opt.num_active == 40


def test_16_bit_weights_that_swallow_the_probe_warn_once():
    p = nn.Parameter(torch.ones(4000).bfloat16())
    opt = ZOSAM([p], SGD, 0.05, seed=1, smoothing=1e-4, lr=0.1)
    with pytest.warns(UserWarning, match="rounding to torch.bfloat16"):
        opt.probe(lambda: p.float().sum())
    opt.probe(lambda: p.float().sum())  # warnings are errors: a second one would fail here


def test_autocast_with_the_default_smoothing_warns_once():
    p = nn.Parameter(torch.ones(40))
    opt = ZOSAM([p], SGD, 0.05, seed=1, lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(UserWarning, match="autocast"):
            opt.probe(lambda: p.sum())
        opt.probe(lambda: p.sum())
