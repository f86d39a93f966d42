"""SparseFlops and sparse_init_ (bregman.md sections 5 and 7, properties M8, N5, N14)."""

import math

import pytest
import torch
from optim_cases import batch, cross_entropy, mlp
from sparse_optim import (
    SAM,
    ZOSAM,
    AdaBreg,
    LinBreg,
    MeZO,
    SparseFlops,
    bregman_param_groups,
    sparse_init_,
    training_flops_ratio,
)
from torch import nn
from torch.optim import SGD


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4), nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(1), nn.Linear(4 * 6 * 6, 10, bias=False),
    )  # fmt: skip


def test_shapes_from_one_forward_without_side_effects():
    model = conv_net()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flops = SparseFlops(model, torch.randn(5, 3, 8, 8), SGD(model.parameters(), lr=0.1))
    uses = {layer.name: layer.uses for layer in flops.layers}
    assert uses == {"0.weight": 64, "3.weight": 9, "4.weight": 9, "6.weight": 1}
    macs = 64 * 8 * 27 + 9 * 8 * 2 * 9 + 9 * 8 * 4 * 4 + 1440
    assert flops.dense_forward == 2 * macs
    assert model.training
    assert not model[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    linear = nn.Linear(6, 4)
    tokens = SparseFlops(linear, torch.randn(2, 7, 6), SGD(linear.parameters(), lr=0.1))
    assert tokens.layers[0].uses == 7
    with pytest.raises(ValueError, match="no linear or convolution"):
        SparseFlops(nn.ReLU(), torch.ones(2, 3), SGD(linear.parameters(), lr=0.1))


@pytest.mark.parametrize("m", [0, 4])
@pytest.mark.parametrize("cls", [LinBreg, AdaBreg])
def test_m8_every_step_is_counted_at_its_own_density(cls, m):
    model = mlp()
    sparse_init_(model, 0.2)
    opt = cls(bregman_param_groups(model, lam=0.01), lr=0.05, coarse_steps=m)
    x, y = batch()
    flops = SparseFlops(model, x, opt)
    weights = [model[0].weight, model[2].weight]
    dense = 2.0 * sum(w.numel() for w in weights)
    expected, densities, active = 0.0, set(), None
    for t in range(23):
        c = t % (m + 1)
        if c < m and c == 0:  # before the first step the support is that of the weights
            active = 2.0 * sum(int((w != 0).sum()) for w in weights)
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
        flops.step(samples=16, seconds=0.5)
        live = 2.0 * sum(int((w != 0).sum()) for w in weights)
        densities.add(live / dense)
        expected += 16 * (2 * live + (active if c < m else dense))
    report = flops.report()
    assert report["theoretical_flops"] == expected
    assert report["dense_flops"] == 3 * dense * 16 * 23
    assert report["theoretical_percent"] == pytest.approx(100 * expected / report["dense_flops"])
    assert (report["steps"], report["coarse_steps"]) == (
        23,
        sum(t % (m + 1) < m for t in range(23)),
    )
    assert report["density"] == live / dense
    assert report["measured"] == 11.5
    assert len(densities) > 2
    assert report["layers"]["0.weight"]["live"] == int((weights[0] != 0).sum())
    issued = 16 * 23 * (3 * dense - 2.0 * weights[0].numel())
    assert report["issued_flops"] == issued


def test_m8_constant_density_gives_the_formula():
    """lr 0 keeps the support: the counter equals (3 m rho + 2 rho + 1) / (3 (m + 1))."""
    model = mlp()
    realised = sparse_init_(model, 0.25, unit_floor=False)
    opt = LinBreg(bregman_param_groups(model, lam=0.1), lr=0.0, coarse_steps=9)
    x, y = batch()
    flops = SparseFlops(model, x, opt)
    for _ in range(20):
        cross_entropy(model(x), y).backward()
        opt.step()
        flops.step(16)
    rho = (54 * realised["0.weight"] + 27 * realised["2.weight"]) / 81
    assert flops.report()["density"] == pytest.approx(rho)
    ratio = flops.report()["theoretical_percent"] / 100
    assert ratio == pytest.approx(training_flops_ratio(rho, 9))
    assert ratio == pytest.approx((27 * rho + 2 * rho + 1) / 30)


def test_costs_of_the_other_optimizers():
    x, y = batch()

    def percent(make, run):
        model = mlp()
        opt = make(model)
        flops = SparseFlops(model, x, opt)
        run(model, opt)
        flops.step(16)
        assert flops.report()["measured"] == "not measured"
        return flops.report()["theoretical_percent"]

    def backward(model):
        cross_entropy(model(x), y).backward()

    def plain(model, opt):
        backward(model)
        opt.step()

    def sam(model, opt):
        backward(model)
        opt.first_step()
        backward(model)
        opt.second_step()

    def zo(model, opt):
        opt.probe(lambda: cross_entropy(model(x), y))
        backward(model)
        opt.step()

    half = [torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for p in mlp().parameters()]
    rho = (27 + 14) / 81
    cases = (
        (lambda m: SGD(m.parameters(), lr=0.1), plain, 100),
        (lambda m: LinBreg(m.parameters(), lr=0.1), plain, 100),  # nothing is regularised
        (lambda m: SAM(m.parameters(), SGD, lr=0.1), sam, 200),
        (lambda m: ZOSAM(m.parameters(), SGD, seed=1, lr=0.1), zo, 500 / 3),
        (lambda m: ZOSAM(m.parameters(), SGD, 0.0, seed=1, lr=0.1), zo, 100),
        (lambda m: ZOSAM(m.parameters(), SGD, seed=1, weight_mask=half, lr=0.1), zo, rho * 500 / 3),
        (
            lambda m: MeZO(m.parameters(), num_directions=3, seed=1),
            lambda m, o: o.step(lambda: cross_entropy(m(x), y)),
            200,
        ),
    )
    for make, run, expected in cases:
        assert percent(make, run) == pytest.approx(expected)


def test_n14_multiply_adds_of_cifar_resnet_18():
    """Shares of section 7: 11,164,352 weights and 555.4 M multiply-adds, from hooks."""

    class Block(nn.Module):
        def __init__(self, a, b, stride):
            super().__init__()
            self.one = nn.Conv2d(a, b, 3, stride, 1, bias=False)
            self.two = nn.Conv2d(b, b, 3, 1, 1, bias=False)
            self.short = nn.Conv2d(a, b, 1, stride, bias=False) if a != b else nn.Identity()

        def forward(self, x):
            return self.two(self.one(x)) + self.short(x)

    widths = [64, 64, 128, 256, 512]
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False)]
    for i in range(4):
        a, b = widths[i], widths[i + 1]
        layers += [Block(a, b, 1 if i == 0 else 2), Block(b, b, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    flops = SparseFlops(model, torch.zeros(1, 3, 32, 32), SGD(model.parameters(), lr=0.1))
    assert sum(layer.weight.numel() for layer in flops.layers) == 11_164_352
    assert flops.dense_forward / 2e6 == pytest.approx(555.4, abs=0.05)
    share, count = [0.0] * 5, [0.0] * 5
    for layer in flops.layers:
        block = int(layer.name.split(".")[0])
        part = 0 if block == 0 else min((block + 1) // 2, 4)
        if block < 9:
            share[part] += 100 * layer.dense / flops.dense_forward
            count[part] += 100 * layer.weight.numel() / 11_164_352
    assert [round(s, 1) for s in share] == [0.3, 27.2, 24.2, 24.2, 24.2]
    assert [round(c, 1) for c in count] == [0.0, 1.3, 4.7, 18.8, 75.1]


@pytest.mark.parametrize("density", [0.01, 0.1])
def test_n5_variance_is_preserved(density):
    """Var(W x) of Kaiming weights is 2 for unit inputs, within 5 %."""
    model = nn.Linear(2000, 2000)
    generator = torch.Generator().manual_seed(4)
    realised = sparse_init_(model, density, generator=generator)
    assert realised == {"weight": density}
    assert int((model.weight != 0).sum()) == round(density * 4_000_000)
    with torch.no_grad():
        out = torch.randn(64, 2000, generator=generator) @ model.weight.T
    assert float(out.var()) == pytest.approx(2.0, rel=0.05)


def test_sparse_init_counts_floors_gain_and_biases():
    def fresh(**options):
        model = conv_net()
        bias = model[0].bias.detach().clone()
        generator = torch.Generator().manual_seed(4)
        return model, bias, sparse_init_(model, 0.02, generator=generator, **options)

    model, old, realised = fresh()
    sizes = {
        "0.weight": (216, 8),
        "3.weight": (144, 8),
        "4.weight": (128, 4),
        "6.weight": (1440, 10),
    }
    for name, (numel, n_out) in sizes.items():
        keep = max(math.floor(0.02 * numel + 0.5), n_out)
        assert realised[name] == keep / numel
        weight = model.get_parameter(name)
        assert int((weight != 0).sum()) == keep
        dead = weight.detach()[weight.detach() == 0]
        assert not torch.signbit(dead).any()
    bound = 1 / math.sqrt(27)
    assert (model[0].bias >= 0).all()
    assert (model[0].bias <= bound).all()
    assert not torch.equal(model[0].bias.detach(), old)
    assert model[1].weight.detach().eq(1).all()

    _, _, free = fresh(unit_floor=False)
    assert free["0.weight"] == 4 / 216
    dense, _, floor = fresh(min_density=0.5)
    assert floor["6.weight"] == 0.5
    kept, old, _ = fresh(biases=False)
    assert torch.equal(kept[0].bias.detach(), old)
    louder, _, _ = fresh(gain=2.0)
    torch.testing.assert_close(louder[6].weight.detach(), 2 * model[6].weight.detach())
    for bad in ({"density": 0.0}, {"density": 1.1}, {"gain": 0.0}, {"min_density": 2.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            sparse_init_(dense, **{"density": 0.5, **bad})
