"""mask_nm: n of every m consecutive entries, along rows and along columns."""

from __future__ import annotations

import itertools

import pytest
import torch
from ranked_cases import KEY, bools, exactly, first_k, keys_of, values, with_specials

import sparse_kernels as sk
from sparse_kernels._check import words_for
from sparse_kernels.testing import assert_bit_equal

SHAPES = [(1, 1), (3, 8), (5, 7), (8, 5), (2, 33), (33, 2), (4, 3, 5, 5), (6, 2, 3), (300, 259),
          (0, 4), (4, 0)]  # fmt: skip
PATTERNS = [(2, 4), (1, 4), (0, 3), (3, 3), (1, 2), (4, 8), (1, 1), (5, 32), (2, 1000)]
KINDS = ("value", "abs", "random")


def key_for(kind):
    return KEY if kind == "random" else None


def draw(shape, dtype, device, seed=0):
    """Quarters: every group has ties now and then."""
    generator = torch.Generator().manual_seed(seed)
    return ((torch.randn(shape, generator=generator) * 4).round() / 4).to(device, dtype)


def oracle(keys, shape, n, m, axis):
    """Group by group with a stable sort."""
    rows, cols = shape[0], torch.Size(shape[1:]).numel()
    grid = keys.reshape(rows, cols)
    lines = grid if axis == "in" else grid.t()
    chosen = torch.zeros_like(lines, dtype=torch.bool)
    for i, line in enumerate(lines):
        for start in range(0, line.numel(), m):
            chosen[i, start : start + m] = first_k(line[start : start + m], n)
    return (chosen if axis == "in" else chosen.t()).reshape(-1)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("axis", ["in", "out"])
def test_equals_a_sort_of_every_group(target, dtype, n, m, axis):
    shapes = [s for s in SHAPES if s != (300, 259)]
    scores = [draw(s, dtype, target.device, i) for i, s in enumerate(shapes)]
    for kind in KINDS:
        key = key_for(kind)
        words = sk.mask_nm(scores, n, m, axis, kind=kind, key=key, backend=target.backend)
        for got, keys, shape in zip(
            bools(words, scores), keys_of(scores, kind, key), shapes, strict=True
        ):
            assert torch.equal(got, oracle(keys, shape, n, m, axis))


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("shape", "axis"), list(itertools.product(SHAPES, ("in", "out"))))
def test_ones_per_group(target, shape, n, m, axis):
    """Ties, zeros and NaN included: the mask has no more and no fewer."""
    numel = torch.Size(shape).numel()
    special = with_specials(torch.float32, numel).reshape(shape)
    for scores in (special, torch.zeros(shape), torch.full(shape, float("nan"))):
        words = sk.mask_nm([scores.to(target.device)], n, m, axis, backend=target.backend)
        (got,) = bools(words, [scores])
        grid = got.reshape(shape[0], torch.Size(shape[1:]).numel())
        lines = grid if axis == "in" else grid.t()
        for start in range(0, lines.shape[1], m):
            group = lines[:, start : start + m]
            assert (group.sum(1) == min(n, group.shape[1])).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5)])
def test_out_is_in_of_the_transposed_matrix(target, dtype, n, m):
    scores = draw((37, 70), dtype, target.device)
    (out,) = bools(sk.mask_nm([scores], n, m, "out", backend=target.backend), [scores])
    (turned,) = bools(sk.mask_nm([scores.t()], n, m, "in", backend=target.backend), [scores])
    assert torch.equal(out.reshape(37, 70), turned.reshape(70, 37).t())


def test_equal_scores_keep_the_first(target):
    scores = torch.zeros(3, 10, device=target.device)
    scores[:, ::2] = -0.0
    (got,) = bools(sk.mask_nm([scores], 2, 4, backend=target.backend), [scores])
    assert torch.equal(got.reshape(3, 10)[1], torch.arange(10) % 4 < 2)
    (got,) = bools(sk.mask_nm([scores], 1, 2, "out", backend=target.backend), [scores])
    assert got.reshape(3, 10).all(1).tolist() == [True, False, True]


def test_keeps_the_largest_mass(target):
    """At least what any other choice of n keeps, and more than chance does."""
    scores = draw((64, 128), torch.float32, target.device).square()
    (got,) = bools(sk.mask_nm([scores], 2, 4, backend=target.backend), [scores])
    groups, chosen = scores.cpu().reshape(-1, 4).double(), got.reshape(-1, 4)
    kept = (groups * chosen).sum(1)
    for pair in itertools.combinations(range(4), 2):
        assert (kept >= groups[:, pair].sum(1)).all()
    assert float(kept.sum() / groups.sum()) > 0.6


def test_equals_the_reference(twin, dtype):
    scores = [
        draw((300, 259), dtype, twin.device),
        values("few", dtype, twin.device)[:70_000].reshape(70, 1000),
        values("infinite", dtype, twin.device)[1:65_601].reshape(1, 65_600),
        draw((4, 6, 3, 3), dtype, twin.device).contiguous(memory_format=torch.channels_last),
        draw((500, 90), dtype, twin.device)[:, ::3],
    ]
    for axis, kind in itertools.product(("in", "out"), KINDS):
        options = {"axis": axis, "kind": kind, "key": key_for(kind)}
        words = sk.mask_nm(scores, 2, 4, **options, backend=twin.backend)
        cpu = [s.cpu() for s in scores]
        expected = sk.mask_nm(cpu, 2, 4, **options, backend="reference")
        assert_bit_equal(words, expected, "words")


LARGE = [((70, 2111), m) for m in (2, 3, 4, 8, 16, 20, 32, 70)]
LARGE += [((2111, 70), m) for m in (4, 5, 16, 32, 100)]  # rows shorter than a word, more or less
LARGE += [((33, 4096), m) for m in (2, 4, 8, 16, 32)]  # groups that fill words
LARGE += [((2, 70_000), 5000), ((70_000, 2), 5000)]  # so large that each is sorted by itself


@pytest.mark.needs_backend("cpp")
@pytest.mark.parametrize(("shape", "m"), LARGE)
@pytest.mark.parametrize("axis", ["in", "out"])
def test_groups_and_chunks_end_anywhere(axis, shape, m):
    """Several chunks of 65,536 entries, on two threads, in memory that was not zero."""
    if "cpp" not in sk.available_backends():
        pytest.skip(str(sk.explain("mask_nm_")))
    torch.set_num_threads(2)
    rows, cols = shape
    line = cols if axis == "in" else rows
    for kind, dtype in (("value", torch.float32), ("abs", torch.float64), ("random", torch.half)):
        scores, key = draw(shape, dtype, "cpu"), key_for(kind)
        (keys,) = keys_of([scores], kind, key)
        grid = keys.reshape(shape) if axis == "in" else keys.reshape(shape).t()
        lowest = torch.iinfo(torch.int64).min  # what a short group lacks ranks behind the rest
        size = min(m, line)
        padded = torch.nn.functional.pad(grid, (0, -line % size), value=lowest)
        groups = padded.reshape(grid.shape[0], -1, size)
        order = groups.argsort(dim=2, descending=True, stable=True)
        n = max(1, m // 3)
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order[:, :, :n], True)
        chosen = chosen.reshape(grid.shape[0], -1)[:, :line]
        words = torch.full((words_for(rows * cols),), -1, dtype=torch.int32)
        ops = torch.ops.sparse_kernels
        signed = None if key is None else torch.tensor(key - 2**64)
        ops.mask_nm_([scores], kind, signed, [0], [rows], [cols], n, m, axis == "in", [words])
        (got,) = bools([words], [scores])
        expected = chosen if axis == "in" else chosen.t()
        assert torch.equal(got.reshape(shape), expected)
        assert sk.count_ones([words])[0] == expected.sum()  # padding bits are 0


def test_threads_do_not_matter(target):
    scores = [
        draw((900, 333), torch.float32, target.device),
        draw((5, 5), torch.float32, target.device),
    ]
    first = sk.mask_nm(scores, 2, 4, "out", backend=target.backend)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert_bit_equal(sk.mask_nm(scores, 2, 4, "out", backend=target.backend), first, "words")


BAD = [
    ({"axis": "rows"}, "axis must be one of ('in', 'out'), got 'rows'"),
    ({"n": 5}, "n must be in [0, m] and m >= 1, got 5:4"),
    ({"n": -1}, "n must be in [0, m] and m >= 1, got -1:4"),
    ({"n": 0, "m": 0}, "n must be in [0, m] and m >= 1, got 0:0"),
    ({"n": 2.0}, "n must be an integer, got 2.0"),
    ({"m": True}, "m must be an integer, got True"),
    ({"kind": "hash"}, "kind must be one of ('value', 'abs', 'random'), got 'hash'"),
    ({"scores": [torch.ones(4)]}, "scores[0] has 1 dimensions, n:m needs at least 2"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_refused(target, change, message):
    arguments = {"scores": [torch.ones(4, 4)], "n": 2, "m": 4, **change}
    arguments["scores"] = [s.to(target.device) for s in arguments["scores"]]
    with pytest.raises(ValueError, match=exactly(f"mask_nm: {message}")):
        sk.mask_nm(**arguments, backend=target.backend)
