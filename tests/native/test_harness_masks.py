"""The CUDA kernels' programs on host memory: n of m, and mask ops at sizes past 2^32."""

from __future__ import annotations

import itertools

import pytest
import torch
from native_lists import CHUNK, Lists, assert_same, clones

from sparse_kernels import reference
from sparse_kernels.reference._keys import ordered_keys

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RANKS = ("value", "abs", "random")
KEY = torch.tensor(0x6E98CDE3B83FA088)
storage = pytest.mark.parametrize("kind", DTYPE)

SHAPES = [(1, 1), (3, 7), (0, 0), (5, 64), (300, 259), (70_001, 1), (1, 70_001)]


@storage
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("along_rows", [False, True])
def test_mask_nm(core, kind, rank, along_rows):
    for (n, m), shift in itertools.product(((2, 4), (1, 3), (0, 2), (7, 40)), (0, 1)):
        lists = Lists([r * c for r, c in SHAPES], shift)
        scores = [lists.place((s * 2).round() / 2) for s in lists.normal(DTYPE[kind])]
        rows, cols = [list(x) for x in zip(*SHAPES, strict=True)]
        firsts = [1000 * i + 3 for i in range(len(SHAPES))]
        words = [
            lists.place(torch.full((-(-k // 32),), -1, dtype=torch.int32)) for k in lists.sizes
        ]
        wanted = clones(words)
        key = KEY if rank == "random" else None
        reference.mask_nm_ref(scores, rank, key, firsts, rows, cols, n, m, along_rows, wanted)
        segments = [
            core.Segment(
                w.numel(),
                [w.data_ptr()],
                input=s.data_ptr(),
                input_numel=s.numel(),
                first=f,
                cols=c,
            )
            for w, s, f, c in zip(words, scores, firsts, cols, strict=True)
        ]
        selection = core.Selection(kind, kind=rank, key=KEY.data_ptr())
        core.mask_nm(core.Run(segments), selection, n, m, along_rows)
        assert_same(words, wanted, "words")
        lists.check_guards()


HUGE = 2**33 + 5 * CHUNK + 13
HUGE_CHUNKS = [0, 2**31 // CHUNK, 2**32 // CHUNK - 1, 2**32 // CHUNK, -(-HUGE // CHUNK) - 1]
READ = 4 * CHUNK + 13  # elements of these chunks


def huge(core, chunks, **segment):
    """Three streams at addresses without memory, read as ones."""
    data = [1 << 50, 1 << 52]
    return core.Run([core.Segment(HUGE, data, **segment)], backed=False, chunks=chunks)


def test_selection_past_2_to_the_32(core):
    chunks = -(-HUGE // CHUNK)
    pools, take = torch.tensor([0]), torch.tensor([1 << 40])
    ties = torch.full((chunks,), -1)
    before = torch.arange(chunks) * CHUNK
    for rank in ("value", "random"):
        counts = torch.zeros(2048, dtype=torch.int64)
        run = huge(core, HUGE_CHUNKS, first=2**35, mask=1 << 53)
        selection = core.Selection("float32", kind=rank, key=KEY.data_ptr(), pools=pools.data_ptr())
        core.topk_histogram(run, selection, 21, 11, counts.data_ptr())
        keys = torch.zeros(READ, dtype=torch.int64)  # ones are a NaN
        if rank == "random":
            spans = [(c * CHUNK, min((c + 1) * CHUNK, HUGE)) for c in HUGE_CHUNKS]
            scores = [torch.empty(b - a) for a, b in spans]
            keys = torch.cat(
                [
                    ordered_keys(s, rank, KEY, 2**35 + a)
                    for s, (a, _) in zip(scores, spans, strict=True)
                ]
            )
        assert torch.equal(counts, torch.bincount(keys >> 21, minlength=2048))
        report = core.topk_write(run, selection, False, ties.data_ptr())
        stored = {r.begin: r.stored for r in report.ranges}
        assert stored[1 << 52] == 4 * (4 * CHUNK // 32 + 1)
        if rank == "value":
            assert [int(ties[c]) for c in HUGE_CHUNKS] == [CHUNK] * 4 + [13]
            report = core.topk_ties(
                run, selection, ties.data_ptr(), before.data_ptr(), take.data_ptr()
            )
            stored = {r.begin: r.stored for r in report.ranges}
            assert stored[1 << 52] == 4 * (4 * CHUNK // 32 + 1)


def test_masks_past_2_to_the_32(core):
    last = HUGE // CHUNK
    apply = core.Run(
        [core.Segment(HUGE, [1 << 50], mask=1 << 52)], backed=False, chunks=HUGE_CHUNKS
    )
    read = {r.begin: (r.loaded, r.stored) for r in core.mask_apply(apply, 4).ranges}
    assert read[1 << 50] == (0, 0)  # every bit reads as 1
    words = -(-HUGE // 32)
    count = core.Segment(32 * words, [1 << 50], mask=1 << 52)
    report = core.mask_count(core.Run([count], backed=False, chunks=HUGE_CHUNKS))
    read = {r.begin: (r.loaded, r.stored) for r in report.ranges}
    assert read[1 << 50] == (0, 8 * (4 * 8 + 1))
    assert read[1 << 52] == (4 * (4 * CHUNK // 32 + 1), 0)
    assert last == HUGE_CHUNKS[-1]
    rows = HUGE // 13
    for along_rows, cols in ((True, 13), (False, rows)):
        numel = 13 * rows
        segment = core.Segment(
            -(-numel // 32), [1 << 50], input=1 << 52, input_numel=numel, cols=cols
        )
        chunks = [numel // 32 // CHUNK]
        run = core.Run([segment], backed=False, chunks=chunks)
        report = core.mask_nm(run, core.Selection("bfloat16"), 2, 4, along_rows)
        stored = {r.begin: r.stored for r in report.ranges}
        assert stored[1 << 50] == 4 * (-(-numel // 32) - CHUNK * chunks[0])
