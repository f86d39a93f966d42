"""ZO-SAM and MeZO: masks, exact restore, exceptions, bad input (zero-order.md section 8)."""

import pytest
import torch
from optim_cases import (
    DTYPES,
    assert_same_bits,
    batch,
    bits,
    cross_entropy,
    directions,
    mlp,
    planted,
)
from sparse_optim import ZOSAM, MeZO, Phase
from sparse_optim.zeroth_order import name_uid
from torch import nn
from torch.optim import SGD, AdamW

DISTRIBUTIONS = ["normal", "rademacher"]


@pytest.mark.parametrize("ptype", DTYPES)
def test_property_13_masked_entries_are_not_touched(backend, ptype):
    p = nn.Parameter(torch.randn(64).to(ptype))
    mask = torch.arange(64) >= 8
    opt = ZOSAM([p], SGD, 0.5, 2, 0.05, seed=3, weight_mask=[mask], lr=0.1, backend=backend)
    assert not p.detach()[:8].any()  # weights that do not exist are 0
    with torch.no_grad():
        p[:8] = planted(ptype).detach()[:8]
    before, seen = bits(p), []

    def loss():
        assert torch.equal(bits(p)[:8], before[:8])
        assert (bits(p)[8:] != before[8:]).float().mean() > 0.9
        seen.append(p.detach()[8:].double().sum())
        return seen[-1]

    opt.probe(loss)
    assert torch.equal(bits(p)[:8], before[:8])
    assert len(seen) == 4
    opt.restore()
    assert torch.equal(bits(p), before)


def test_property_13_masked_equals_the_same_direction_renormalised(backend):
    a = torch.randn(90)
    mask = torch.rand(90) < 0.3
    p = nn.Parameter(torch.zeros(90))
    opt = ZOSAM([p], SGD, 0.5, seed=3, weight_mask=[mask], lr=0.1, backend=backend)
    opt.probe(lambda: a @ p)
    z = directions(opt.last_probe, 0, 90, 1)[0] * mask
    sign = torch.sign(a.double() @ z)
    torch.testing.assert_close(p.detach().double(), 0.5 * sign * z / z.norm(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ptype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("m", [1, 3])
def test_property_16_bits_survive_many_probes(backend, ptype, masked, m):
    p = planted(ptype)
    mask = [torch.arange(40) % 3 > 0] if masked else None
    opt = ZOSAM([p], SGD, 0.5, m, 0.05, "rademacher", 3, weight_mask=mask, lr=0.1, backend=backend)
    mezo = MeZO([p], 0.0, m, 0.05, seed=4, weight_mask=mask, weight_decay=0.1, backend=backend)
    before, pointer, script = bits(p), p.data_ptr(), iter(range(10**6))
    for _ in range(300 if backend == "auto" else 20):
        opt.probe(lambda: next(script))
        assert not torch.equal(bits(p), before)
        opt.restore()
        mezo.step(lambda: next(script))
    assert torch.equal(bits(p), before)
    assert p.data_ptr() == pointer


@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16, torch.float16])
def test_property_16_every_probe_point_is_rounded_once(ptype):
    """w - delta z is RN(w - RN(delta z)): no chain through w + delta z."""
    w = torch.randn(33).to(ptype)
    p = nn.Parameter(w.clone())
    points = []

    def loss():
        points.append(p.detach().clone())
        return float(len(points))

    opt = ZOSAM([p], SGD, 0.5, 2, 0.03, seed=3, lr=0.1, backend="reference")
    opt.probe(loss)
    z = directions(opt.last_probe, 0, 33, 2).float()
    step = torch.tensor(0.03)
    for i, point in enumerate(points):
        delta = (step if i % 2 == 0 else -step) * z[i // 2]
        assert_same_bits(point, (w.float() + delta).to(ptype))


@pytest.mark.parametrize("at", [1, 2, 4, "train"])
def test_property_17_an_exception_anywhere_restores(backend, at):
    model = mlp(norm=True)
    x, y = batch()
    opt = ZOSAM(model.parameters(), SGD, 0.5, 2, seed=3, bn_modules=model, lr=0.1, backend=backend)
    before = [bits(v) for v in model.state_dict().values()]
    pointers = [p.data_ptr() for p in model.parameters()]
    calls = []

    def loss():
        calls.append(1)
        if len(calls) == at:
            raise KeyError("in a probe")
        return cross_entropy(model(x), y)

    def train():
        opt.zero_grad()
        value = cross_entropy(model(x), y)
        value.backward()
        if at == "train":
            model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
            raise KeyError("in the closure")
        return value

    with pytest.raises(KeyError):
        opt.step(train, loss_closure=loss)
    assert opt.phase is Phase.IDLE
    names = list(model.state_dict())
    for name, b, v in zip(names, before, model.state_dict().values(), strict=True):
        if at != "train" or ("running" not in name and "tracked" not in name):
            assert torch.equal(bits(v), b), name
    opt.zero_grad()
    with opt.perturbed(lambda: cross_entropy(model(x), y)):
        cross_entropy(model(x), y).backward()
    assert opt.phase is Phase.RESTORED
    assert torch.equal(bits(model[0].weight), before[0])
    opt.step()
    assert not torch.equal(bits(model[0].weight), before[0])
    assert [p.data_ptr() for p in model.parameters()] == pointers


def test_property_17_a_second_probe_restores_first(backend):
    p = nn.Parameter(torch.zeros(20))
    opt = ZOSAM([p], SGD, 0.5, seed=3, lr=0.1, backend=backend)
    opt.probe(lambda: p.sum())
    first = p.detach().clone()
    opt.probe(lambda: p.sum())
    torch.testing.assert_close(float(p.detach().norm()), 0.5, rtol=1e-5, atol=0)
    assert not torch.equal(p.detach(), first)
    for call in (opt.state_dict, lambda: opt.set_weight_mask(None)):
        with pytest.raises(RuntimeError, match="perturbed"):
            call()
    opt.restore()
    assert not p.detach().any()


@pytest.mark.parametrize("m", [1, 3])
def test_property_18_forwards_and_backwards(m):
    model = mlp()
    x, y = batch()
    opt = ZOSAM(model.parameters(), SGD, 0.1, m, seed=1, lr=0.1)
    modes = []
    model.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))

    def train():
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    value = opt.step(train, loss_closure=lambda: cross_entropy(model(x), y))
    assert modes == [False] * (2 * m) + [True]
    assert float(value) > 0
    assert opt.last_probe.losses.shape == (m, 2)
    assert not opt.last_probe.losses.requires_grad
    assert opt.last_step_probes == 2 * m


def test_uids_names_and_bad_arguments():
    assert name_uid("layer1.0.conv1.weight") == 284984244
    model = mlp()
    named = ZOSAM(model.named_parameters(), SGD, seed=1, lr=0.1)
    uids = named._directions.uids
    assert uids[model[2].bias] == name_uid("2.bias")
    with pytest.raises(ValueError, match="distinct"):
        ZOSAM(model.parameters(), SGD, uids=[1, 2, 1, 4], lr=0.1)
    for options, word in (
        ({"rho": -0.1}, "rho"),
        ({"num_directions": 0}, "num_directions"),
        ({"smoothing": 0.0}, "smoothing"),
        ({"smoothing": float("inf")}, "smoothing"),
        ({"distribution": "cauchy"}, "distribution"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -1}, "seed"),
        ({"rng_rounds": 8}, "rng_rounds"),
        ({"interval": 0}, "interval"),
        ({"restore": "again"}, "restore"),
        ({"uids": [1]}, "uids"),
        ({"weight_mask": [None]}, "weight_mask"),
    ):
        with pytest.raises(ValueError, match=word):
            ZOSAM(model.parameters(), SGD, lr=0.1, **options)
    opt = ZOSAM(model.parameters(), AdamW, seed=1, lr=0.1)
    before = [bits(p) for p in model.parameters()]
    for bad in (lambda: torch.ones(2), lambda: None, lambda: "1"):
        with pytest.raises(ValueError, match="scalar"):
            opt.probe(bad)
    with pytest.raises(RuntimeError, match="loss_closure"):
        opt.step(lambda: None)
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(bits(p), b)
