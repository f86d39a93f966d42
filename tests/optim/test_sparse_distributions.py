"""Live counts per layer (sparse-sam.md section 5, property 32)."""

import doctest
import math
import random
from fractions import Fraction

import pytest
from sparse_optim import layer_counts, live_count
from sparse_optim.sparse_training import distributions
from sparse_optim.sparse_training.distributions import apportion

SPARSITIES = [0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0]
RESNET = {
    "conv1": (16, 3, 3, 3),
    "block1": (16, 16, 3, 3),
    "block2": (32, 16, 3, 3),
    "shortcut": (32, 16, 1, 1),
    "block3": (32, 32, 3, 3),
    "twin": (32, 32, 3, 3),
    "fc": (10, 32),
}


def shares_oracle(shapes, kernel):
    if kernel:
        return {n: Fraction(sum(s), math.prod(s)) for n, s in shapes.items()}
    return {n: Fraction(s[0] + s[1], s[0] * s[1]) for n, s in shapes.items()}


def densities_oracle(shapes, total, kernel):
    """google-research/rigl: solve for eps, make the densest layer dense, solve again."""
    raw = shares_oracle(shapes, kernel)
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    dense = set()
    while len(dense) < len(shapes):
        free = [n for n in shapes if n not in dense]
        left = total - sum(sizes[n] for n in dense)
        eps = left / sum(raw[n] * sizes[n] for n in free)
        worst = max(free, key=lambda n: raw[n])
        if eps * raw[worst] <= 1:
            return {n: Fraction(1) if n in dense else eps * raw[n] for n in shapes}
        dense.add(worst)
    return dict.fromkeys(shapes, Fraction(1))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("distribution", ["er", "erk"])
def test_property_32_densities_and_exact_totals(distribution, sparsity):
    sizes = {n: math.prod(s) for n, s in RESNET.items()}
    total = live_count(sum(sizes.values()), sparsity)
    counts = layer_counts(RESNET, sparsity, distribution)
    assert list(counts) == list(RESNET)
    assert sum(counts.values()) == total
    wanted = densities_oracle(RESNET, total, distribution == "erk")
    for name, k in counts.items():
        assert 0 <= k <= sizes[name]
        assert abs(k - wanted[name] * sizes[name]) < 1
        if wanted[name] == 1:
            assert k == sizes[name]


def test_property_32_layers_above_one_are_dense_and_solved_again():
    """Clamping without solving again (trap 22) would lose weights here."""
    sizes = {n: math.prod(s) for n, s in RESNET.items()}
    raw = shares_oracle(RESNET, True)
    total = live_count(sum(sizes.values()), 0.5)
    eps = total / sum(raw[n] * sizes[n] for n in RESNET)
    clamped = sum(min(eps * raw[n], 1) * sizes[n] for n in RESNET)
    assert clamped < total - 100
    counts = layer_counts(RESNET, 0.5)
    assert sum(counts.values()) == total
    assert {n for n, k in counts.items() if k == sizes[n]} >= {"conv1", "shortcut", "fc"}


@pytest.mark.parametrize("distribution", ["er", "erk", "uniform"])
def test_property_32_the_order_of_the_layers_does_not_matter(distribution):
    draw = random.Random(4)
    for case in range(40):
        kernels = [(), (3,), (3, 3), (1, 5)]
        shapes = {
            f"layer{i}": (draw.randint(1, 40), draw.randint(1, 40), *draw.choice(kernels))
            for i in range(6)
        }
        shapes["twin a"] = shapes["twin b"] = shapes["layer3"]  # equal remainders
        names = list(shapes)
        draw.shuffle(names)
        sparsity = draw.random()
        first = layer_counts(shapes, sparsity, distribution, first_dense=False)
        other = layer_counts(
            {n: shapes[n] for n in names}, sparsity, distribution, first_dense=False
        )
        assert first == other, case
        if distribution != "uniform":
            numel = sum(math.prod(s) for s in shapes.values())
            assert sum(first.values()) == live_count(numel, sparsity)


def test_er_leaves_the_kernel_out_and_equals_erk_on_matrices():
    assert layer_counts(RESNET, 0.9, "er") != layer_counts(RESNET, 0.9, "erk")
    flat = {n: s[:2] for n, s in RESNET.items()}
    assert layer_counts(flat, 0.9, "er") == layer_counts(flat, 0.9, "erk")


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_uniform_leaves_the_first_layer_dense_unless_told(sparsity):
    published = layer_counts(RESNET, sparsity, "uniform")
    everywhere = layer_counts(RESNET, sparsity, "uniform", first_dense=False)
    for name, shape in RESNET.items():
        k = live_count(math.prod(shape), sparsity)
        assert everywhere[name] == k
        assert published[name] == (432 if name == "conv1" else k)


def test_dense_layers_are_not_counted():
    rest = {n: s for n, s in RESNET.items() if n not in ("conv1", "fc")}
    named = {f"{n}.weight": s for n, s in RESNET.items()}
    counts = layer_counts(named, 0.8, dense_layers=["fc", "conv1.weight"])
    assert counts["fc.weight"] == 320
    assert counts["conv1.weight"] == 432
    assert {n: counts[f"{n}.weight"] for n in rest} == layer_counts(rest, 0.8)


def test_apportion_passes_overflow_on():
    for seed in range(200):
        draw = random.Random(seed)
        n = draw.randint(1, 6)
        shares = [draw.choice([0, 1, 1, 5, 50]) for _ in range(n)]
        room = [draw.choice([0, 1, 7, 40]) for _ in range(n)]
        total = draw.randint(0, sum(room))
        parts = apportion(total, shares, room, [str(i) for i in range(n)])
        assert sum(parts) == total
        assert all(0 <= p <= r for p, r in zip(parts, room, strict=True))
        open_ = [i for i in range(n) if parts[i] < room[i] and shares[i]]
        # places with room hold the same multiple of their share, but for one of rounding
        for i in open_:
            for j in range(n):
                if shares[j] and j != i:
                    assert (parts[j] - 1) * shares[i] < (parts[i] + 1) * shares[j]
        if any(p for p, s in zip(parts, shares, strict=True) if not s):
            assert not open_  # the others come last


def test_bad_input_is_refused_by_name():
    for wrong, word in (
        ({"sparsity": 1.1}, "sparsity"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"distribution": "power"}, "distribution"),
        ({"dense_layers": ["nothing"]}, "dense_layers.*'nothing'"),
        ({"dense_layers": "fc"}, "dense_layers must be a list"),
    ):
        with pytest.raises(ValueError, match=word):
            layer_counts(RESNET, **{"sparsity": 0.9, **wrong})
    with pytest.raises(ValueError, match="'bias' has fewer than two"):
        layer_counts({"bias": (3,)}, 0.5)


def test_docstring_examples():
    assert doctest.testmod(distributions).failed == 0
