"""The CUDA kernels' programs on host memory: the entries of a support, there and back."""

from __future__ import annotations

import pytest
import torch
from native_lists import CHUNK, SIZES, Lists, assert_same, clones, pack, ranks_of

from sparse_kernels import reference

TILE = 8192
sizes = pytest.mark.parametrize("case", SIZES)
shifted = pytest.mark.parametrize("shift", [0, 1])
DTYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def words_of(n):
    return -(-n // 32)


@sizes
@shifted
@pytest.mark.parametrize("nonnegative", [False, True])
def test_live_mask(core, case, shift, nonnegative):
    lists = Lists(SIZES[case], shift)
    duals = lists.normal(torch.float32)
    for d in duals:
        d[::7] = 0.5
        d[3::7] = float("nan")
        d[5::7] = float("inf") if nonnegative else -float("inf")
    words = [lists.place(torch.full((words_of(n),), -1, dtype=torch.int32)) for n in lists.sizes]
    wanted = clones(words)
    reference.live_mask_ref(duals, wanted, 0.5, nonnegative)
    segments = [
        core.Segment(w.numel(), [w.data_ptr()], input=d.data_ptr(), input_numel=d.numel())
        for w, d in zip(words, duals, strict=True)
    ]
    report = core.live_mask(core.Run(segments), 0.5, nonnegative)
    assert_same(words, wanted, "words")
    lists.check_guards()
    loaded = {r.begin: r.loaded for r in report.ranges}
    assert all(loaded[d.data_ptr()] == 4 * d.numel() for d in duals if d.numel())  # each once


def index_run(core, words, ranks, index, **run):
    segments = [
        core.Segment(
            32 * w.numel(),
            [x.data_ptr()],
            mask=w.data_ptr(),
            ranks=r.data_ptr(),
            capacity=x.numel(),
        )
        for w, r, x in zip(words, ranks, index, strict=True)
    ]
    return core.Run(segments, **run)


@sizes
@shifted
@pytest.mark.parametrize("share", [0.0, 0.05, 0.6, 1.0])
def test_mask_index(core, case, shift, share):
    lists = Lists(SIZES[case], shift)
    bools = lists.bools(share)
    words = [pack(b) for b in bools]
    ranks, _ = ranks_of(words, lists.sizes)
    wanted = [b.nonzero().reshape(-1).int() for b in bools]
    index = [lists.place(torch.full_like(x, -1)) for x in wanted]
    core.mask_index(index_run(core, words, ranks, index))
    assert_same(index, wanted, "index")
    lists.check_guards()


def test_ranks_of_another_mask(core):
    """The ones stand where their tile's rank says, those outside the index nowhere."""
    lists = Lists([9 * TILE + 33, 3 * TILE])
    bools = lists.bools(0.4)
    for b in bools:
        b[:TILE] = False  # its place is 0 whatever the ranks: they count from it
    words, index, ranks = [pack(b) for b in bools], [], []
    for b in bools:
        counts = [int(tile.sum()) for tile in b.split(TILE)]
        rank, place = torch.zeros(len(counts), dtype=torch.int64), -100
        for tile in [1, *reversed(range(2, len(counts)))]:
            rank[tile] = place
            place += counts[tile] + 30
        rank[-1] += 2**40
        ranks.append(rank + 77)
        index.append(lists.place(torch.full((int(b.sum()) - 500,), -1, dtype=torch.int32)))
    wanted = clones(index)
    reference.mask_index_ref(words, ranks, wanted)
    core.mask_index(index_run(core, words, ranks, index))
    assert_same(index, wanted, "index")
    assert all(bool((x == -1).any() and (x != -1).any()) for x in wanted)
    lists.check_guards()


def moved(core, tensors, index, runs, values, scatter):
    segments = [
        core.Segment(
            v.numel(),
            [t.data_ptr(), v.data_ptr()],
            input=x.data_ptr(),
            input_numel=t.numel() // run,
            cols=run,
        )
        for t, x, run, v in zip(tensors, index, runs, values, strict=True)
    ]
    return core.move_entries(core.Run(segments), tensors[0].element_size(), scatter)


@pytest.mark.parametrize("size", DTYPES)
@pytest.mark.parametrize("run", [1, 2, 9, 512, CHUNK, CHUNK + 1])
@shifted
def test_moves(core, size, run, shift):
    counts = [0, 1, 5, 3 * CHUNK // run + 3]
    lists = Lists([n * run for n in counts], shift, seed=run)

    def drawn(n):
        values = torch.randint(-(2**15), 2**15, (n,), generator=lists.generator)
        return lists.place(values.to(DTYPES[size]))

    tensors = [drawn(n) for n in lists.sizes]
    index = [
        lists.place(torch.randperm(n, generator=lists.generator)[: (n + 1) // 2].int())
        for n in counts
    ]
    values = [drawn(x.numel() * run) for x in index]
    wanted, target = clones(values), clones(tensors)
    runs = [run] * len(counts)
    reference.scatter_entries_ref(target, index, runs, values)
    reference.gather_entries_ref(tensors, index, runs, wanted)
    given = clones(values)
    report = moved(core, tensors, index, runs, values, False)
    assert_same(values, wanted, "values")
    stored = {r.begin: r.stored for r in report.ranges}
    assert all(stored[v.data_ptr()] == size * v.numel() for v in values if v.numel())
    moved(core, tensors, index, runs, given, True)
    assert_same(tensors, target, "tensors")
    lists.check_guards()


def test_runs_out_of_range_are_left_out(core):
    lists = Lists([30, 30])
    tensors = lists.normal(torch.float32)
    index = [torch.tensor(x).int() for x in ([9, -1, 10, 0], [-(2**31), 2**31 - 1, 5])]
    values = [lists.place(torch.full((3 * x.numel(),), 7.0)) for x in index]
    before = clones(tensors)
    moved(core, tensors, index, [3, 3], values, False)
    rows = [t.reshape(10, 3) for t in before]
    none = torch.full((3,), 7.0)
    wanted = [torch.cat([rows[0][9], none, none, rows[0][0]]), torch.cat([none, none, rows[1][5]])]
    assert_same(values, wanted, "values")
    for v in values:
        v.neg_()
    moved(core, tensors, index, [3, 3], values, True)
    rows[0][[9, 0]] *= -1
    rows[1][5] *= -1
    assert_same(tensors, before, "tensors")
    lists.check_guards()


def test_past_2_to_the_32(core):
    """Memory that does not exist: addresses are checked, masks read as ones."""
    run, count = 2**20 + 1, 2**13 + 3
    numel = run * count
    index = torch.arange(count - 1, -1, -1).int()
    segment = core.Segment(
        numel, [1 << 50, 1 << 52], input=index.data_ptr(), input_numel=count, cols=run
    )
    last = -(-numel // CHUNK) - 1
    chunks = [0, 2**31 // CHUNK, 2**32 // CHUNK, last]
    for scatter in (False, True):
        report = core.move_entries(core.Run([segment], backed=False, chunks=chunks), 4, scatter)
        found = {r.begin: (r.loaded, r.stored) for r in report.ranges}
        moved_bytes = 4 * (3 * CHUNK + numel - last * CHUNK)
        assert found[1 << (52 if scatter else 50)] == (moved_bytes, 0)
        assert found[1 << (50 if scatter else 52)] == (0, moved_bytes)
    entries = 2**31 - 32  # of a mask with an index: its numbers are int32
    tiles = -(-entries // TILE)
    ranks = torch.arange(tiles) * TILE
    segment = core.Segment(
        entries, [1 << 50], mask=1 << 52, ranks=ranks.data_ptr(), capacity=entries
    )
    last = -(-entries // CHUNK) - 1
    report = core.mask_index(core.Run([segment], backed=False, chunks=[0, last]))
    found = {r.begin: (r.loaded, r.stored) for r in report.ranges}
    assert found[1 << 50] == (0, 4 * (CHUNK + entries - last * CHUNK))
    words = 2**33 // 32 + 1
    segment = core.Segment(words, [1 << 50], input=1 << 52, input_numel=2**33 + 1)
    run = core.Run([segment], backed=False, chunks=[words // CHUNK])
    found = {r.begin: (r.loaded, r.stored) for r in core.live_mask(run, 0.5, False).ranges}
    assert found[1 << 50] == (0, 4 * (words - words // CHUNK * CHUNK))
