"""The CUDA kernels' programs on host memory: ops that count, apply and choose mask bits."""

from __future__ import annotations

import itertools

import pytest
import torch
from native_lists import CHUNK, SIZES, Lists, assert_same, chunks_of, clones, pack, run_of

from sparse_kernels import reference
from sparse_kernels.reference._keys import ordered_keys

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = [(name, shift) for name in SIZES for shift in (0, 1) if (name, shift) != ("tiny", 1)]
layouts = pytest.mark.parametrize(("name", "shift"), LAYOUTS)
# a histogram per tensor: "tiny" would take most of its time to compare them
filled = pytest.mark.parametrize(
    ("name", "shift"), [x for x in LAYOUTS if SIZES[x[0]] and x[0] != "tiny"]
)
storage = pytest.mark.parametrize("kind", DTYPE)
masking = pytest.mark.parametrize("masked", [False, True])
KEY = torch.tensor(0x6E98CDE3B83FA088)


@layouts
def test_mask_count(core, name, shift):
    lists = Lists(SIZES[name], shift)
    words = [lists.place(m) for m in lists.masks()]
    counts = [lists.place(torch.full((-(-n // 8192),), -1)) for n in lists.sizes]
    wanted = clones(counts)
    reference.mask_count_ref(words, wanted)
    segments = [
        core.Segment(32 * w.numel(), [c.data_ptr()], mask=w.data_ptr())
        for c, w in zip(counts, words, strict=True)
    ]
    report = core.mask_count(core.Run(segments))
    assert report.blocks == chunks_of(lists.sizes)
    assert_same(counts, wanted, "counts")
    lists.check_guards()


@layouts
@pytest.mark.parametrize("storage_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_mask_apply(core, name, shift, storage_dtype):
    lists = Lists(SIZES[name], shift)
    tensors = lists.normal(storage_dtype)
    masks = lists.masks()
    wanted = clones(tensors)
    reference.mask_apply_ref(wanted, masks)
    core.mask_apply(run_of(core, lists.sizes, [tensors], masks=masks), storage_dtype.itemsize)
    assert_same(tensors, wanted, "tensors")
    lists.check_guards()


def test_mask_apply_reads_the_bits_only(core):
    n = 3 * CHUNK
    x, mask = torch.randn(n), torch.zeros(n // 32, dtype=torch.int32)
    mask[: n // 64] = -1
    report = core.mask_apply(run_of(core, [n], [[x]], masks=[mask]), 4)
    moved = {r.begin: (r.loaded, r.stored) for r in report.ranges}
    assert moved[x.data_ptr()] == (0, 2 * n)  # half of the elements, 4 bytes each


# selections ------------------------------------------------------------------------------------


class Case:
    """Scores with ties, candidates, words, and the same as a run of the harness."""

    def __init__(self, core, name, shift, kind, masked, inverted, rank="value"):
        self.core, self.rank, self.kind, self.inverted = core, rank, kind, inverted
        self.lists = lists = Lists(SIZES[name], shift)
        self.scores = [lists.place((s * 4).round() / 4) for s in lists.normal(DTYPE[kind])]
        self.among = lists.masks() if masked else []
        self.words = [lists.place(pack(b)) for b in lists.bools(0.2)]
        self.firsts = [5]
        for n in lists.sizes[:-1]:
            self.firsts.append(self.firsts[-1] + n)
        self.key = KEY if rank == "random" else None

    def run(self):
        segments = [
            self.core.Segment(
                s.numel(), [s.data_ptr(), w.data_ptr()],
                mask=self.among[i].data_ptr() if self.among else 0, first=self.firsts[i],
            )
            for i, (s, w) in enumerate(zip(self.scores, self.words, strict=True))
        ]  # fmt: skip
        return self.core.Run(segments)

    def selection(self, pools):
        return self.core.Selection(
            self.kind, kind=self.rank, key=KEY.data_ptr(), pools=pools.data_ptr(),
            single=pools.numel() == 1, inverted=self.inverted,
        )  # fmt: skip

    def head(self):
        """What every reference of a selection takes first."""
        return (self.scores, self.rank, self.key, self.firsts, self.among, self.inverted)

    def frequent(self):
        """The most frequent key of each tensor; 0 where it has none."""
        out = []
        for s, first in zip(self.scores, self.firsts, strict=True):
            keys, counts = ordered_keys(s, self.rank, self.key, first).unique(return_counts=True)
            out.append(int(keys[counts.argmax()]) if s.numel() else 0)
        return torch.tensor(out)


RANKS = ("value", "abs", "random")
candidates = pytest.mark.parametrize(
    ("masked", "inverted"), [(False, False), (True, False), (True, True)]
)


@filled
@storage
@candidates
def test_topk_histogram(core, name, shift, kind, masked, inverted):
    for rank in RANKS:
        case = Case(core, name, shift, kind, masked, inverted, rank)
        each = case.frequent()
        for pools in (each[-1:].clone(), each):
            for low, bits in ((21, 11), (12, 9), (0, 3)):
                prefix = pools >> (low + bits)
                counts = torch.zeros(pools.numel(), 1 << bits, dtype=torch.int64)
                wanted = reference.topk_histogram_ref(*case.head(), prefix, low, bits)
                report = core.topk_histogram(
                    case.run(), case.selection(prefix), low, bits, counts.data_ptr()
                )
                assert torch.equal(counts, wanted)
                assert report.blocks == chunks_of(case.lists.sizes)
        case.lists.check_guards()


@filled
@storage
@candidates
def test_topk_write_and_ties(core, name, shift, kind, masked, inverted):
    for rank, accumulate in itertools.product(RANKS, (False, True)):
        case = Case(core, name, shift, kind, masked, inverted, rank)
        each = case.frequent()
        for pools in (each[-1:].clone(), each):
            wanted = clones(case.words)
            ties = torch.full((chunks_of(case.lists.sizes),), -1)
            ties_ref = reference.topk_write_ref(*case.head(), pools, wanted, accumulate)
            core.topk_write(case.run(), case.selection(pools), accumulate, ties.data_ptr())
            assert torch.equal(ties, ties_ref)
            assert_same(case.words, wanted, "words")
            take = torch.arange(2, 2 + pools.numel()) ** 2
            before = ties.cumsum(0) - ties
            if pools.numel() > 1:
                chunks = [-(-n // CHUNK) for n in case.lists.sizes]
                parts = before.split(chunks)
                before = torch.cat([p - p[:1] for p in parts])
            reference.topk_ties_ref(*case.head(), pools, ties, before, take, wanted)
            core.topk_ties(
                case.run(), case.selection(pools), ties.data_ptr(), before.data_ptr(),
                take.data_ptr(),
            )  # fmt: skip
            assert_same(case.words, wanted, "words with ties")
        case.lists.check_guards()


def test_a_long_list_takes_several_launches(core):
    case = Case(core, "tiny", 0, "float32", True, False)
    pools = torch.tensor([2**31 + 2**29])
    counts = torch.zeros(2, dtype=torch.int64)
    upper = pools >> 31
    wanted = reference.topk_histogram_ref(*case.head(), upper, 30, 1)
    selection = case.selection(upper)
    assert core.topk_histogram(case.run(), selection, 30, 1, counts.data_ptr()).launches == 3
    assert torch.equal(counts, wanted[0])


def test_ties_are_read_where_they_are_needed_only(core):
    n = 4 * CHUNK
    scores, words = torch.zeros(n), torch.zeros(n // 32, dtype=torch.int32)
    run = run_of(core, [n], [[scores], [words]])
    threshold, take = torch.tensor([2**31]), torch.tensor([CHUNK + 40])
    counts = torch.tensor([CHUNK, 0, CHUNK, CHUNK])
    before = counts.cumsum(0) - counts
    selection = core.Selection("float32", pools=threshold.data_ptr())
    report = core.topk_ties(run, selection, counts.data_ptr(), before.data_ptr(), take.data_ptr())
    moved = {r.begin: (r.loaded, r.stored) for r in report.ranges}
    assert moved[scores.data_ptr()][0] == 2 * 4 * CHUNK  # chunk 1 has none, chunk 3 is too late
    ones = sum(bin(w & 0xFFFFFFFF).count("1") for w in words.tolist())
    assert ones == CHUNK + 40
    assert words[2 * CHUNK // 32 :][:2].tolist() == [-1, 255]


def test_candidates_decide_what_is_read(core):
    """Aligned groups are read once, those without a candidate not at all."""
    n = 4 * CHUNK
    scores, mask = torch.randn(n), torch.zeros(n // 32, dtype=torch.int32)
    mask[: n // 128] = -1
    counts, prefix = torch.zeros(2048, dtype=torch.int64), torch.tensor([0])
    run = run_of(core, [n], [[scores]], masks=[mask])
    selection = core.Selection("float32", pools=prefix.data_ptr())
    report = core.topk_histogram(run, selection, 21, 11, counts.data_ptr())
    moved = {r.begin: r.loaded for r in report.ranges}
    assert moved[scores.data_ptr()] == n
    assert int(counts.sum()) == n // 4
