"""csrc/core on its own: known answers of the random stream, conversions, chunk plans."""

from __future__ import annotations

import bisect
import math
import random

import pytest
import torch

from sparse_kernels.reference import philox as reference

CHUNK = 65536
K = 0xE998CDE3B83FA088  # the step key of the known answers


def hex_words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


# rounds, counter, key, output: random123's kat_vectors
PHILOX = [
    (10, "0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        10,
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
    (7, "0 0 0 0", "0 0", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff " * 4, "ffffffff " * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (
        7,
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "4dfccaba 190a87f0 c47362ba b6b5242a",
    ),
]

# (uid, direction, block), words, normals as fp32 bit patterns, all under the key K
STREAM = [
    ((0, 0, 0), "9ceb7d37 b4b47da5 71e2a86b 0b0f7634", "be8aa366 bf739cc8 3f9cf329 3eaebce1"),
    ((7, 0, 0), "91fbdabd bd7d416d 7809f4ac e18e2183", "bd85ad0f bf876881 3f6720a1 bf561fb2"),
    ((7, 0, 1), "3e2acb47 e699d839 a707b801 2915fbec", "3faed950 bf7b71c7 3efc4abf 3f482368"),
    ((7, 1, 0), "b54b1536 cfa4f1d1 8965e455 82c2cc8a", "3e9f5531 bf452edb bf8e787d bd9ab4b2"),
    ((7, 0, 2**32), "a623bbf3 79ccf15e 04129a0e 9905450f", "bf6b4d47 3e1053b8 c016875d bfd4419b"),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), PHILOX)
def test_philox_known_answers(core, rounds, counter, key, expected):
    c, k = hex_words(counter), hex_words(key)
    out = core.philox(c[0] | c[1] << 32, c[2], c[3], k[0] | k[1] << 32, rounds)
    assert out == hex_words(expected)


@pytest.mark.parametrize("rounds", [7, 10])
@pytest.mark.parametrize("block", [0, 77, 2**32 - 29, 2**32, 2**64 - 32])
def test_many_calls_equal_single_calls(core, rounds, block):
    uid, direction, calls = 2**32 - 1, 5, 3 * core.philox_group
    words = torch.zeros(core.philox_ways, 4 * calls, dtype=torch.int32)
    draw = {7: core.philox_7_by_way, 10: core.philox_10_by_way}[rounds]
    ways = draw(block, uid, direction, K, calls, words.data_ptr())
    assert ways >= 2
    blocks = [(block + j) % 2**64 for j in range(calls)]
    expected = [w for b in blocks for w in core.philox(b, uid, direction, K, rounds)]
    for way in words[:ways]:
        assert (way.long() % 2**32).tolist() == expected


def box_muller(core, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of normals from int64 tensors of 32-bit words."""
    words = [(x - (x >= 2**31).long() * 2**32).int().contiguous() for x in (a, b)]
    even, odd = torch.empty(a.numel()), torch.empty(a.numel())
    core.box_muller(
        words[0].data_ptr(), words[1].data_ptr(), a.numel(), even.data_ptr(), odd.data_ptr()
    )
    return even, odd


def ordered(x: torch.Tensor) -> torch.Tensor:
    """fp32 values as integers whose difference counts ulps."""
    bits = x.view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@pytest.mark.parametrize(("where", "words", "normals"), STREAM)
def test_stream_known_answers(core, where, words, normals):
    uid, direction, block = where
    out = core.philox(block, uid, direction, K, 10)
    assert out == hex_words(words)
    low = box_muller(core, torch.tensor(out[:1]), torch.tensor(out[1:2]))
    high = box_muller(core, torch.tensor(out[2:3]), torch.tensor(out[3:]))
    z = torch.cat([*low, *high])
    expected = torch.tensor([x - 2**32 * (x >> 31) for x in hex_words(normals)])
    expected = expected.int().view(torch.float32)
    assert int((ordered(z) - ordered(expected)).abs().max()) <= 4


def test_signs_known_answer(core):
    word = core.philox(0, 7, 0, K, 10)[0]
    signs = "".join("-" if word >> i & 1 else "+" for i in range(16))
    assert signs == "-+----+-+-+--+--"


def test_seven_rounds_of_the_stream(core):
    assert core.philox(0, 7, 0, K, 7) == hex_words("f357a559 528dd76f 3068399a 491c29a1")


def test_normals_stay_within_4_ulp(core):
    generator = torch.Generator().manual_seed(0)
    extreme = [0, 1, 2**32 - 1]
    extreme += [2**n + d for n in (29, 30, 31) for d in (-1, 0, 1)]
    grid = torch.cartesian_prod(torch.tensor(extreme), torch.tensor(extreme))
    drawn = torch.randint(0, 2**32, (1_000_000, 2), generator=generator)
    a, b = torch.cat([grid, drawn]).unbind(1)
    for ours, wanted in zip(box_muller(core, a, b), reference.box_muller(a, b), strict=True):
        assert bool(ours.isfinite().all())
        # zero on an axis may come with either sign
        ulps = (ordered(ours) - ordered(wanted)).abs()
        worst = int(ulps.argmax())
        assert int(ulps[worst]) <= 4, (int(a[worst]), int(b[worst]), ours[worst], wanted[worst])


HALVES = [("f16", torch.float16), ("bf16", torch.bfloat16)]


def same_bits(ours: torch.Tensor, wanted: torch.Tensor, kind: torch.dtype) -> bool:
    """Equal bits; any NaN equals any NaN."""
    nan = wanted.isnan()
    return torch.equal(ours.isnan(), nan) and torch.equal(
        ours.view(kind)[~nan], wanted.view(kind)[~nan]
    )


@pytest.mark.parametrize(("name", "half"), HALVES)
def test_widening_of_all_codes(core, name, half):
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    out = torch.empty(codes.numel())
    getattr(core, f"{name}_to_float")(codes.data_ptr(), codes.numel(), out.data_ptr())
    assert same_bits(out, codes.view(half).float(), torch.int32)


@pytest.mark.parametrize(("name", "half"), HALVES)
def test_rounding(core, name, half):
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (1_000_000,), generator=generator).int()
    # every code, the middle between it and its neighbour, and one ulp to either side of that
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(half).float()
    codes = codes[codes.isfinite()].unique()
    middle = ((codes[1:].double() + codes[:-1].double()) / 2).float()
    inf = torch.tensor(float("inf"))
    x = torch.cat(
        [
            bits.view(torch.float32),
            codes,
            middle,
            middle.nextafter(inf),
            middle.nextafter(-inf),
            torch.tensor(
                [0.0, -0.0, 65504.0, 65519.9, 65520.0, 3.4e38, float("inf"), float("nan")]
            ),
        ]
    )
    out = torch.empty(x.numel(), dtype=torch.int16)
    getattr(core, f"float_to_{name}")(x.data_ptr(), x.numel(), out.data_ptr())
    assert same_bits(out.view(half), x.to(half), torch.int16)


def test_shrink_is_exact_at_the_threshold(core):
    lam = 0.3
    bound = torch.tensor(lam).item()
    assert core.shrink(bound, -lam, lam) == 0.0
    assert str(core.shrink(-bound, -lam, lam)) == "0.0"
    above = torch.tensor(lam).nextafter(torch.tensor(1.0)).item()
    assert core.shrink(above, -lam, lam) == above - bound
    assert core.shrink(-above, -lam, lam) == bound - above
    assert math.isnan(core.shrink(math.nan, -lam, lam))
    assert str(core.shrink(-above, -math.inf, lam)) == "0.0"
    assert str(core.shrink(-math.inf, -math.inf, lam)) == "0.0"
    assert core.shrink(math.inf, -math.inf, lam) == math.inf


def test_chunk_plan_counts_chunks(core):
    numels = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 0, 2**33 + 1, 5]
    first = core.first_chunks(numels)
    wanted = [0]
    for n in numels:
        wanted.append(wanted[-1] + -(-n // CHUNK))
    assert first == wanted


def test_find_tensor_passes_over_empty_tensors(core):
    rng = random.Random(0)
    for _ in range(50):
        numels = [rng.choice([0, 0, 1, CHUNK, 3 * CHUNK + 1]) for _ in range(rng.randint(1, 40))]
        first = core.first_chunks(numels)
        for chunk in range(first[-1]):
            owner = core.find_tensor(first, chunk)
            assert first[owner] <= chunk < first[owner + 1]
            assert owner == bisect.bisect_right(first, chunk) - 1


def test_pairs_of_directions_are_numbered_by_rows(core):
    q = 30
    wanted = [(j, k) for j in range(q) for k in range(j + 1)]
    assert [core.direction_pair(n) for n in range(len(wanted))] == wanted
