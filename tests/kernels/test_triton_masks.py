"""Masks and exact selections under Triton's interpreter against the reference, on the CPU.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton*.py

Triton reads the variable when it is imported, so these modules need a pytest process of their own.
Every bit is compared.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import (
    CHUNK_SIZE,
    TILE,
    bits,
    compare,
    copies,
    each_dtype,
    each_list,
    flags_of,
    make,
    make_masks,
    ones_of,
    special,
)

import sparse_kernels as sk

# numpy, which carries the interpreter out, warns where it converts a signalling NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")

KEY = 0xE998CDE3B83FA088
KINDS = ["value", "abs", "random"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def both(op, *args):
    """Run a dispatcher op on copies of its lists; the reference's result, equal on Triton."""

    def run(backend):
        own = [
            copies(a) if isinstance(a, list) and a and hasattr(a[0], "clone") else a for a in args
        ]
        result = getattr(getattr(torch.ops, f"sparse_kernels_{backend}"), op)(*own)
        lists = {str(i): a for i, a in enumerate(own) if isinstance(a, list) and a is not args[i]}
        return lists if result is None else {**lists, "result": result}

    return compare(run).get("result")


# ---- mask_count, mask_apply -------------------------------------------------------------------

WORDS = TILE // 32


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "words", [[0], [1, 0, 5], [WORDS - 1, WORDS, WORDS + 1], [8 * WORDS - 1, 8 * WORDS + 1]]
)
def test_counts_of_ones(words, density):
    masks = make_masks([32 * n for n in words], density)
    result = compare(lambda b: {"counts": sk.count_ones(masks, backend=b)})
    compare(lambda b: {"ranks": sk.mask_ranks(masks, backend=b)})
    total = sum(int(c) for c in result["counts"])
    assert total == sum(int(f.sum()) for f in flags_of(masks, [torch.empty(32 * n) for n in words]))


@each_dtype
@each_list
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_apply(sizes, param_dtype, density):
    tensors, masks = special(sizes, param_dtype, 1), make_masks(sizes, density)

    def run(backend):
        t = copies(tensors)
        sk.mask_apply_(t, masks, backend=backend)
        return {"bits": bits(t)}

    result = compare(run)
    for got, before, keep in zip(
        result["bits"], bits(tensors), flags_of(masks, tensors), strict=True
    ):
        assert torch.equal(got, torch.where(keep, before, 0))


# ---- keys -------------------------------------------------------------------------------------


def keys_of(scores, kind):
    """The keys of one-element tensors, digit by digit from histograms with one entry each."""
    prefix = torch.zeros(len(scores), dtype=torch.int64)
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        args = (scores, kind, None, [], [], False, prefix, shift, width)
        histogram = both("topk_histogram", *args)
        assert (histogram.sum(1) == 1).all()
        prefix = (prefix << width) | histogram.argmax(1)
    return prefix


@each_dtype
@pytest.mark.parametrize("kind", ["value", "abs"])
def test_keys_are_in_the_order_of_the_scores(kind, param_dtype):
    values = special([100], param_dtype, 2)[0]  # each special value once
    keys = keys_of([v.reshape(1) for v in values], kind)
    x = values.double().abs() if kind == "abs" else values.double()
    x = torch.where(x.isnan(), -(2.0**1000), x.clamp(-(2.0**999), 2.0**999))  # NaN below -inf
    order = torch.sign(x[:, None] - x[None, :])
    assert torch.equal(torch.sign(keys[:, None] - keys[None, :]).double(), order)


@pytest.mark.parametrize("first", [0, 1, 2, 3, 2**34 - 2052, 2**34 - 2049, 2**40 + 5])
def test_random_keys_of_any_global_index(first):
    """The block number of Philox has 64 bits: nothing is lost where its low word wraps."""
    pool, scores = torch.tensor([2**31]), [torch.zeros(4099)]
    among, key = make_masks([4099]), torch.tensor(KEY - 2**64)
    histogram = both("topk_histogram", scores, "random", key, [first], [], False, pool, 21, 11)
    assert histogram.sum() == 4099
    words = make_masks([4099], 0.1, seed=3)
    args = (scores, "random", key, [first], among, True, pool, words, True)
    both("topk_write_", *args)


# ---- mask_topk --------------------------------------------------------------------------------


def topk_case(scores, k, kind, **options):
    def run(backend):
        out = copies(options.get("out"))
        more = {**options, "out": out} if out else options
        key = KEY if kind == "random" else None
        return {"words": sk.mask_topk(scores, k, kind=kind, key=key, backend=backend, **more)}

    return compare(run)["words"]


@each_dtype
@each_kind
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_topk(kind, share, param_dtype):
    scores = special([5, 0, 4099, 33, 1], param_dtype, 4)
    k = int(share * 4138)
    assert ones_of(topk_case(scores, k, kind)) == k


@each_kind
@pytest.mark.parametrize("inverted", [False, True])
def test_topk_among_candidates_per_tensor_into_masks(kind, inverted):
    sizes = [7, 0, 2049, 70, 4096]
    scores, among = make(sizes, torch.float32, 5), make_masks(sizes, 0.4)
    ks = [3, 0, 500, 70, 1]  # of 70 entries fewer are candidates: all of those
    words = topk_case(scores, ks, kind, among=among, inverted=inverted)
    for w, a, k, f in zip(words, flags_of(among, scores), ks, flags_of(words, scores), strict=True):
        candidates = ~a if inverted else a
        assert not (f & ~candidates).any()
        assert ones_of([w]) == min(k, int(candidates.sum()))
    into = make_masks(sizes, 0.2, seed=6)
    both_masks = topk_case(scores, ks, kind, among=among, inverted=inverted, out=into)
    for joined, old, new in zip(both_masks, into, words, strict=True):
        assert torch.equal(joined, old | new)


@pytest.mark.parametrize("k", [1, 4095, 4096, 4097, CHUNK_SIZE, CHUNK_SIZE + 900])
def test_topk_takes_the_first_of_equal_scores(k):
    scores = [torch.full((n,), -2.5) for n in (100, CHUNK_SIZE + 1, 800)]
    words = topk_case(scores, k, "value")
    chosen = torch.cat(flags_of(words, scores))
    assert chosen[:k].all()
    assert not chosen[k:].any()


def test_topk_few_distinct_values_around_chunks():
    g = torch.Generator().manual_seed(7)
    sizes = [CHUNK_SIZE - 1, 33, CHUNK_SIZE + 1]
    scores = [torch.randint(-2, 3, (n,), generator=g) * 0.5 for n in sizes]
    for kind in ("value", "abs"):
        assert ones_of(topk_case(scores, 50_000, kind)) == 50_000


def test_topk_of_misaligned_scores():
    scores = [t[1:] for t in make([4098, 9000], torch.bfloat16, 8)]
    topk_case(scores, 3000, "abs")


def test_topk_ties_without_a_place_are_left_alone():
    """What comes after the last tie that is taken is not read: NaN candidates there do no harm."""
    scores = [torch.ones(CHUNK_SIZE), torch.ones(40)]
    words = make_masks([CHUNK_SIZE, 40], 0.0)
    one, threshold = torch.tensor([1]), torch.tensor([0x3F800000 + 2**31])
    counts, before = torch.tensor([CHUNK_SIZE, 40]), torch.tensor([0, CHUNK_SIZE])
    args = (scores, "value", None, [], [], False, threshold, counts, before, one, words)
    both("topk_ties_", *args)
    assert ones_of(words) == 0  # ``both`` works on copies
    torch.ops.sparse_kernels_triton.topk_ties_(*args)
    assert words[0][0] == 1
    assert ones_of(words) == 1


# ---- mask_nm ----------------------------------------------------------------------------------


def nm_case(scores, n, m, axis, kind="value"):
    key = KEY if kind == "random" else None
    options = {"axis": axis, "kind": kind, "key": key}
    return compare(lambda b: {"words": sk.mask_nm(scores, n, m, backend=b, **options)})["words"]


@each_dtype
@each_kind
@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (5, 7)])
def test_nm(n, m, axis, kind, param_dtype):
    shapes = [(5, 9), (0, 4), (33, 64), (3, 4, 5), (1, 1), (70, 31)]
    flat = special([torch.Size(s).numel() for s in shapes], param_dtype, 9)
    scores = [t.reshape(s) for t, s in zip(flat, shapes, strict=True)]
    words = nm_case(scores, n, m, axis, kind)
    for flags in flags_of(words, scores):
        grid = flags.flatten(1)
        for group in (grid if axis == "in" else grid.t()).split(m, dim=1):
            assert (group.sum(1) == min(n, group.shape[1])).all()


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("n", [0, 4])
def test_nm_none_and_all(n, axis):
    scores = [torch.randn(9, 13)]
    assert ones_of(nm_case(scores, n, 4, axis)) == (117 if n else 0)


@each_kind
@pytest.mark.parametrize("axis", ["in", "out"])
def test_nm_of_groups_longer_than_a_line(axis, kind):
    scores = [torch.randn(5, 9), torch.randn(12, 3)]
    words = nm_case(scores, 3, 1000, axis, kind)
    lines = 5 + 12 if axis == "in" else 9 + 3
    assert ones_of(words) == 3 * lines


@pytest.mark.parametrize("axis", ["in", "out"])
def test_nm_across_programs(axis):
    """Groups that lie on both sides of a tile's end, and columns longer than a tile."""
    nm_case([torch.randn(3, TILE + 5), torch.randn(TILE + 5, 2)], 2, 6, axis)


# ---- launches ---------------------------------------------------------------------------------


def test_nothing_beside_words_and_counts_is_written():
    """Every output lies between elements of its memory that no kernel may touch."""
    numel = 70  # a part of a block, and of a word
    scores, one = make([numel], torch.float32, 11), torch.tensor([5])
    ops, memory = torch.ops.sparse_kernels_triton, torch.full((8,), -7, dtype=torch.int32)
    words, counts = [memory[2:5]], torch.full((3,), -7)
    none = (scores, "value", None, [], [], False)
    for run in (
        lambda: ops.topk_write_(*none, one, words, False),
        lambda: ops.topk_ties_(*none, one, one, 0 * one, one, words),
        lambda: ops.mask_nm_(scores, "abs", None, [], [7], [10], 2, 4, True, words),
        lambda: ops.mask_pack_([scores[0] > 0], words),
        lambda: ops.mask_count_(words, [counts[1:2]]),
    ):
        run()
        assert memory[[0, 1, 5, 6, 7]].tolist() == [-7] * 5
    assert counts.tolist() == [-7, int((scores[0] > 0).sum()), -7]


def test_one_launch_for_a_list(launches):
    sizes = [3, 0, 700, 64]
    scores, masks = make(sizes, torch.float32, 10), make_masks(sizes)
    sk.mask_ranks(masks, backend="triton")
    sk.mask_apply_(scores, masks, backend="triton")
    sk.mask_topk(scores, 5, backend="triton")
    sk.mask_nm([torch.randn(4, 6), torch.randn(3, 3)], 1, 2, backend="triton")
    passes = ["_topk_histogram_kernel"] * 3 + ["_topk_write_kernel", "_topk_ties_kernel"]
    assert launches == ["_mask_count_kernel", "_mask_apply_kernel", *passes, "_mask_nm_kernel"]


def test_nothing_is_launched_for_empty_tensors(launches):
    empty, masks = [torch.zeros(0), torch.zeros(3, 0)], make_masks([0, 0])
    assert [int(c) for c in sk.count_ones(masks, backend="triton")] == [0, 0]
    sk.mask_apply_(empty, masks, backend="triton")
    words = sk.mask_topk(empty, 0, backend="triton")
    words += sk.mask_nm([torch.zeros(3, 0)], 1, 2, backend="triton")
    assert not any(w.numel() for w in words)
    assert launches == []
