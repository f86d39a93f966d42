"""The log of keys and coefficients: trained weights and perturbations made again from it."""

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, mlp, through_disk
from sparse_optim import ZOSAM, MeZO
from sparse_optim.zeroth_order import ReplayLog
from torch import nn
from torch.optim import SGD


def train(model, opt, steps, x, y):
    for _ in range(steps):
        opt.step(lambda: cross_entropy(model(x).float(), y))


def assert_replays(log, start, model, backend):
    again = [p.clone() for p in start]
    log.replay_(again, backend=backend)
    for a, p in zip(again, model.parameters(), strict=True):
        assert_same_bits(a, p.detach())
    assert any(not torch.equal(a, s) for a, s in zip(again, start, strict=True))


@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("distribution", ["normal", "rademacher", "sphere"])
def test_property_25_the_log_rebuilds_the_trained_weights(backend, ptype, q, distribution):
    """Several groups, decay, a changing learning rate and mask; through a file; bit for bit."""
    x, y = batch(dtype=ptype)
    model = mlp(dtype=ptype)
    start = [p.detach().clone() for p in model.parameters()]
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    groups = [{"params": first}, {"params": second, "lr": 0.01, "weight_decay": 0.0}]
    opt = MeZO(groups, 0.05, q, 0.05, distribution, 0.1, seed=3, replay_log=True, backend=backend)
    train(model, opt, 3, x, y)
    masks = [torch.arange(p.numel()).reshape(p.shape) % 4 == 0 for p in model.parameters()]
    opt.set_weight_mask(masks)
    train(model, opt, 3, x, y)
    for group, lr in zip(opt.param_groups, (0.0, 0.02), strict=True):
        group["lr"] = lr
    opt.set_weight_mask(None)
    train(model, opt, 3, x, y)
    log = opt.replay_log
    assert len(log) == 9
    assert log.coefs.shape == (9, q)
    assert len(log._settings) == 3
    assert_replays(log, start, model, backend)
    loaded = ReplayLog.from_state(through_disk(log.state_dict()))
    assert_replays(loaded, start, model, backend)
    half = [p.clone() for p in start]
    loaded.replay_(half, 3, backend)
    rest = [p.clone() for p in start]
    loaded.replay_(rest, 0, backend)
    assert all(torch.equal(a, b) for a, b in zip(rest, start, strict=True))
    assert not torch.equal(half[0], rest[0])


def test_a_step_takes_twelve_bytes_and_eight_per_direction():
    model = mlp()
    x, y = batch()
    opt = MeZO(model.parameters(), 0.01, 2, seed=3, replay_log=True)
    train(model, opt, 2500, x, y)  # more than are joined at a time
    state = opt.replay_log.state_dict()
    stored = sum(state[k].numel() * state[k].element_size() for k in ("keys", "coefs", "which"))
    assert stored == 2500 * (8 + 2 * 8 + 4)
    assert len(opt.replay_log._keys) < 1025
    assert_replays(opt.replay_log, [p.detach() for p in mlp().parameters()], model, None)


def test_masters_are_rebuilt(backend):
    x, y = batch()
    model = mlp().bfloat16()
    masters = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    start = [p.detach().clone() for p in masters]
    opt = MeZO(masters, 0.01, 2, 0.05, seed=3, live=list(model.parameters()), replay_log=True,
               backend=backend)  # fmt: skip
    train(model, opt, 4, x.bfloat16(), y)
    opt.replay_log.replay_(start, backend=backend)
    for a, p in zip(start, masters, strict=True):
        assert_same_bits(a, p.detach())


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("distribution", ["normal", "sphere"])
def test_property_25_the_log_rebuilds_every_perturbation(backend, m, distribution):
    """Two radii, a mask, and steps between probes; e as it stood in the weights."""
    model = mlp(dtype=torch.float64)
    x, y = batch(dtype=torch.float64)
    params = list(model.parameters())
    groups = [{"params": params[:2]}, {"params": params[2:], "rho": 0.02}]
    opt = ZOSAM(groups, SGD, 0.3, m, distribution=distribution, seed=3, interval=2, lr=0.1,
                replay_log=True, backend=backend)  # fmt: skip
    opt.set_masks([torch.rand(p.shape) < 0.7 for p in params])
    seen = []
    for _ in range(5):
        before = [p.detach().clone() for p in params]
        losses = opt.probe(lambda: cross_entropy(model(x), y))
        if len(losses):
            seen.append([p.detach() - b for p, b in zip(params, before, strict=True)])
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
    log = ReplayLog.from_state(through_disk(opt.replay_log.state_dict()))
    assert len(log) == len(seen) == 3
    for i, moves in enumerate(seen):
        for e, found in zip(moves, log.perturbation(i, params, backend), strict=True):
            torch.testing.assert_close(found, e, rtol=1e-7, atol=1e-9)
    assert params[0].requires_grad
    with pytest.raises(IndexError):
        log.perturbation(3, params)


def test_logs_that_do_not_fit():
    model = mlp()
    x, y = batch()
    opt = MeZO(model.parameters(), 0.1, seed=3, replay_log=True)
    train(model, opt, 2, x, y)
    log = opt.replay_log
    with pytest.raises(ValueError, match="4 parameters, got 1"):
        log.replay_([torch.zeros(3)])
    with pytest.raises(ValueError, match="steps"):
        log.replay_(list(model.parameters()), 3)
    with pytest.raises(ValueError, match="version"):
        ReplayLog.from_state({"version": 0})
    assert MeZO(model.parameters(), 0.1).replay_log is None
