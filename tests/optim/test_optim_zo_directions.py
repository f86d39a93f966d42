"""Sphere and coordinate directions, rounds, keys on the device (zero-order.md 2.4, 4.4)."""

import math

import pytest
import torch
from optim_cases import assert_same_bits, batch, bits, cross_entropy, directions, mlp, through_disk
from sparse_optim import SAM, ZOSAM, MeZO
from torch import nn
from torch.optim import SGD

from sparse_kernels import derive_key


def flat(params):
    return torch.cat([p.detach().double().reshape(-1) for p in params])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("m", [1, 3])
def test_sphere_directions_have_the_length_of_a_sphere(backend, m, masked):
    """Every probe point lies at delta sqrt(d) from w, and slopes are those along the scaled z."""
    a = torch.randn(70, dtype=torch.float64)
    p = nn.Parameter(torch.randn(70, dtype=torch.float64))
    mask = torch.arange(70) % 5 < 2 if masked else torch.ones(70, dtype=torch.bool)
    opt = ZOSAM([p], SGD, 0.4, m, 0.01, "sphere", 9, weight_mask=[mask], lr=0.1, backend=backend)
    start, points = p.detach().clone(), []

    def loss():
        points.append(p.detach() - start)
        return a @ p

    opt.probe(loss)
    d = int(mask.sum())
    for point in points:
        assert float(point.norm()) == pytest.approx(0.01 * math.sqrt(d), rel=1e-6)
    z = directions(opt.last_probe, 0, 70, m) * mask
    z = z * (math.sqrt(d) / z.norm(dim=1, keepdim=True))
    torch.testing.assert_close(opt.last_probe.coef, z @ a, rtol=1e-6, atol=1e-7)
    e = p.detach() - start
    assert float(e.norm()) == pytest.approx(0.4, rel=1e-5)
    torch.testing.assert_close(e / 0.4, (lambda g: g / g.norm())((z @ a) @ z), rtol=1e-5, atol=1e-6)


def test_sphere_estimate_of_mezo_is_unbiased():
    """Mean of the estimate, and its square as for signs: (d + q - 1) / q."""
    d, q, steps = 8, 25, 400
    a = torch.linspace(-1, 1, d, dtype=torch.float64)
    p = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    opt = MeZO([p], lr=1.0, num_directions=q, smoothing=0.1, distribution="sphere", seed=3)
    estimates = []
    for _ in range(steps):
        with torch.no_grad():
            p.zero_()
        opt.step(lambda: a @ p)
        estimates.append(-p.detach().clone())
    g = torch.stack(estimates)
    assert ((g.mean(0) - a).abs() < 4 * g.std(0) / math.sqrt(steps)).all()
    squares = g.square().sum(1)
    expected = (d + q - 1) / q * float(a.square().sum())
    assert abs(float(squares.mean()) - expected) < 4 * float(squares.std()) / math.sqrt(steps)


def test_sphere_with_one_direction_is_the_normal_one_rescaled(backend):
    """The ascent of one direction does not depend on its length."""
    a = torch.randn(50)
    seen = []
    for distribution in ("normal", "sphere"):
        p = nn.Parameter(torch.zeros(50))
        opt = ZOSAM([p], SGD, 0.3, 1, 0.01, distribution, 7, lr=0.1, backend=backend)
        opt.probe(lambda p=p: a @ p)
        seen.append(p.detach().clone())
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_property_2_all_coordinates_reproduce_the_ascent_of_sam(masked):
    x, y = batch(dtype=torch.float64)
    ours, theirs = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    masks = None
    if masked:
        masks = [torch.rand(p.shape) < 0.4 for p in ours.parameters()]
    d = (
        sum(p.numel() for p in ours.parameters())
        if masks is None
        else sum(int(m.sum()) for m in masks)
    )
    sam = SAM(theirs.parameters(), SGD, rho=0.2, weight_mask=masks, lr=0.1)
    cross_entropy(theirs(x), y).backward()
    opt = ZOSAM(ours.parameters(), SGD, 0.2, d, 1e-5, "coordinate", 1, weight_mask=masks, lr=0.1)
    w = flat(ours.parameters())
    sam.first_step()
    opt.probe(lambda: cross_entropy(ours(x), y))
    e, expected = flat(ours.parameters()) - w, flat(theirs.parameters()) - w
    assert float(expected.norm()) == pytest.approx(0.2, rel=1e-9)
    assert float((e - expected).norm() / expected.norm()) < 1e-6
    opt.restore()
    assert torch.equal(flat(ours.parameters()), w)


def test_coordinates_make_mezo_gradient_descent():
    """The estimate over all coordinates is a sum, so a step is that of SGD with decay."""
    p = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    w, a = p.detach().clone(), torch.randn(3, 4, dtype=torch.float64)
    keep = torch.rand(3, 4) < 0.5
    keep[0, 0], keep[0, 1] = True, False
    opt = MeZO([p], 0.1, int(keep.sum()), 1e-3, "coordinate", 0.5, weight_mask=[keep])
    opt.step(lambda: (a * p).sum() + p.square().sum())
    expected = torch.where(keep, 0.95 * w - 0.1 * (a + 2 * w), w)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-11)


def test_coordinates_are_ordered_by_uid_and_index():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    opt = ZOSAM([a, b], SGD, 0.1, 4, 0.5, "coordinate", uids=[7, 3], lr=0.1)
    seen = []
    opt.probe(lambda: seen.append(flat([a, b])) or 0.0)
    up = torch.stack(seen[::2]) / 0.5
    expected = torch.eye(4, dtype=torch.float64)[[2, 3, 0, 1]]  # b has the smaller uid
    torch.testing.assert_close(up, expected)


def test_coordinates_that_do_not_fit_are_refused():
    p = nn.Parameter(torch.zeros(5))
    for options, word in (
        ({"smoothing": None}, "smoothing"),
        ({"restore": "replay"}, "restore='exact'"),
        ({"replay_log": True}, "replay_log"),
    ):
        given = {"num_directions": 5, "smoothing": 0.1, "distribution": "coordinate", **options}
        with pytest.raises(ValueError, match=word):
            ZOSAM([p], SGD, lr=0.1, **given)
    opt = ZOSAM([p], SGD, num_directions=4, smoothing=0.1, distribution="coordinate", lr=0.1)
    with pytest.raises(ValueError, match="there are 5, num_directions is 4"):
        opt.probe(lambda: 0.0)
    large = nn.Parameter(torch.zeros(4097))
    opt = ZOSAM([large], SGD, num_directions=4097, smoothing=0.1, distribution="coordinate", lr=0.1)
    with pytest.raises(ValueError, match="4096"):
        opt.probe(lambda: 0.0)


@pytest.mark.parametrize("rounds", [7, 10])
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_rounds_name_another_stream(backend, rounds, distribution):
    p = nn.Parameter(torch.zeros(300))
    opt = ZOSAM([p], SGD, 0.3, 1, 0.5, distribution, 7, rng_rounds=rounds, lr=0.1, backend=backend)
    seen = []
    opt.probe(lambda: seen.append(p.detach().clone()) or 0.0)
    z = directions(opt.last_probe, 0, 300, 1, distribution, rounds)[0]
    torch.testing.assert_close(seen[0].double(), 0.5 * z, rtol=1e-6, atol=1e-7)
    other = directions(opt.last_probe, 0, 300, 1, distribution, 17 - rounds)[0]
    assert not torch.allclose(seen[0].double(), 0.5 * other, atol=0.1)


def test_keys_are_those_of_seed_and_counter(backend):
    p = nn.Parameter(torch.zeros(4))
    seed = 2**63 + 5
    opt = ZOSAM([p], SGD, 0.3, seed=seed, lr=0.1, backend=backend)
    for t in range(3):
        opt.probe(lambda: 0.0)
        assert int(opt.last_probe.key) % 2**64 == derive_key(seed, t)
        assert int(opt.last_probe.step) == t
    assert (opt.probe_count, opt.seed) == (3, seed)
    opt.restore()
    state = through_disk(opt.state_dict())
    assert state["sparse_optim"]["directions"]["seed"] == seed
    last = torch.tensor(2**32 - 1)
    opt._directions.counter.copy_(last)
    opt.probe(lambda: 0.0)
    assert int(opt.last_probe.key) % 2**64 == derive_key(seed, 2**32 - 1)
    assert opt.probe_count == 2**32


def test_loading_another_transform_warns():
    p = nn.Parameter(torch.zeros(4))
    fast = MeZO([p], 0.1, seed=1, rng_math="fast")
    state = through_disk(fast.state_dict())
    with pytest.warns(UserWarning, match="rng_math='fast'"):
        MeZO([p], 0.1, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="rng_math"):
        MeZO([p], 0.1, rng_math="exact")


def test_a_step_does_not_depend_on_where_parameters_stand_in_the_list(backend):
    """Same names, another order: the same numbers for each."""
    x, y = batch()
    weights = {}
    for turn in (1, -1):
        model = mlp()
        opt = MeZO(list(model.named_parameters())[::turn], 1e-2, 2, seed=5, backend=backend)
        opt.step(lambda model=model: cross_entropy(model(x), y))
        weights[turn] = dict(model.named_parameters())
    for name, w in weights[1].items():
        assert_same_bits(w.detach(), weights[-1][name].detach())
    assert not torch.equal(bits(weights[1]["0.weight"]), bits(mlp()[0].weight))
