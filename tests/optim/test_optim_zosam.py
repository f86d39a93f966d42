"""ZO-SAM: estimator, ascent, losses that fail, restore (zero-order.md section 8)."""

import math

import pytest
import torch
from optim_cases import DTYPES, assert_same_bits, batch, bits, cross_entropy, mlp, planted
from sparse_optim import ZOSAM, MeZO, Phase
from sparse_optim.zeroth_order import name_uid
from torch import nn
from torch.optim import SGD, AdamW

from sparse_kernels.reference import philox

DISTRIBUTIONS = ["normal", "rademacher"]


def directions(probe, uid, numel, m, distribution="normal", rounds=10):
    """z of one parameter in float64, [m, numel], by the reference stream."""
    key = torch.tensor(probe.key - 2**64 if probe.key >= 2**63 else probe.key)
    draw = philox.DISTRIBUTIONS[distribution]
    return torch.stack([draw(key, uid, i, 0, numel, rounds).double() for i in range(m)])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_property_1_coefficients_of_a_linear_loss(backend, distribution, smoothing):
    a = torch.randn(40, dtype=torch.float64)
    p = nn.Parameter(torch.randn(40, dtype=torch.float64))
    mask = torch.rand(40) < 0.6
    opt = ZOSAM([p], SGD, 0.3, 3, smoothing, distribution, 11, weight_mask=[mask], lr=0.1,
                backend=backend)  # fmt: skip
    opt.probe(lambda: a @ p)
    z = directions(opt.last_probe, 0, 40, 3, distribution) * mask
    delta = smoothing or 0.3 / math.sqrt(int(mask.sum()))
    assert opt.last_probe.smoothing == pytest.approx(delta)
    torch.testing.assert_close(opt.last_probe.coef, z @ a, rtol=1e-6, atol=1e-7)


def test_property_1_quadratic_has_no_bias_and_cubic_is_second_order():
    p = nn.Parameter(torch.full((6,), 0.7, dtype=torch.float64))

    def coef(loss, delta):
        opt = ZOSAM([p], SGD, 0.1, 1, delta, seed=5, lr=0.1, backend="reference")
        opt.probe(loss)
        z = directions(opt.last_probe, 0, 6, 1)[0]
        opt.restore()
        return float(opt.last_probe.coef[0]), z

    for delta in (1e-2, 0.5):
        c, z = coef(lambda: p.square().sum(), delta)
        assert c == pytest.approx(float(2 * 0.7 * z.sum()), rel=1e-9)
    errors = []
    for delta in (0.1, 0.2):
        c, z = coef(lambda: p.pow(3).sum(), delta)
        errors.append(c - float(3 * 0.49 * z.sum()))
    assert errors[1] / errors[0] == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_property_1_the_estimate_is_unbiased(distribution):
    """10^4 directions: the mean within 4 standard errors of a, E||g||^2 likewise."""
    d, q, steps = 8, 25, 400
    a = torch.linspace(-1, 1, d, dtype=torch.float64)
    p = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    opt = MeZO([p], lr=1.0, num_directions=q, smoothing=0.1, distribution=distribution, seed=3)
    estimates = []
    for _ in range(steps):
        with torch.no_grad():
            p.zero_()
        opt.step(lambda: a @ p)
        estimates.append(-p.detach().clone())
    g = torch.stack(estimates)
    spread = g.std(0) / math.sqrt(steps)
    assert ((g.mean(0) - a).abs() < 4 * spread).all()
    squares = g.square().sum(1)
    offset = 1 if distribution == "normal" else -1
    expected = (d + q + offset) / q * float(a.square().sum())
    assert abs(float(squares.mean()) - expected) < 4 * float(squares.std()) / math.sqrt(steps)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("m", [1, 3])
def test_property_3_the_ascent_depends_on_signs_and_ratios_only(backend, m, distribution):
    a = torch.randn(50)
    seen = {}
    for k in (1.0, 4.0, -1.0):
        p = nn.Parameter(torch.zeros(50))  # w+ is then e itself
        opt = ZOSAM([p], SGD, 0.3, m, 0.01, distribution, 7, lr=0.1, backend=backend)
        opt.probe(lambda k=k, p=p: k * (a @ p))
        seen[k] = p.detach().clone()
    assert_same_bits(seen[1.0], seen[4.0])
    assert torch.equal(seen[-1.0], -seen[1.0])
    if m == 1:
        z = directions(opt.last_probe, 0, 50, 1, distribution)[0]
        sign = torch.sign(a.double() @ z)
        expected = 0.3 * sign * z / z.norm()
        torch.testing.assert_close(seen[1.0].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("smoothing", [None, 1e-3])
def test_property_4_length(backend, m, distribution, smoothing):
    params = [nn.Parameter(torch.zeros(300, 7)), nn.Parameter(torch.zeros(13))]
    params.append(nn.Parameter(torch.zeros(11, dtype=torch.float64)))  # a second dtype
    targets = [torch.randn(p.shape, dtype=p.dtype) for p in params]
    masks = [torch.rand(300, 7) < 0.5, None, torch.arange(11) < 6]
    opt = ZOSAM(params, SGD, 0.7, m, smoothing, distribution, 1, weight_mask=masks, lr=0.1,
                backend=backend)  # fmt: skip
    assert opt.num_active == int(masks[0].sum()) + 13 + 6

    def loss():
        return sum((p * t).sum().double() for p, t in zip(params, targets, strict=True))

    opt.probe(loss)
    e = torch.cat([p.detach().double().reshape(-1) for p in params])
    torch.testing.assert_close(float(e.norm()), 0.7, rtol=1e-5, atol=0)
    assert not params[0].detach()[~masks[0]].any()


@pytest.mark.parametrize("m", [1, 4])
def test_property_4_cosine_with_the_gradient(m):
    d, trials = 400, 300
    a = torch.randn(d)
    p = nn.Parameter(torch.zeros(d))
    opt = ZOSAM([p], SGD, 1.0, m, 0.01, seed=2, lr=0.1)
    cosines = []
    for _ in range(trials):
        opt.probe(lambda: a @ p)
        cosines.append(float(a @ p.detach() / (a.norm() * p.detach().norm())))
    cosines = torch.tensor(cosines)
    expected = math.sqrt(2 / d) * math.gamma((m + 1) / 2) / math.gamma(m / 2)
    assert abs(float(cosines.mean()) - expected) < 4 * float(cosines.std()) / math.sqrt(trials)


@pytest.mark.parametrize("m", [1, 3])
def test_property_5_uphill_on_a_convex_quadratic(backend, m):
    q = torch.randn(12, 12, dtype=torch.float64)
    q = q @ q.T
    w = torch.randn(12, dtype=torch.float64)
    p = nn.Parameter(w.clone())

    def loss():
        return 0.5 * p @ q @ p

    start = float(loss().detach())
    opt = ZOSAM([p], SGD, 0.1, m, 1e-3, seed=9, lr=0.1, backend=backend)
    for _ in range(40):
        opt.probe(loss)
        assert float(loss().detach()) > start
    opt.restore()
    assert torch.equal(p.detach(), w)
    descent = MeZO([p], lr=1e-4, num_directions=m, seed=9, backend=backend)
    for _ in range(60):
        descent.step(loss)
    assert float(loss().detach()) < start


@pytest.mark.parametrize("values", [(1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf")),
                                    (float("-inf"), float("inf"))])  # fmt: skip
@pytest.mark.parametrize("m", [1, 2])
def test_property_6_ties_and_losses_that_are_not_finite(backend, values, m):
    start = torch.randn(30)
    p = nn.Parameter(start.clone())
    opt = ZOSAM([p], SGD, 0.5, m, seed=1, lr=0.1, backend=backend)
    script = iter(values + ((3.0, 2.0) if m == 2 else ()))
    opt.probe(lambda: next(script))
    tie = values[0] == values[1]
    assert (int(opt.ties), int(opt.nonfinite)) == (int(tie), int(not tie))
    assert float(opt.last_probe.coef[0]) == 0.0
    if m == 1:
        assert torch.equal(p.detach(), start)  # a plain base step
    else:
        z = directions(opt.last_probe, 0, 30, 2)[1]
        torch.testing.assert_close(
            (p.detach() - start).double(), 0.5 * z / z.norm(), rtol=0, atol=1e-6
        )
    p.grad = torch.ones(30)
    opt.step()
    assert_same_bits(p.detach(), start - 0.1 * torch.ones(30))
    script = iter(values + ((3.0, 2.0) if m == 2 else ()))
    before = p.detach().clone()
    mezo = MeZO([p], lr=0.1, num_directions=m, seed=1, backend=backend)
    mezo.step(lambda: next(script))
    assert torch.equal(p.detach(), before) == (m == 1)
    assert p.isfinite().all()


def test_huge_slopes_do_not_overflow(backend):
    p = nn.Parameter(torch.zeros(20))
    opt = ZOSAM([p], SGD, 0.5, 2, 1e-30, seed=1, lr=0.1, backend=backend)
    script = iter([3e38, -3e38, 1e38, 2e38])
    opt.probe(lambda: torch.tensor(next(script)))
    torch.testing.assert_close(float(p.detach().norm()), 0.5, rtol=1e-5, atol=0)
    opt.restore()
    mezo = MeZO([p], lr=1.0, smoothing=1e-30, seed=1, backend=backend)
    script = iter([3e38, -3e38])
    mezo.step(lambda: next(script))
    assert p.isfinite().all()


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
        ({"restore": "replay"}, "restore"),
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
