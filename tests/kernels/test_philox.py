"""The random stream: known answers, statistics, and independence of everything but its name.

Known answers: Random123 ``tests/kat_vectors`` and docs/random-stream.md.
"""

from __future__ import annotations

import itertools
import math
import random

import numpy
import pytest
import torch

import sparse_kernels as sk
from sparse_kernels.reference import philox
from sparse_kernels.testing import (
    SMALL_CASES,
    Target,
    assert_bit_equal,
    make_list,
    make_masks,
    ulp_of,
)

KEY = 0xE998CDE3B83FA088  # K(0123456789abcdef, 1)

PHILOX_VECTORS = [
    (10, "00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
    (7, "00000000 " * 4, "00000000 " * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff " * 4, "ffffffff " * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "4dfccaba 190a87f0 c47362ba b6b5242a"),
]  # fmt: skip

# (uid, direction, block), words, bits of the reference's normals of elements 4 block ... + 3
STREAM_VECTORS = [
    ((0, 0, 0), "9ceb7d37 b4b47da5 71e2a86b 0b0f7634", "be8aa366 bf739cc8 3f9cf329 3eaebce1"),
    ((7, 0, 0), "91fbdabd bd7d416d 7809f4ac e18e2183", "bd85ad0f bf876881 3f6720a1 bf561fb2"),
    ((7, 0, 1), "3e2acb47 e699d839 a707b801 2915fbec", "3faed950 bf7b71c7 3efc4abf 3f482368"),
    ((7, 1, 0), "b54b1536 cfa4f1d1 8965e455 82c2cc8a", "3e9f5531 bf452edb bf8e787d bd9ab4b2"),
    ((7, 0, 2**32), "a623bbf3 79ccf15e 04129a0e 9905450f", "bf6b4d47 3e1053b8 c016875d bfd4419b"),
]  # fmt: skip


def hexes(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def key_tensor(key: int = KEY, device: str = "cpu") -> torch.Tensor:
    return torch.tensor(key - 2**64 if key >= 2**63 else key, dtype=torch.int64, device=device)


def draw(target, count, uid=0, direction=0, key=KEY, rounds=10, distribution="normal"):
    """The fp32 direction itself, through the public operation: 0 + 1 * z."""
    z = torch.zeros(count, device=target.device)
    sk.zo_combine_(
        [z], [1.0], seed=key, directions=[direction], uids=[uid], rounds=rounds,
        distribution=distribution, backend=target.backend,
    )  # fmt: skip
    return z


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), PHILOX_VECTORS)
def test_philox_known_answers(rounds, counter, key, expected):
    words = philox.philox4x32(tuple(hexes(counter)), tuple(hexes(key)), rounds)
    assert words == tuple(hexes(expected))
    tensors = [torch.tensor(w, dtype=torch.int64) for w in (*hexes(counter), *hexes(key))]
    words = philox.philox4x32(tuple(tensors[:4]), tuple(tensors[4:]), rounds)
    assert [int(w) for w in words] == hexes(expected)


def test_key_known_answers():
    seed = 0x0123456789ABCDEF
    assert sk.derive_key(0, 0) == 0xFA3BFCDDCC97CEF4
    assert sk.derive_key(0, 1) == 0xD21390A983D2A8FC
    assert sk.derive_key(seed, 1) == KEY
    assert sk.derive_key(seed, 2**32) == 0x2A39E64F2816C275
    assert sk.derive_key(seed, 1, stream=1) == 0x4F20662EE3ADE5D8


def test_keys_differ_by_seed_step_and_stream():
    keys = [
        sk.derive_key(seed, step, stream)
        for seed in (0, 1, 2**63, 2**64 - 1)
        for step in (0, 1, 2**32 - 1, 2**32, 2**64 - 1)
        for stream in (0, 1, 0x80000000)
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= k < 2**64 for k in keys)


@pytest.mark.parametrize(("name", "words", "normals"), STREAM_VECTORS)
def test_stream_known_answers(name, words, normals):
    uid, direction, block = name
    got = philox.words(key_tensor(), uid, direction, torch.tensor([block]), 10)
    assert got[0].tolist() == hexes(words)
    z = philox.normal(key_tensor(), uid, direction, 4 * block, 4)
    assert [b & 0xFFFFFFFF for b in z.view(torch.int32).tolist()] == hexes(normals)


def test_seven_rounds_known_answer():
    got = philox.words(key_tensor(), 7, 0, torch.tensor([0]), 7)
    assert got[0].tolist() == hexes("f357a559 528dd76f 3068399a 491c29a1")


def test_sign_known_answers(target):
    expected = [{"+": 1.0, "-": -1.0}[c] for c in "-+----+-+-+--+--"]
    assert draw(target, 16, uid=7, distribution="rademacher").tolist() == expected


@pytest.mark.parametrize("rounds", [7, 10])
def test_signs_equal_the_reference(twin, rounds):
    for uid, direction in [(0, 0), (2**32 - 1, 2**32 - 2), (5, 1)]:
        got = draw(twin, 70001, uid, direction, rounds=rounds, distribution="rademacher")
        want = philox.rademacher(key_tensor(), uid, direction, 0, 70001, rounds)
        assert_bit_equal(got, want, "z")


def within_ulps_of_reference(got, want, ulps=4):
    error = (got.cpu().double() - want.double()).abs() / ulp_of(want, torch.float32)
    assert float(error.max()) <= ulps, f"{float(error.max())} ulp at {int(error.argmax())}"


@pytest.mark.parametrize("rounds", [7, 10])
def test_normals_lie_within_4_ulp_of_the_reference(twin, rounds):
    # 2^22 draws in total; 4 ulp is the contract of the portable transform
    for direction in range(4):
        got = draw(twin, 2**20, 3, direction, rounds=rounds)
        want = philox.normal(key_tensor(), 3, direction, 0, 2**20, rounds)
        within_ulps_of_reference(got, want)


def test_box_muller_at_the_ends_of_its_words():
    edges = sorted({v % 2**32 for e in (0, 2**29, 2**30, 2**31, 3 * 2**29, 3 * 2**30)
                    for v in (e - 1, e, e + 1)})  # fmt: skip
    a, b = torch.tensor(list(itertools.product(edges, edges))).unbind(1)
    even, odd = philox.box_muller(a, b)
    for z in (even, odd):
        assert z.isfinite().all()
        assert z.abs().max() <= 6.7638
    top = a == 2**32 - 1  # u = 1: radius 0
    assert (even[top] == 0).all()
    assert (odd[top] == 0).all()
    # on the axes the other lane is exactly 0, not a residue of the angle
    assert (odd[b == 0] == 0).all()
    assert (even[b == 2**30] == 0).all()
    bottom = (a == 0) & (b == 0)
    assert float(even[bottom]) == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-7)


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_moments_to_fourth_order(target, distribution):
    n = 2**24 if target.backend in ("cpp", "cuda") else 2**20
    z = draw(target, n, uid=11, direction=5, distribution=distribution).double().cpu()
    moments = {"normal": (0, 1, 0, 3, 0, 15, 0, 105), "rademacher": (0, 1) * 4}[distribution]
    for k in range(1, 5):
        variance = moments[2 * k - 1] - moments[k - 1] ** 2
        assert abs(float((z**k).mean()) - moments[k - 1]) <= 5 * math.sqrt(variance / n), k
    assert z.abs().max() <= 6.7638


def test_kolmogorov_smirnov(target):
    n = 2**22 if target.backend in ("cpp", "cuda") else 2**20
    z = draw(target, n, uid=2).double().cpu().sort().values
    cdf = 0.5 * torch.erfc(-z / math.sqrt(2))
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max(float((cdf - steps[:-1]).max()), float((steps[1:] - cdf).max()))
    # P(sqrt(n) D > x) = 2 exp(-2 x^2) to leading order; 5 sigma, 5.7e-7, is x = 2.74
    assert math.sqrt(n) * distance <= 2.74


def correlation(x, y):
    return float((x.double() * y.double()).mean()) * math.sqrt(x.numel())


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_no_correlation_between_names(target, distribution):
    """Lags, directions, parameters and steps; each a standard normal under independence."""
    n = 2**18

    def z(**name):
        return draw(target, n, distribution=distribution, **name)

    base = z(uid=1, direction=1)
    others = [z(uid=1, direction=0), z(uid=1, direction=2), z(uid=0, direction=1),
              z(uid=2, direction=1), z(uid=1, direction=1, rounds=7)]  # fmt: skip
    others += [z(uid=1, direction=1, key=sk.derive_key(0x0123456789ABCDEF, t)) for t in (0, 2, 3)]
    others += [z(uid=1, direction=1, key=KEY ^ (1 << bit)) for bit in (0, 31, 32, 63)]
    for i, other in enumerate(others):
        assert abs(correlation(base, other)) <= 5, i
    for lag in (1, 2, 3, 4, 5, 8, 32, 64, 128, 256, 2048):
        assert abs(correlation(base[lag:], base[:-lag])) <= 5, lag
        if distribution == "normal":  # pairs share a radius: their squares must not
            squares = (base.square() - 1) / math.sqrt(2)
            assert abs(correlation(squares[lag:], squares[:-lag])) <= 5, lag


def test_no_counter_is_used_twice(monkeypatch):
    """The words' counters as the reference builds them, over parameters, directions and blocks."""
    seen: list[tuple] = []
    original = philox.philox4x32

    def record(counter, key, rounds=10):
        blocks = counter[0].tolist()
        columns = [torch.as_tensor(c).expand(len(blocks)).tolist() for c in counter]
        seen.extend(zip(*columns, strict=True))
        return original(counter, key, rounds)

    monkeypatch.setattr(philox, "philox4x32", record)
    tensors = [torch.zeros(n) for n in (1, 4, 5, 130, 1000)]
    for distribution in ("normal", "rademacher"):
        seen.clear()
        sk.zo_combine_(
            tensors, [1.0, 2.0, 3.0], seed=KEY, directions=[4, 0, 9], uids=[3, 1, 2, 7, 2**32 - 1],
            distribution=distribution, backend="reference",
        )  # fmt: skip
        per_block = 4 if distribution == "normal" else 128
        assert len(seen) == 3 * sum(-(-t.numel() // per_block) for t in tensors)
        assert len(set(seen)) == len(seen)
        assert {direction for *_, direction in seen} == {4, 0, 9}
    reserved = philox.KDF_DIRECTION
    with pytest.raises(ValueError, match=r"directions\[0\]"):
        sk.zo_combine_(tensors, [1.0], seed=KEY, directions=[reserved])


def test_blocks_beyond_32_bits_without_their_memory():
    far = [2**32 - 1, 2**32, 2**33 + 5, 2**61]
    words = philox.words(key_tensor(), 7, 0, torch.tensor(far), 10)
    assert len({tuple(w) for w in words.tolist()}) == len(far)
    near = philox.words(key_tensor(), 7, 0, torch.tensor([b % 2**32 for b in far]), 10)
    assert [bool((w == n).all()) for w, n in zip(words, near, strict=True)] == [
        b < 2**32 for b in far
    ]
    assert words[1].tolist() == hexes(STREAM_VECTORS[-1][1])
    # elements: a window that straddles block 2^32, and one in the middle of it
    z = philox.normal(key_tensor(), 7, 0, 4 * 2**32 - 2, 6)
    assert_bit_equal(z[2:], philox.normal(key_tensor(), 7, 0, 4 * 2**32, 4), "z")
    bits = philox.sign_bits(key_tensor(), 7, 0, 128 * 2**32 + 3, 40)
    assert torch.equal(bits, philox.sign_bits(key_tensor(), 7, 0, 128 * 2**32, 128)[3:43])


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_window_of_a_direction_is_part_of_it(distribution):
    function = philox.DISTRIBUTIONS[distribution]
    whole = function(key_tensor(), 1, 2, 0, 600)
    for first in (0, 1, 2, 3, 4, 5, 31, 32, 33, 127, 128, 129):
        assert_bit_equal(function(key_tensor(), 1, 2, first, 300), whole[first : first + 300], "z")


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_prefix_does_not_depend_on_length(target, distribution):
    whole = draw(target, 140000, distribution=distribution)
    for count in (1, 2, 3, 5, 127, 129, 255, 257, 4095, 65535, 65537):
        assert_bit_equal(draw(target, count, distribution=distribution), whole[:count], "z")


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("case", [*SMALL_CASES, "channels-last", "chunk-edges"])
def test_direction_depends_on_its_name_alone(target, case, distribution):
    """Not on list order, strides, alignment, mask or threads; n is the row-major index."""

    def zeros():
        return [t.zero_() for t in make_list(case, device=target.device)]

    tensors = zeros()
    uids = [17 * i + 3 for i in range(len(tensors))]
    arguments = {"seed": KEY, "distribution": distribution, "backend": target.backend}
    sk.zo_combine_(tensors, [1.0], uids=uids, **arguments)
    for t, uid in zip(tensors, uids, strict=True):
        expected = draw(target, t.numel(), uid, distribution=distribution)
        assert_bit_equal(t.reshape(-1), expected, "z")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        again = zeros()
        sk.zo_combine_(again[::-1], [1.0], uids=uids[::-1], **arguments)
        assert_bit_equal(again, tensors, "reversed list")
    masked = zeros()
    keep = make_masks(masked, 0.5, seed=1)
    sk.zo_combine_(masked, [1.0], uids=uids, mask=sk.pack_mask(keep), **arguments)
    expected = [torch.where(k, t, torch.zeros_like(t)) for t, k in zip(tensors, keep, strict=True)]
    assert_bit_equal(masked, expected, "masked")


def numpy_state():
    return numpy.random.get_state()[1].tolist()  # noqa: NPY002  # the global one is meant


def test_global_random_state_is_neither_read_nor_written(target):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    others = random.getstate(), numpy_state()
    first = draw(target, 100)
    assert torch.equal(torch.get_rng_state(), before)
    assert (random.getstate(), numpy_state()) == others
    torch.manual_seed(2)
    random.seed(2)
    assert_bit_equal(draw(target, 100), first, "z")


def test_targets_with_the_portable_transform_agree_bit_by_bit(twin):
    if twin.backend not in ("cpp", "cuda"):
        within_ulps_of_reference(draw(twin, 1000), philox.normal(key_tensor(), 0, 0, 0, 1000))
    elif "cpp" in sk.available_backends():
        expected = draw(Target("cpp", "cpu"), 2**18 + 3, uid=9)
        assert_bit_equal(draw(twin, 2**18 + 3, uid=9), expected, "z")
