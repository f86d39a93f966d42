"""MeZO: the published loop, several directions, groups, checkpoints (zero-order.md, 20 to 27)."""

import copy

import pytest
import torch
from optim_cases import assert_same_params, batch, bits, cross_entropy, mlp, through_disk
from sparse_optim import MeZO
from torch import nn
from torch.optim import SGD

from sparse_kernels import derive_key, zo_combine_
from sparse_kernels.reference import philox


def test_mezo_forwards_are_paired_and_advance_the_state_once():
    model = mlp(dropout=0.5)
    x, y = batch()
    opt = MeZO(model.parameters(), 0.0, 2, 1e-4, seed=1)
    torch.manual_seed(5)
    model(x)
    once = torch.get_rng_state()
    torch.manual_seed(5)
    opt.step(lambda: cross_entropy(model(x), y))
    assert torch.equal(torch.get_rng_state(), once)
    losses = opt.last_probe.losses
    assert float((losses - losses.mean()).abs().max()) < 5e-3


def test_mezo_statistics_advance_in_the_first_forward_only():
    model = mlp(norm=True)
    x, y = batch()
    opt = MeZO(model.parameters(), 1e-3, 2, seed=1, bn_modules=model)
    opt.step(lambda: cross_entropy(model(x), y))
    assert int(model[1].num_batches_tracked) == 1
    assert model[1].running_mean.any()


def test_property_25_mezo_resumes_bit_for_bit(backend):
    x, y = batch()
    a = mlp()
    opt = MeZO(a.parameters(), 1e-2, 2, seed=5, weight_decay=0.1, backend=backend)
    for _ in range(3):
        opt.step(lambda: cross_entropy(a(x), y))
    state, weights = through_disk(opt.state_dict()), through_disk(a.state_dict())
    b = mlp(seed=8)
    b.load_state_dict(weights)
    resumed = MeZO(b.parameters(), 1e-2, 2, seed=6, weight_decay=0.1, backend=backend)
    resumed.load_state_dict(state)
    twin, twin_opt = copy.deepcopy((a, opt))
    for model, o in ((a, opt), (b, resumed), (twin, twin_opt)):
        for _ in range(4):
            o.step(lambda model=model: cross_entropy(model(x), y))
    assert_same_params(a, b)
    assert_same_params(a, twin)
    assert not torch.equal(a[0].weight, weights["0.weight"])
    with pytest.raises(ValueError, match="not a checkpoint"):
        resumed.load_state_dict(SGD(b.parameters(), lr=0.1).state_dict())


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_property_27_mezo_follows_an_eager_loop(backend, decay, distribution):
    """q = 1, fp32: MeZO's published loop with the same z and an exact restore, over 50 steps."""
    x, y = batch()
    ours, theirs = mlp(), mlp()
    lr, delta = 0.05, 1e-2
    opt = MeZO(ours.parameters(), lr, 1, delta, distribution, decay, seed=3, backend=backend)
    for t in range(50):
        with torch.no_grad():
            old = [p.clone() for p in theirs.parameters()]
            z = [torch.zeros_like(w) for w in old]
            zo_combine_(z, [1.0], seed=derive_key(3, t), distribution=distribution, backend=backend)
            losses = []
            for sign in (1.0, -1.0):
                for p, w, u in zip(theirs.parameters(), old, z, strict=True):
                    p.copy_(w + sign * delta * u)
                losses.append(cross_entropy(theirs(x), y))
            c = (losses[0].double() - losses[1].double()) / (2 * delta)
            for p, w, u in zip(theirs.parameters(), old, z, strict=True):
                p.copy_((1 - lr * decay) * w - (lr * c).float() * u)
        mean = opt.step(lambda: cross_entropy(ours(x), y))
        torch.testing.assert_close(mean, (losses[0] + losses[1]) / 2, rtol=1e-6, atol=1e-6)
    a, b = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (ours, theirs))
    assert float((a - b).norm() / b.norm()) < 1e-6
    assert not torch.equal(ours[0].weight, mlp()[0].weight)


@pytest.mark.parametrize("masked", [False, True])
def test_property_27_several_directions_are_the_mean_of_single_updates(backend, masked):
    w = torch.randn(30, dtype=torch.float64)
    a = torch.randn(30, dtype=torch.float64)
    mask = [torch.arange(30) % 2 == 0] if masked else None
    p = nn.Parameter(w.clone())
    opt = MeZO([p], 0.1, 4, 1e-2, seed=3, weight_mask=mask, backend=backend)
    opt.step(lambda: a @ p + p.square().sum())
    probe = opt.last_probe
    key = probe.key
    z = torch.stack([philox.normal(key, 0, i, 0, 30).double() for i in range(4)])
    if masked:
        z = z * mask[0]
        assert torch.equal(bits(p)[~mask[0]], bits(w)[~mask[0]])
    updates = [w - 0.1 * (u @ (a + 2 * w)) * u for u in z]
    torch.testing.assert_close(p.detach(), torch.stack(updates).mean(0), rtol=1e-5, atol=1e-7)


def test_mezo_groups(backend):
    """lr and decay per group; a group with lr 0 keeps its bits."""
    a, b, c = (nn.Parameter(torch.randn(9)) for _ in range(3))
    with torch.no_grad():
        c[0] = -0.0
    start = [p.detach().clone() for p in (a, b, c)]
    groups = [
        {"params": [a], "weight_decay": 0.5},
        {"params": [b], "lr": 0.1},
        {"params": [c], "lr": 0.0},
    ]
    opt = MeZO(groups, lr=0.2, smoothing=0.01, seed=3, backend=backend)
    opt.step(lambda: a.sum() + b.sum() + c.sum())
    key = opt.last_probe.key
    z = [philox.normal(key, i, 0, 0, 9) for i in range(3)]
    slope = float(opt.last_probe.coef[0])
    assert slope == pytest.approx(float(sum(u.sum() for u in z)), rel=1e-3)
    torch.testing.assert_close(a.detach(), 0.9 * start[0] - 0.2 * slope * z[0])
    torch.testing.assert_close(b.detach(), start[1] - 0.1 * slope * z[1])
    assert torch.equal(bits(c), bits(start[2]))
