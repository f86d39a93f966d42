"""live_mask, mask_index, gather_entries, scatter_entries_: the entries of a support."""

from __future__ import annotations

import pytest
import torch
from compare import assert_same_lists, run_both
from ranked_cases import exactly, with_specials

import sparse_kernels as sk
from sparse_kernels.testing import (
    LIST_CASES,
    assert_bit_equal,
    bits_of,
    copy_of,
    make_list,
    make_masks,
    plant_special_values,
)

TILE = 8192
SIZES = [0, 1, 31, 32, 33, TILE - 1, TILE, TILE + 1, 65537]
DENSITIES = [0.0, 0.03, 0.5, 1.0]
WIDE = [torch.float32, torch.float64]
RUNS = [1, 2, 4, 9, 31, 32, 512]


def masks_of(sizes, density, device="cpu"):
    return make_masks([torch.empty(n, device=device) for n in sizes], density, seed=len(sizes))


def index_of(masks):
    return [m.reshape(-1).nonzero().reshape(-1).int() for m in masks]


def random_bits(sizes, dtype, device="cpu", seed=0):
    """Every third entry a special value: NaNs with payloads, both zeros."""
    if not dtype.is_floating_point:
        generator = torch.Generator().manual_seed(seed)
        top = 2 ** (8 * dtype.itemsize - 1)
        drawn = [torch.randint(-top, top - 1, (n,), generator=generator) for n in sizes]
        return [x.to(device, dtype) for x in drawn]
    return [with_specials(dtype, n, seed + i).to(device) for i, n in enumerate(sizes)]


def refuses(target):
    """Whether an index out of range is an error: kernels for a GPU cannot raise one."""
    return target.device == "cpu" and target.backend != "triton"


def backend_for(target, kind):
    """On a GPU float64 runs on the reference."""
    return target.backend if kind != torch.float64 or target.device == "cpu" else None


# live_mask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WIDE, ids=str)
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.1, 1.0, 1e9])
def test_live_mask_equals_the_reference(target, kind, nonnegative, lam):
    duals = random_bits(SIZES, kind)
    duals[-1][1::7] = lam  # on the threshold, and next to it
    duals[-1][2::7] = -lam
    duals[-1][3::7] = torch.tensor(lam, dtype=kind).nextafter(torch.tensor(2e9, dtype=kind))
    wanted = sk.live_mask(duals, lam, nonnegative=nonnegative, backend="reference")
    ours = sk.live_mask(
        [d.to(target.device) for d in duals],
        lam,
        nonnegative=nonnegative,
        backend=backend_for(target, kind),
    )
    assert_bit_equal(ours, wanted, "words")


def test_live_mask_by_comparison(target):
    """The definition spelled out, without a subtraction."""
    (dual,) = random_bits([5001], torch.float32)
    dual[dual == -torch.inf] = -1.0  # one-sided, it has no readout: inf - inf
    on_device = [dual.to(target.device)]
    for nonnegative, dead in ((False, dual.abs() <= 0.5), (True, dual <= 0.5)):
        words = sk.live_mask(on_device, 0.5, nonnegative=nonnegative, backend=target.backend)
        (live,) = sk.unpack_mask([w.cpu() for w in words], [dual.shape])
        assert torch.equal(live, ~dead)
        assert int(sk.count_ones(words)[0]) == int((~dead).sum())  # the padding is 0


@pytest.mark.parametrize("case", LIST_CASES)
def test_live_mask_of_layouts(twin, case):
    duals = make_list(case, torch.float32, twin.device)
    plant_special_values(duals)
    ours = sk.live_mask(duals, 0.3, backend=twin.backend)
    wanted = sk.live_mask([d.cpu() for d in duals], 0.3, backend="reference")
    assert_bit_equal(ours, wanted, "words")
    assert [w.shape for w in ours] == [(-(-d.numel() // 32),) for d in duals]


# mask_index --------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", DENSITIES)
def test_mask_index(target, density):
    masks = masks_of(SIZES, density, target.device)
    index = sk.mask_index(sk.pack_mask(masks), backend=target.backend)
    assert_bit_equal(index, index_of(masks), "index")
    assert all(x.dtype == torch.int32 and x.device == masks[0].device for x in index)


@pytest.mark.parametrize("case", LIST_CASES)
def test_mask_index_of_layouts(twin, case):
    masks = make_masks(make_list(case, torch.float32, twin.device), 0.2, seed=7)
    index = sk.mask_index(sk.pack_mask(masks), backend=twin.backend)
    assert_bit_equal(index, index_of(masks), "index")


def raw(target, op):
    """The dispatcher op of a target: what the public function does not let through."""
    space = "sparse_kernels" if target.backend in ("cpp", "cuda") else None
    return getattr(getattr(torch.ops, space or f"sparse_kernels_{target.backend}"), op).default


def run_foreign(target, masks, ranks):
    """The indices that mask_index_ and its reference write, with guards around them."""
    results = []
    for backend, device in ((raw(target, "mask_index_"), target.device), (REFERENCE, "cpu")):
        memory = [torch.full((int(m.sum()) + 2000,), -7, dtype=torch.int32) for m in masks]
        memory = [x.to(device) for x in memory]
        lists = [[t.to(device) for t in x] for x in (sk.pack_mask(masks), ranks)]
        backend(*lists, [x[1000:-1000] for x in memory])
        results.append(memory)
    return results


REFERENCE = torch.ops.sparse_kernels_reference.mask_index_.default


def test_ranks_of_another_mask(target):
    """The ones stand where their tile's rank says, those outside the index nowhere."""
    masks = masks_of([40 * TILE + 77, 9 * TILE], 0.1)
    ranks = []
    for mask in masks:
        mask[:TILE] = False  # its place is 0 whatever the ranks: they count from it
        counts = [int(tile.sum()) for tile in mask.split(TILE)]
        rank, place = torch.zeros(len(counts), dtype=torch.int64), -100
        for tile in [1, *reversed(range(2, len(counts)))]:
            rank[tile] = place
            place += counts[tile] + 50
        ranks.append(rank + 12345)
    ours, wanted = run_foreign(target, masks, ranks)
    assert_bit_equal(ours, wanted, "memory of the index")
    assert all(bool((x[:1000] == -7).all() and (x[-1000:] == -7).all()) for x in wanted)
    assert all(int((x != -7).sum()) > x.numel() // 2 for x in wanted)


@pytest.mark.parametrize("offset", [-5000, 3, 900, 2**40, 2**63 - 2**20])
def test_ranks_out_of_all_order(target, offset):
    masks = masks_of([40 * TILE + 77, 9 * TILE], 0.1)
    ranks = sk.mask_ranks(sk.pack_mask(masks))
    for r in ranks:
        r[1::2] += offset
        r[2::4] -= 2 * min(offset, 2**40)
    ours, _ = run_foreign(target, masks, ranks)
    for x in ours:
        assert bool((x[:1000] == -7).all() and (x[-1000:] == -7).all())


# gather_entries, scatter_entries_ ----------------------------------------------------------------

MOVED = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.int64,
    torch.int16,
]  # fmt: skip


@pytest.mark.parametrize("kind", MOVED, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_there_and_back(target, kind, density):
    backend = backend_for(target, kind)
    tensors = random_bits(SIZES, kind, target.device)
    index = index_of(masks_of(SIZES, density, target.device))
    values = sk.gather_entries(tensors, index, backend=backend)
    picked = [t[x.long()] for t, x in zip(tensors, index, strict=True)]
    assert_bit_equal(values, picked, "values", payloads=True)
    before = copy_of(tensors)
    sk.scatter_entries_(tensors, index, values, backend=backend)
    assert_bit_equal(tensors, before, "tensors", payloads=True)
    others = random_bits([v.numel() for v in values], kind, target.device, seed=99)
    sk.scatter_entries_(tensors, index, others, backend=backend)
    for t, x, other in zip(before, index, others, strict=True):
        bits_of(t)[x.long()] = bits_of(other)
    assert_bit_equal(tensors, before, "tensors", payloads=True)


@pytest.mark.parametrize("run", [*RUNS, 65536, 70001])
def test_runs(twin, dtype, run):
    """Runs that chunks cut, of lengths with a path of their own and without."""
    counts = [0, 1, 3, 200_000 // run + 2]
    generator = torch.Generator().manual_seed(run)

    def build(device):
        tensors = random_bits([n * run for n in counts], dtype, device)
        index = [
            torch.randperm(n, generator=generator.manual_seed(n))[: (n + 1) // 2].int().to(device)
            for n in counts
        ]
        values = [x.new_empty(x.numel() * run, dtype=dtype).zero_() for x in index]
        return {"tensors": tensors, "index": index, "values": values}

    def move(lists, backend):
        lengths = [run] * len(counts)
        given = lists["tensors"], lists["index"]
        sk.gather_entries(*given, lengths, out=lists["values"], backend=backend)
        moved = [v.flip(0) for v in lists["values"]]
        sk.scatter_entries_(*given, moved, lengths, backend=backend)

    ours, theirs, _, _ = run_both(twin, build, move)
    assert_same_lists(ours, theirs, payloads=True)


def test_runs_of_a_list(target):
    tensors = random_bits([0, 24, 7, 1, 9 * 400], torch.float32, target.device)
    runs = [3, 8, 7, 1, 9]
    index = [torch.tensor(x).int().to(target.device) for x in ([], [2, 0], [0], [], [399, 5, 7])]
    values = sk.gather_entries(tensors, index, runs, backend=target.backend)
    for t, x, run, v in zip(tensors, index, runs, values, strict=True):
        assert_bit_equal(v, t.reshape(-1, run)[x.long()].reshape(-1), "values", payloads=True)
        assert v.data_ptr() % 64 == 0 or v.numel() == 0


@pytest.mark.parametrize("case", LIST_CASES)
def test_moves_of_layouts(twin, dtype, case):
    def build(device):
        tensors = make_list(case, dtype, device)
        masks = make_masks([torch.empty(t.shape) for t in tensors], 0.3, seed=5)
        index = [x.to(device) for x in index_of(masks)]
        values = [torch.zeros(x.numel(), dtype=dtype, device=device) for x in index]
        return {"tensors": tensors, "index": index, "values": values}

    def move(lists, backend):
        given = lists["tensors"], lists["index"]
        sk.gather_entries(*given, out=lists["values"], backend=backend)
        sk.scatter_entries_(*given, [v.flip(0) for v in lists["values"]], backend=backend)

    ours, theirs, _, _ = run_both(twin, build, move)
    assert_same_lists(ours, theirs)


def test_values_that_are_views(target):
    tensor, index = torch.arange(100.0).to(target.device), torch.arange(0, 100, 3).int()
    index = index.to(target.device)
    out = torch.zeros(68, device=target.device)[::2]
    (got,) = sk.gather_entries([tensor], [index], out=[out], backend=target.backend)
    assert got is out
    assert_bit_equal(out, tensor[::3], "out")
    misaligned = torch.zeros(101, device=target.device)[1:]
    sk.scatter_entries_([misaligned], [index], [out], backend=target.backend)
    assert_bit_equal(misaligned[::3], tensor[::3], "tensor")
    assert int(misaligned.count_nonzero()) == 33


def test_threads_do_not_matter(target):
    """Many tensors, and runs that the threads' shares cut."""
    sizes = [300_000, 0, 5, 9 * 20_001]
    tensors = random_bits(sizes, torch.float32, target.device)
    masks = masks_of(sizes, 0.7, target.device)
    words, rows = sk.pack_mask(masks), torch.arange(0, 20_001, 2).int().to(target.device)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        index = sk.mask_index(words, backend=target.backend)
        live = sk.live_mask(tensors, 0.4, backend=target.backend)
        lists = [*tensors, tensors[3]], [*index, rows]
        values = sk.gather_entries(*lists, [1, 1, 1, 1, 9], backend=target.backend)
        into = [torch.zeros_like(t) for t in lists[0]]
        sk.scatter_entries_(into, lists[1], values, [1, 1, 1, 1, 9], backend=target.backend)
        results.append((index, live, values, into))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_bit_equal(two, one, "result", payloads=True)


@pytest.mark.parametrize("bad", [10, -1, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("at", [0, 69_999, 140_000])
def test_out_of_range(target, bad, at):
    """The CPU refuses before anything is moved; elsewhere the run is left out."""
    tensors = [torch.ones(8, device=target.device), torch.arange(20.0).to(target.device)]
    wrong = torch.arange(140_001).remainder(10).int()
    wrong[at] = bad
    index = [torch.tensor([1]).int().to(target.device), wrong.to(target.device)]
    lengths = [1, 2]
    values = [torch.full((n,), 7.0, device=target.device) for n in (1, 280_002)]
    for op, lists in (
        ("gather_entries", lambda: sk.gather_entries(tensors, index, lengths, out=values,
                                                     backend=target.backend)),
        ("scatter_entries", lambda: sk.scatter_entries_(tensors, index, values, lengths,
                                                        backend=target.backend)),
    ):  # fmt: skip
        before = copy_of(tensors), copy_of(values)
        if refuses(target):
            message = rf"{op}_: index\[1\] holds {bad}, outside of \[0, 10\)"
            with pytest.raises(RuntimeError, match=message):
                lists()
            assert_bit_equal([*tensors, *values], [*before[0], *before[1]], "arguments")
        elif op == "gather_entries":
            lists()
            assert values[1][2 * at : 2 * at + 2].tolist() == [7.0, 7.0]
            assert int((values[1] == 7.0).sum()) == int((wrong == 3).sum()) + 2
        else:
            lists()
            assert_bit_equal(tensors, before[0], "tensors")  # every run has the same values


def test_an_empty_tensor_has_no_entries(target):
    empty = [torch.empty(0, device=target.device)]
    none = [torch.empty(0, dtype=torch.int32, device=target.device)]
    (values,) = sk.gather_entries(empty, none, [3], backend=target.backend)
    assert values.shape == (0,)
    if refuses(target):
        with pytest.raises(RuntimeError, match="holds 0, outside of"):
            sk.gather_entries(empty, [none[0].new_zeros(1)], backend=target.backend)


def test_refused(target):
    x, i = torch.zeros(8, device=target.device), torch.tensor([1, 3]).int().to(target.device)
    v = torch.zeros(2, device=target.device)
    on = {"backend": target.backend}
    for call, message in (
        (lambda: sk.gather_entries(x, [i], **on),
         "gather_entries: tensors must be a list or tuple of tensors, got Tensor"),
        (lambda: sk.gather_entries([x], [i, i], **on),
         "gather_entries: tensors, index and runs have 1, 2 and 1 entries"),
        (lambda: sk.gather_entries([x], [i], [3], **on),
         "gather_entries: runs[0] 3 does not divide 8 elements"),
        (lambda: sk.gather_entries([x], [i], [0], **on),
         "gather_entries: runs[0] 0 does not divide 8 elements"),
        (lambda: sk.live_mask([x.half()], 0.1, **on),
         "live_mask: duals[0] is torch.float16, expected float32 or float64"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=exactly(message)):
            call()
    for call, message in (
        (lambda: sk.gather_entries([x], [i.long()], **on), r"gather_entries: index\[0\] is"),
        (lambda: sk.gather_entries([x], [i], out=[v[:1]], **on), r"gather_entries: values\[0\]"),
        (
            lambda: sk.scatter_entries_([x], [i], [v.double()], **on),
            r"values\[0\] is torch.float64",
        ),
        (lambda: sk.scatter_entries_([x.requires_grad_()], [i], [v], **on), "requires grad"),
        (lambda: sk.live_mask([v], -0.1, **on), "live_mask: lam"),
        (lambda: sk.mask_index([v], **on), r"mask_index: masks\[0\] is torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_dispatcher_ops_check_what_memory_safety_needs():
    x, i, v = torch.zeros(8), torch.tensor([1, 3]).int(), torch.zeros(2)
    words, ranks = torch.zeros(2, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    ops = torch.ops.sparse_kernels
    if "cpp" not in sk.available_backends():
        pytest.skip("sparse_kernels._C is not built")
    moves = [
        ([x], [i], [1, 1], [v]), ([x], [i], [3], [v]), ([x], [i], [0], [v]), ([x], [i], [-1], [v]),
        ([x], [i.long()], [1], [v]), ([x], [i], [2], [v]), ([x], [i], [1], [v.double()]),
        ([x], [i, i], [1], [v]), ([x], [i], [1], []), ([x.bool()], [i], [1], [v.bool()]),
        ([x, x.double()], [i, i], [1, 1], [v, v]), ([x[::2]], [i], [1], [v]),
        ([x], [i.repeat(2)[::2]], [1], [v]), ([x], [i], [1], [v.repeat(2)[::2]]),
    ]  # fmt: skip
    for op in (ops.gather_entries_, ops.scatter_entries_):
        for arguments in moves:
            with pytest.raises(RuntimeError, match=op.__name__):
                op(*arguments)
    for arguments in (
        ([words.long()], [ranks], [i]), ([words], [ranks.int()], [i]), ([words], [], [i]),
        ([words], [torch.cat([ranks, ranks])], [i]), ([words], [ranks], [i.long()]),
        ([words], [ranks], []), ([words], [ranks], [i.repeat(2)[::2]]),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="mask_index_"):
            ops.mask_index_(*arguments)
    for duals, out in (([x.half()], [words[:1]]), ([x], [words]), ([x], []), ([x], [v[:1]])):
        with pytest.raises(RuntimeError, match="live_mask_"):
            ops.live_mask_(duals, out, 0.1, False)
