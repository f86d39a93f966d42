"""The Triton kernels of supports under Triton's interpreter against the reference, on the CPU.

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

import triton
import triton.language as tl
from triton_cases import (
    TILE,
    assert_same_bits,
    bits,
    compare,
    copies,
    each_list,
    make,
    make_masks,
    ones_of,
    special,
)

import sparse_kernels as sk
from sparse_kernels.triton import _launch, compaction

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")

OPS = torch.ops.sparse_kernels_triton
WORDS = TILE // 32
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
each_size = pytest.mark.parametrize("size", INTEGERS, ids=lambda n: f"{n} bytes")


# ---- live_mask ---------------------------------------------------------------------------------


@each_list
@pytest.mark.parametrize("lam", [0.0, 0.7])
@pytest.mark.parametrize("nonnegative", [False, True], ids=["both signs", "nonnegative"])
def test_live_mask(sizes, lam, nonnegative):
    duals = special(sizes, torch.float32, 1)
    options = {"nonnegative": nonnegative}
    compare(lambda b: {"words": sk.live_mask(duals, lam, backend=b, **options)})


def test_live_mask_at_the_threshold():
    lam = 0.6
    bound = torch.tensor(lam)
    above, below = torch.nextafter(bound, bound + 1), torch.nextafter(bound, bound - 1)
    values = [bound, above, below, -bound, -above, -below, bound * 0, -bound * 0, bound * torch.nan]
    dual = torch.stack(values)
    assert sk.live_mask([dual], lam, backend="triton")[0].item() == 0b100010010
    assert sk.live_mask([dual], lam, nonnegative=True, backend="triton")[0].item() == 0b100000010


def test_live_mask_of_misaligned_duals():
    duals = [t[1:] for t in special([4100, 3], torch.float32, 2)]
    compare(lambda b: {"words": sk.live_mask(duals, 0.5, backend=b)})


# ---- mask_index --------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize(
    "words", [[0], [1, 0, 5], [WORDS - 1, WORDS, WORDS + 1], [3 * WORDS + 70, 64, 65]]
)
def test_mask_index(words, density):
    masks = make_masks([32 * n for n in words], density)
    index = compare(lambda b: {"index": sk.mask_index(masks, backend=b)})["index"]
    assert sum(x.numel() for x in index) == ones_of(masks)


@pytest.mark.parametrize("shift", [-(2**40), -700, 5, 800, 2**40])
def test_ranks_of_another_mask_do_not_lead_outside(shift):
    """Places before and behind an index are left out, the others are written."""
    mask, index = make_masks([2 * TILE]), {}
    ranks = sk.mask_ranks(mask, backend="reference")[0]
    ranks[1] += shift
    ones = ones_of(mask)
    for backend in ("triton", "reference"):
        memory = torch.full((ones + 200,), -7, dtype=torch.int32)
        op = getattr(torch.ops, f"sparse_kernels_{backend}").mask_index_
        op(mask, [ranks], [memory[100:-100]])
        assert (memory[:100] == -7).all()
        assert (memory[-100:] == -7).all()
        index[backend] = memory
    if shift > 0:  # else two tiles write the same places, in any order
        assert_same_bits(index["triton"], index["reference"])


# ---- gather_entries, scatter_entries -----------------------------------------------------------


def supports(tensors, runs, density=0.3, seed=5):
    numels = [t.numel() // run for t, run in zip(tensors, runs, strict=True)]
    return sk.mask_index(make_masks(numels, density, seed), backend="reference")


def raw(sizes, size, seed=6):
    """Any bits, signalling NaNs included."""
    g, limit = torch.Generator().manual_seed(seed), 2 ** (8 * size - 1)
    kind = INTEGERS[size]
    return [torch.randint(-limit, limit - 1, (n,), generator=g, dtype=kind) for n in sizes]


def move(backend, tensors, index, runs):
    """Gather, then scatter into other tensors: what both leave behind."""
    ops = getattr(torch.ops, f"sparse_kernels_{backend}")
    kind, size = tensors[0].dtype, tensors[0].element_size()
    values = [
        torch.full((run * x.numel(),), 9, dtype=kind) for x, run in zip(index, runs, strict=True)
    ]
    ops.gather_entries_(tensors, index, runs, values)
    others = raw([t.numel() for t in tensors], size, 7)
    ops.scatter_entries_(others, index, runs, values)
    return {"values": values, "others": others}


@each_size
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_gather_and_scatter(size, density):
    tensors = raw([0, 1, 33, 2049, 1024], size)
    runs = [1] * len(tensors)
    index = supports(tensors, runs, density)
    result = compare(lambda b: move(b, tensors, index, runs))
    assert sum(v.numel() for v in result["values"]) == sum(x.numel() for x in index)


@each_size
def test_runs(size):
    """Runs of one, of several, longer than a program, and of a whole tensor in one call."""
    runs = [1, 3, 9, 512, 1024, 1500, 2048, 2500]
    tensors = raw([50, 66, 900, 5 * 512, 3 * 1024, 3 * 1500, 2 * 2048, 2500], size)
    index = supports(tensors, runs, 0.8)
    compare(lambda b: move(b, tensors, index, runs))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.complex64])
def test_public_functions_move_any_dtype(kind):
    tensors = [t.to(kind) for t in make([40, 300], torch.float32, 8)]
    runs = [4, 3]
    index = supports(tensors, runs)
    values = sk.gather_entries(tensors, index, runs, backend="triton")
    zeros = [torch.zeros_like(t) for t in tensors]
    sk.scatter_entries_(zeros, index, values, runs, backend="triton")
    for t, zero, x, run in zip(tensors, zeros, index, runs, strict=True):
        live = torch.zeros(t.numel() // run, dtype=torch.bool)
        live[x.long()] = True
        assert torch.equal(zero, torch.where(live.repeat_interleave(run), t, 0))


def test_round_trip_keeps_every_bit():
    tensors = special([3000, 77], torch.float32, 9)
    before, index = bits(copies(tensors)), supports(tensors, [1, 1])
    values = sk.gather_entries(tensors, index, backend="triton")
    sk.scatter_entries_(tensors, index, values, backend="triton")
    assert all(map(torch.equal, bits(tensors), before))


@triton.jit
def _quotients_kernel(out_ptr, pair_ptr, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    rest, length = tl.load(pair_ptr), tl.load(pair_ptr + 1)
    tl.store(out_ptr + offsets, _launch.quotients(rest, offsets, length, SIZE))


@pytest.mark.parametrize("length", [1, 2, 3, 9, 63, 64, 65, 2**31 - 1, 2**31, 2**40 + 1])
def test_quotients(length):
    """Also of runs that no tensor of a test could hold."""
    for rest in {0, 1, length // 2, length - 2, length - 1}:
        if 0 <= rest < length:
            out, pair = torch.zeros(64, dtype=torch.int32), torch.tensor([rest, length])
            _quotients_kernel[(1,)](out, pair, SIZE=64)
            assert torch.equal(out, (rest + torch.arange(64)) // length)


@pytest.mark.parametrize("run", [1, 4])
def test_numbers_out_of_range_are_left_out(run):
    memory = torch.arange(48.0)
    tensor = memory[16:32]
    wrong = [-1, 16 // run, -(2**31), 2**31 - 1]
    index = torch.tensor([2, *wrong, 1], dtype=torch.int32)
    values = torch.full((run * index.numel(),), -7.0)
    OPS.gather_entries_([tensor], [index], [run], [values])
    rows, expected = values.view(-1, run), memory[16:32].view(-1, run)
    assert torch.equal(rows[[0, 5]], expected[[2, 1]])
    assert (rows[1:5] == -7).all()
    OPS.scatter_entries_([tensor], [index], [run], [torch.full_like(values, 99.0)])
    changed = (memory == 99).nonzero().reshape(-1)
    assert changed.tolist() == list(range(16 + run, 16 + 3 * run))


def test_other_sizes_are_refused():
    lists = ([torch.zeros(4, dtype=torch.uint8)], [torch.zeros(1, dtype=torch.int32)], [1])
    for op in (OPS.gather_entries_, OPS.scatter_entries_):
        with pytest.raises(TypeError, match="2, 4 or 8 bytes"):
            op(*lists, [torch.zeros(1, dtype=torch.uint8)])
    with pytest.raises(TypeError, match="float32, bfloat16 and float16"):
        OPS.live_mask_([torch.zeros(4).double()], [torch.zeros(1, dtype=torch.int32)], 0.5, False)


# ---- launches ----------------------------------------------------------------------------------


def test_program_of_moved_entries_is_shorter_than_the_tests_of_runs_need():
    assert compaction._MOVED == 1024


def test_one_launch_for_a_list(launches):
    tensors = make([3, 0, 700, 64], torch.float32, 10)
    index = sk.mask_index(sk.live_mask(tensors, 0.5, backend="triton"), backend="triton")
    values = sk.gather_entries(tensors, index, backend="triton")
    sk.scatter_entries_(tensors, index, values, backend="triton")
    names = ["_live_mask", "_mask_count", "_mask_index", "_move_entries", "_move_entries"]
    assert launches == [f"{name}_kernel" for name in names]


def test_nothing_is_launched_for_empty_tensors(launches):
    empty = [torch.zeros(0), torch.zeros(3, 0)]
    index = sk.mask_index(sk.live_mask(empty, 0.5, backend="triton"), backend="triton")
    values = sk.gather_entries(empty, index, backend="triton")
    sk.scatter_entries_(empty, index, values, backend="triton")
    sk.gather_entries([torch.ones(5)], [torch.zeros(0, dtype=torch.int32)], backend="triton")
    assert launches == []
