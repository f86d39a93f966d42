"""The CUDA kernels' programs on host memory: shards, other sources, fast normals, step keys."""

from __future__ import annotations

import pytest
import torch
from native_lists import CHUNK, SIZES, Lists, run_of
from zo_cases import DISTRIBUTIONS, DTYPE, Call, Stream, check_zo_combine, uids_of

import sparse_kernels as sk
from sparse_kernels import reference
from sparse_kernels.reference import philox

#: every source, with everything else away from its default somewhere
SOURCES = [
    Call(1, 10, source="saved", sumsq=True),
    Call(3, 7, source="saved", factors=True),
    Call(17, 10, source="saved"),
    Call(1, 7, source="entries", factors=True),
    Call(9, 10, source="entries", sumsq=True),
    Call(17, 7, source="entries"),
    Call(2, 10, source="wide", saved=True, sumsq=True),
    Call(9, 7, masked=True, source="wide", factors=True),
    Call(1, 10, masked=True, source="list", saved=True, sumsq=True),
]


def firsts_of(sizes, start: int) -> list[int]:
    """Starts in every position of a call of Philox, in turn."""
    return [start + 37 * i for i in range(len(sizes))]


@pytest.mark.parametrize("name", ["none", "empty", "one", "seven", "chunks", "mixed"])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("kind", DTYPE)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.usefixtures("portable")
def test_sources(core, name, shift, kind, distribution):
    for i, call in enumerate(SOURCES):
        if call.source == "wide" and kind == "float32":
            continue
        lists = Lists(SIZES[name], shift, seed=i)
        firsts = firsts_of(lists.sizes, 3 * i) if i % 2 else None
        check_zo_combine(core, lists, kind, distribution, call, firsts)


@pytest.mark.parametrize("start", [1, 2, 3, 4, 32, 64, 100, 128, 2**32 - 70, 2**62 - 1])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.usefixtures("portable")
def test_shards(core, start, distribution):
    sizes = [1, 7, 300, 0, 2048 + 33]
    for q, rounds in ((1, 10), (2, 7), (17, 10)):
        call = Call(q, rounds, masked=q == 2, sumsq=q != 2)
        firsts = [start + 5 * i for i in range(len(sizes))]
        check_zo_combine(core, Lists(sizes), "float32", distribution, call, firsts)


@pytest.mark.parametrize("source", ["list", "saved", "entries", "wide"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.usefixtures("portable")
def test_over_several_launches(core, source, distribution):
    lists = Lists(SIZES["tiny"])
    call = Call(1, 10, source=source, factors=True, sumsq=True)
    firsts = [3 * i for i in range(len(lists.sizes))]
    assert check_zo_combine(core, lists, "bfloat16", distribution, call, firsts) > 2


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("start", [3, 2**33 + 33])
@pytest.mark.usefixtures("portable")
def test_sums_over_shards(core, distribution, masked, start):
    lists = Lists(SIZES["mixed"])
    uids, firsts = uids_of(lists.sizes), firsts_of(lists.sizes, start)
    tensors = lists.normal(torch.float32)
    masks = lists.masks() if masked else []
    run = run_of(core, lists.sizes, [], masks=masks, uids=uids, firsts=firsts)
    for q, rounds in ((1, 10), (3, 7)):
        stream = Stream(core, q, distribution, rounds, listed=False)
        arguments = (*stream.arguments(uids, firsts), masks)
        wanted = reference.zo_norm2_ref(tensors, stream.coef, *arguments)
        assert core.zo_norm2(run, stream.directions).total == wanted.item()
        gram = torch.full((q, q), float("nan"), dtype=torch.float64)
        core.zo_gram(run, stream.directions, gram.data_ptr())
        assert torch.equal(gram, reference.zo_gram_ref(tensors, q, *arguments))


@pytest.mark.parametrize("source", ["saved", "entries"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("ranks", [-1, 10**9])
def test_a_chunk_without_places_is_left_alone(core, source, distribution, ranks):
    """And it adds nothing to the sum: that of the other chunk is all there is."""
    n = CHUNK + 4000
    lists = Lists([n])
    tensors, entries = lists.normal(torch.float32), lists.place(torch.full((n,), 7.0))
    before = tensors[0].clone()
    mask = torch.full((-(-n // 32),), -1, dtype=torch.int32)
    table = torch.arange(-(-n // core.rank_tile)) * core.rank_tile
    table[CHUNK // core.rank_tile :] = ranks
    run = run_of(core, [n], [tensors], masks=[mask], backup=[entries], ranks=[table])
    stream = Stream(core, 1, distribution, 10, listed=False)
    ours = core.zo_combine(run, "float32", source, stream.directions, 0, 0, True)
    assert torch.equal(tensors[0][CHUNK:], before[CHUNK:])
    assert not bool((tensors[0][:CHUNK] == before[:CHUNK]).any())
    alone = run_of(core, [CHUNK], [], masks=[mask])
    assert ours.total == core.zo_norm2(alone, stream.directions).total
    lists.check_guards()


@pytest.mark.usefixtures("portable")
def test_fast_normals_are_portable_ones_on_the_host(core):
    for source in ("list", "wide", "saved", "entries"):
        call = Call(3, 7, source=source, sumsq=True, fast=True)
        lists = Lists(SIZES["mixed"])
        check_zo_combine(core, lists, "bfloat16", "normal", call, firsts_of(lists.sizes, 2))
    zeros, uids = [torch.zeros(700)], [0]
    run = run_of(core, [700], [], uids=uids)
    stream = Stream(core, 2, "normal", 10, listed=False, fast=True)
    arguments = (*stream.arguments(uids), [])
    norm2 = reference.zo_norm2_ref(zeros, stream.coef, *arguments)
    assert core.zo_norm2(run, stream.directions).total == norm2.item()
    gram = torch.zeros(2, 2, dtype=torch.float64)
    core.zo_gram(run, stream.directions, gram.data_ptr())
    assert torch.equal(gram, reference.zo_gram_ref(zeros, 2, *arguments))


@pytest.mark.parametrize("t", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("stream", [0, 1, 2**31 + 7, 2**32 - 1])
def test_zo_key(core, t, stream):
    seed = 0x0123456789ABCDEF
    key, counter, base = torch.tensor(-1), torch.tensor(t), torch.tensor(seed)
    core.zo_key(key.data_ptr(), counter.data_ptr(), base.data_ptr(), stream)
    assert int(key) % 2**64 == sk.derive_key(seed, t, stream)
    assert int(counter) % 2**64 == t + 1


def test_shifted_signs(core):
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 2**32, (8,), generator=generator).tolist()
    bits = sum(w << 32 * i for i, w in enumerate(words))
    for offset in range(128):
        wanted = [(bits >> offset + 32 * i) & philox.MASK32 for i in range(4)]
        assert core.shifted_signs(words, offset) == wanted
