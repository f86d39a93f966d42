"""The CUDA kernels' programs on host memory: random directions, sums over them, sizes past 2^32."""

from __future__ import annotations

import itertools
import mmap

import pytest
import torch
from native_lists import CHUNK, SIZES, Lists, assert_same, run_of
from zo_cases import DISTRIBUTIONS, DTYPE, Call, Stream, check_zo_combine, uids_of

from sparse_kernels import reference
from sparse_kernels.reference import philox

layouts = pytest.mark.parametrize(
    ("name", "shift"),
    list(itertools.product(("none", "one", "seven", "chunks", "mixed"), (0, 1))),
)


CALLS = [
    Call(1, 10),
    Call(3, 7, masked=True, source="list", saved=True, factors=True, sumsq=True),
    Call(9, 10, source="list", saved=True, sumsq=True),
    Call(17, 7, masked=True, factors=True),
]


@layouts
@pytest.mark.parametrize("kind", DTYPE)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.usefixtures("portable")
def test_zo_combine(core, name, shift, kind, distribution):
    for call in CALLS:
        check_zo_combine(core, Lists(SIZES[name], shift), kind, distribution, call)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.usefixtures("portable")
def test_zo_combine_over_several_launches(core, distribution):
    """Factors, uids and chunk partials keep their number in the whole list."""
    call = Call(1, 10, factors=True, sumsq=True)
    assert check_zo_combine(core, Lists(SIZES["tiny"]), "float32", distribution, call) > 1


@pytest.mark.parametrize("name", ["one", "chunks", "mixed"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("portable")
def test_zo_norm2_and_gram(core, name, distribution, masked):
    lists = Lists(SIZES[name])
    uids = uids_of(lists.sizes)
    tensors = lists.normal(torch.float32)
    masks = lists.masks() if masked else []
    run = run_of(core, lists.sizes, [], masks=masks, uids=uids)
    for q, rounds in ((1, 10), (4, 7)):
        stream = Stream(core, q, distribution, rounds, listed=q == 4)
        arguments = (*stream.arguments(uids), masks)
        wanted = reference.zo_norm2_ref(tensors, stream.coef, *arguments)
        assert core.zo_norm2(run, stream.directions).total == wanted.item()
        gram = torch.full((q, q), float("nan"), dtype=torch.float64)
        core.zo_gram(run, stream.directions, gram.data_ptr())
        assert torch.equal(gram, reference.zo_gram_ref(tensors, q, *arguments))


def far(core, numel: int, first: int, count: int, **arguments):
    """A run on the chunk at element ``first`` of a tensor with ``numel`` elements, and its window.

    The tensor begins so far before the window that the chunk falls on it: the window is mapped, for
    the heap may begin too low.
    """
    window = torch.frombuffer(mmap.mmap(-1, 4 * count), dtype=torch.float32)
    segment = core.Segment(numel, [window.data_ptr() - 4 * first] * 2, **arguments)
    return core.Run([segment], chunks=[first // CHUNK]), window


@pytest.mark.parametrize("first", [2**31 - CHUNK, 2**31, 2**32 - CHUNK, 2**32])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.usefixtures("portable")
def test_directions_past_2_to_the_32(core, first, distribution):
    numel = first + 1027
    run, window = far(core, 2**32 + CHUNK if first < 2**32 else numel, first, CHUNK, uid=9)
    stream = Stream(core, 1, distribution, 10, listed=False)
    core.zo_combine(run, "float32", "list", stream.directions, 0, 0, False)
    count = 1027 if first == 2**32 else CHUNK
    z = philox.DISTRIBUTIONS[distribution](stream.key, 9, stream.first, first, count, 10)
    assert_same([window[:count]], [stream.coef[0] * z], "window")
    assert not bool(window[count:].any())


HUGE = 2**32 + 2 * CHUNK + 5
CHUNKS = [0, 2**31 // CHUNK - 1, 2**31 // CHUNK, 2**32 // CHUNK - 1, 2**32 // CHUNK, HUGE // CHUNK]
ELEMENTS = 5 * CHUNK + HUGE % CHUNK


def virtual(core, streams: int, *, masked=False, saved=False, numel=HUGE, shift=0, **arguments):
    base = [(1 << 50) + (i << 40) + shift for i in range(streams + 2)]
    if masked:
        arguments["mask"] = base[streams]
    if saved:
        arguments["backup"] = base[streams + 1]
    segment = core.Segment(numel, base[:streams], **arguments)
    return core.Run([segment], backed=False, chunks=CHUNKS)


def traffic(report) -> list[tuple[int, int]]:
    """Bytes loaded and stored, per virtual tensor in the order of their addresses."""
    return [(r.loaded, r.stored) for r in report.ranges if r.begin >= 1 << 50]


@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_addresses_past_2_to_the_32(core, shift, masked):
    n, norm = 4 * ELEMENTS, torch.tensor(1.0)
    run = virtual(core, 2, masked=masked, saved=True, shift=shift)
    report = core.masked_perturb(run, "float32", False, norm.data_ptr(), 0.1, 0.0, 0.0, 0)
    streams = traffic(report)
    assert report.blocks == len(CHUNKS)
    assert streams[:2] == [(n, n), (n, 0)]
    assert streams[-1] == (0, n)
    assert len(streams) == 3 + masked

    report = core.restore(virtual(core, 1, masked=masked, saved=True, shift=shift), 4)
    assert traffic(report)[0] == (0, n)
    assert traffic(report)[-1] == (n, 0)

    run = virtual(core, 3, masked=masked, saved=True, shift=shift)
    report = core.restore_sgd(run, "float32", True, 0, 0, False, [0.0] * 4, False, False, 0)
    assert traffic(report)[:3] == [(0, n), (n, 0), (n, n)]
    assert traffic(report)[-1] == (n, 0)

    run = virtual(core, 4, masked=masked, saved=True, shift=shift)
    ones = torch.ones(1)
    report = core.restore_adamw(
        run, "float32", 0, 0, False, ones.data_ptr(), ones.data_ptr(), [0.0] * 6, 0
    )
    assert traffic(report)[:4] == [(0, n), (n, 0), (n, n), (n, n)]
    assert traffic(report)[-1] == (n, 0)

    sums = core.norm(virtual(core, 2, masked=masked, shift=shift), "float32", True, 0.1)
    assert traffic(sums.report)[:2] == [(n, 0), (n, 0)]

    live, bregman = torch.zeros(1, dtype=torch.int64), ([0.0] * 6, [0.0] * 4)
    report = core.linbreg_step(
        virtual(core, 4, masked=masked, shift=shift), "float32", True, True, True, *bregman,
        True, live.data_ptr(), 0,
    )  # fmt: skip
    assert traffic(report)[:4] == [(0, n), (n, 0), (n, n), (n, n)]
    report = core.linbreg_step(
        virtual(core, 3, masked=masked, shift=shift), "float32", True, False, False, *bregman,
        False, live.data_ptr(), 0,
    )  # fmt: skip
    assert traffic(report)[:3] == [(n, 0), (n, 0), (n, n)]

    table = torch.ones(2)
    report = core.adabreg_step(
        virtual(core, 6, masked=masked, shift=shift), "float32", True, True, True, [0.0] * 6,
        [0.0] * 7, table.data_ptr(), table.data_ptr(), 1, live.data_ptr(), 0,
    )  # fmt: skip
    assert traffic(report)[:6] == [(0, n), (n, 0), *[(n, n)] * 4]

    for distribution in DISTRIBUTIONS:
        stream = Stream(core, 2, distribution, 7, listed=False)
        run = virtual(core, 2, masked=masked, saved=True, shift=shift, uid=3)
        sums = core.zo_combine(run, "float32", "list", stream.directions, 0, 0, True)
        assert traffic(sums.report)[:2] == [(n, n), (n, 0)]
        run = virtual(core, 0, masked=masked, uid=3)  # numel and mask only
        gram = torch.zeros(2, 2, dtype=torch.float64)
        for report in (
            core.zo_norm2(run, stream.directions).report,
            core.zo_gram(run, stream.directions, gram.data_ptr()),
        ):
            assert report.blocks == len(CHUNKS)
            assert [r[0] >= ELEMENTS // 8 for r in traffic(report)] == [True] * masked


@pytest.mark.parametrize("shift", [0, 4])
def test_packed_addresses_past_2_to_the_32(core, shift):
    """A virtual mask is all ones: entry e stands at place e, behind `before` entries of others."""
    n, norm, before = 4 * ELEMENTS, torch.tensor(1.0), 2**32 + 3
    tiles = -(-HUGE // core.rank_tile)
    ranks = torch.arange(tiles) * core.rank_tile + before
    packed = {"ranks": ranks.data_ptr(), "capacity": HUGE + before}
    options = {"masked": True, "saved": True, "shift": shift, **packed}
    run = virtual(core, 2, **options)
    report = core.masked_perturb(run, "float32", False, norm.data_ptr(), 0.1, 0.0, 0.0, 0)
    streams = traffic(report)
    assert report.blocks == len(CHUNKS)
    assert streams[:2] == [(n, n), (n, 0)]
    assert streams[-1] == (0, n)
    run = virtual(core, 3, **options)
    report = core.restore_sgd(run, "float32", True, 0, 0, False, [0.0] * 4, False, False, 0)
    assert traffic(report)[:3] == [(0, n), (n, 0), (n, n)]
    assert traffic(report)[-1] == (n, 0)
    for distribution in DISTRIBUTIONS:
        stream = Stream(core, 2, distribution, 7, listed=False)
        for source, entries in (("saved", (0, n)), ("entries", (n, 0))):
            run = virtual(core, 1, **options, uid=3)
            sums = core.zo_combine(run, "float32", source, stream.directions, 0, 0, True)
            params = (n if source == "saved" else 0, n)
            assert (traffic(sums.report)[0], traffic(sums.report)[-1]) == (params, entries)
    short = {**options, "capacity": HUGE + before - 1}  # the last chunk has no place
    report = core.restore(virtual(core, 1, **short), 4)
    left = 4 * (ELEMENTS - HUGE % CHUNK)
    assert traffic(report)[0] == (0, left)
    assert traffic(report)[-1] == (left, 0)


def test_mask_addresses_past_2_to_the_32(core):
    bytes_, words = 1 << 50, 1 << 51
    numel = 32 * HUGE - 3
    packed = core.Segment(HUGE, [words], input=bytes_, input_numel=numel)
    report = core.mask_pack(core.Run([packed], backed=False, chunks=CHUNKS))
    assert traffic(report) == [(32 * ELEMENTS - 3, 0), (0, 4 * ELEMENTS)]
    spread = core.Segment(HUGE, [bytes_], input=words, input_numel=-(-HUGE // 32))
    report = core.mask_unpack(core.Run([spread], backed=False, chunks=CHUNKS))
    assert traffic(report)[0] == (0, ELEMENTS)


def test_a_long_list_takes_several_launches(core):
    lists = Lists(SIZES["tiny"])
    params, grads = lists.normal(torch.float32), lists.normal(torch.float32)
    norm = torch.tensor(1.0)
    run = run_of(core, lists.sizes, [params, grads])
    report = core.masked_perturb(run, "float32", False, norm.data_ptr(), 0.1, 0.0, 0.0, 0)
    assert report.launches == 2
    backed = run_of(core, lists.sizes, [params], backup=grads)
    assert core.restore(backed, 4).launches == 2
    assert core.norm(run_of(core, lists.sizes, [grads]), "float32", False, 0.0).report.launches == 2


def test_whole_groups_are_moved_once(core):
    """Aligned tensors are read and written exactly once, masked-out groups not at all."""
    n = 3 * CHUNK
    params, grads = torch.randn(n), torch.randn(n)
    mask = torch.zeros(n // 32, dtype=torch.int32)
    mask[: n // 64] = -1
    norm = torch.tensor(1.0)
    run = run_of(core, [n], [[params], [grads]], masks=[mask])
    report = core.masked_perturb(run, "float32", False, norm.data_ptr(), 0.1, 0.0, 0.0, 0)
    moved = {r.begin: (r.loaded, r.stored) for r in report.ranges}
    assert moved[params.data_ptr()] == (2 * n, 2 * n)
    assert moved[grads.data_ptr()] == (2 * n, 0)


class TestTheHarnessItself:
    """It has to notice what it is there for."""

    def test_misaligned(self, core):
        x = torch.zeros(64, dtype=torch.uint8)
        segment = core.Segment(8, [x.data_ptr() + 2], backup=x.data_ptr() + 34)
        with pytest.raises(RuntimeError, match="misaligned access"):
            core.restore(core.Run([segment]), 4)

    def test_two_blocks_on_one_tensor(self, core):
        x, y = torch.zeros(64), torch.zeros(64)
        segment = core.Segment(64, [x.data_ptr()], backup=y.data_ptr())
        with pytest.raises(RuntimeError, match="two threads write one address"):
            core.restore(core.Run([segment, segment]), 4)

    def test_overlapping_tensors(self, core):
        x = torch.zeros(64)
        segment = core.Segment(60, [x.data_ptr()], backup=x.data_ptr() + 4)
        with pytest.raises(RuntimeError, match="another thread"):
            core.restore(core.Run([segment]), 4)
