"""Where zo_combine_ starts from: float32 masters, and the packed entries of a masked list."""

from __future__ import annotations

import pytest
import torch
from compare import assert_gaps_untouched, assert_same_lists, run_both
from test_packed_backup import packed_backup

import sparse_kernels as sk
from sparse_kernels.reference._common import RANK_TILE
from sparse_kernels.testing import (
    SMALL_CASES,
    assert_bit_equal,
    copy_of,
    make_list,
    make_masks,
    plant_special_values,
    supports,
)

SEED = 0xFEDCBA9876543210
COEF = [0.75, -1.5]
DISTRIBUTIONS = ["normal", "rademacher"]
NARROW = (torch.bfloat16, torch.float16)
EDGES = (1, 31, 255, 257, RANK_TILE - 1, RANK_TILE + 1, 65537)


def lists_of(case, dtype, density, device):
    """Tensors with NaN payloads and -0.0 everywhere, masks, ranks and a packed tensor to fill."""
    generator = torch.Generator().manual_seed(1)
    tensors = (
        [torch.randn(n, generator=generator).to(device, dtype) for n in EDGES]
        if case == "edges"
        else make_list(case, dtype, device, seed=1)
    )
    plant_special_values(tensors, stride=3)
    keep = make_masks(tensors, density, seed=3)
    mask = sk.pack_mask(keep, backend="reference")
    ranks, packed = packed_backup(tensors, mask)
    return tensors, keep, {"mask": mask, "ranks": ranks}, packed


def entries_of(tensors, keep):
    return torch.cat([t[k] for t, k in zip(tensors, keep, strict=True)])


@pytest.mark.parametrize(
    ("case", "density"),
    [("edges", 0.5), ("edges", 0.0), ("strided", 1.0), *((c, 0.5) for c in SMALL_CASES[1:])],
)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_packed_equals_whole_bit_by_bit(target, dtype, case, distribution, density):
    tensors, keep, kept, packed = lists_of(case, dtype, density, target.device)
    arguments = {"seed": SEED, "distribution": distribution, "backend": target.backend}
    first = {"alpha": 0.5, "gamma": 3.0, "directions": [4, 1], **arguments}
    later = {"directions": [9, 0], "rounds": 7, **arguments}
    before, whole = copy_of(tensors), copy_of(tensors)
    backup = [torch.zeros_like(t) for t in whole]
    sums = [torch.full((), -1.0, dtype=torch.float64, device=target.device) for _ in range(4)]
    sk.zo_combine_(whole, COEF, mask=kept["mask"], backup=backup, sumsq=sums[0], **first)
    sk.zo_combine_(tensors, COEF, **kept, backup=packed, sumsq=sums[1], **first)
    assert_bit_equal(tensors, whole, "tensors", payloads=True)
    assert_bit_equal(packed, entries_of(before, keep), "packed backup", payloads=True)
    assert_bit_equal(sums[1], sums[0], "sumsq")
    sk.zo_combine_(whole, COEF, mask=kept["mask"], src=backup, sumsq=sums[2], **later)
    sk.zo_combine_(tensors, COEF, **kept, src=packed, sumsq=sums[3], **later)
    assert_bit_equal(tensors, whole, "from the packed source", payloads=True)
    assert_bit_equal(packed, entries_of(before, keep), "packed source", payloads=True)
    assert_bit_equal(sums[3], sums[2], "sumsq")
    for t, b, k in zip(tensors, before, keep, strict=True):
        assert_bit_equal(t[~k], b[~k], "entries with mask bit 0", payloads=True)
    assert_gaps_untouched(before, tensors)
    sk.restore_(tensors, packed, masks=kept["mask"], ranks=kept["ranks"], backend=target.backend)
    assert_bit_equal(tensors, before, "restored", payloads=True)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_entries_without_a_bit_may_change_in_between(target, dtype, distribution):
    """A packed source says nothing of them: what they hold now stays."""
    tensors, keep, kept, packed = lists_of("mixed", dtype, 0.4, target.device)
    before = copy_of(tensors)
    arguments = {"seed": 3, "distribution": distribution, "backend": target.backend}
    sk.zo_combine_(tensors, [0.1], **kept, backup=packed, **arguments)
    for t, k in zip(tensors, keep, strict=True):
        t[~k] = 7.0
    now = copy_of(tensors)
    sk.zo_combine_(tensors, [-0.1], **kept, src=packed, **arguments)
    direct = copy_of(before)
    sk.zo_combine_(direct, [-0.1], mask=kept["mask"], **arguments)
    for t, n, d, k in zip(tensors, now, direct, keep, strict=True):
        assert_bit_equal(t[~k], n[~k], "entries with mask bit 0")
        assert_bit_equal(t[k], d[k], "entries with mask bit 1")


def test_shards_of_packed_parameters(target, dtype):
    """Starts, masks and packed entries together: every misalignment of the stream."""
    sizes = [1000 + 7 * i for i in range(9)]
    firsts, uids = [5 + 131 * i for i in range(9)], [6] * 9
    tensors = [torch.randn(n).to(target.device, dtype) for n in sizes]
    keep = make_masks(tensors, 0.5, seed=1)
    mask = sk.pack_mask(keep, backend="reference")
    ranks, packed = packed_backup(tensors, mask)
    for distribution in DISTRIBUTIONS:
        arguments = {"seed": 3, "uids": uids, "distribution": distribution, "mask": mask,
                     "firsts": firsts, "backend": target.backend}  # fmt: skip
        whole, ours = copy_of(tensors), copy_of(tensors)
        backup = copy_of(tensors)
        sk.zo_combine_(whole, COEF, backup=backup, **arguments)
        sk.zo_combine_(ours, COEF, backup=packed, ranks=ranks, **arguments)
        assert_bit_equal(ours, whole, "saved")
        sk.zo_combine_(whole, COEF[::-1], src=backup, **arguments)
        sk.zo_combine_(ours, COEF[::-1], src=packed, ranks=ranks, **arguments)
        assert_bit_equal(ours, whole, "from the source")


@pytest.mark.parametrize("saved", [False, True], ids=["source", "backup"])
def test_packed_rademacher_equals_the_reference(twin, dtype, saved):
    def build(device):
        tensors, _, kept, packed = lists_of("edges", dtype, 0.5, device)
        packed.copy_(torch.linspace(-3, 3, packed.numel()))
        return {"tensors": tensors, **kept, ("backup" if saved else "src"): packed}

    def run(lists, backend):
        total = torch.zeros((), dtype=torch.float64, device=lists["tensors"][0].device)
        arguments = {"seed": SEED, "distribution": "rademacher", "backend": backend, "alpha": 0.3}
        sk.zo_combine_(**lists, coef=COEF, sumsq=total, **arguments)
        return total

    ours, theirs, got, want = run_both(twin, build, run)
    assert_same_lists(ours, theirs)
    assert_bit_equal(got, want, "sumsq")
    if saved:
        assert_bit_equal(ours["backup"], theirs["backup"], "backup", payloads=True)


@pytest.mark.parametrize("saved", [False, True], ids=["source", "backup"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_nothing_beyond_a_packed_tensor_that_is_too_small(target, saved, distribution):
    tensors = [torch.randn(n, device=target.device) for n in (3, 140000)]
    mask = sk.pack_mask(make_masks(tensors, 0.5, seed=3), backend="reference")
    ranks, packed = packed_backup(tensors, mask)
    room = torch.full((packed.numel() + 64,), 7.0, device=target.device)
    small = {"backup" if saved else "src": room[: packed.numel() - 1]}
    before = copy_of(tensors)
    total = torch.full((), 5.0, dtype=torch.float64, device=target.device)

    def call():
        sk.zo_combine_(
            tensors, [1.0], seed=1, mask=mask, ranks=ranks, sumsq=total,
            distribution=distribution, backend=target.backend, **small,
        )  # fmt: skip

    if target.device == "cpu" and target.backend != "triton":
        with pytest.raises((RuntimeError, IndexError)):
            call()
    else:  # the ranks are on the device: the chunk without places is left alone, and adds nothing
        call()
        assert_bit_equal(tensors[1][2 * 65536 :], before[1][2 * 65536 :], "the last chunk")
        assert bool(total.isfinite())
    assert (room[packed.numel() - 1 :] == 7.0).all()


@pytest.mark.parametrize("case", [*SMALL_CASES, "zero-size"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_float32_source_is_rounded_once(target, dtype, case, distribution):
    if dtype == torch.float64:
        return  # float32 is none of its own
    tensors = make_list(case, dtype, target.device, seed=1)
    masters = copy_of(make_list(case, torch.float32, target.device, seed=2))
    keep = make_masks(tensors, 0.5, seed=3)
    before = copy_of(tensors)
    backup = [torch.zeros_like(t) for t in tensors]
    exact = copy_of(masters)  # the same arithmetic in float32, rounded by hand
    arguments = {"seed": SEED, "distribution": distribution, "backend": target.backend}
    factors = {"alpha": 0.3, "gamma": -1.7}
    sums = [torch.zeros((), dtype=torch.float64, device=target.device) for _ in range(2)]
    sk.zo_combine_(exact, COEF, sumsq=sums[0], **factors, **arguments)
    wanted = [e.to(dtype) for e in exact]
    sk.zo_combine_(tensors, COEF, src=masters, backup=backup, sumsq=sums[1], **factors, **arguments)
    assert_bit_equal(tensors, wanted, "tensors")
    assert_bit_equal(backup, before, "backup", payloads=True)
    assert_bit_equal(masters, make_list(case, torch.float32, target.device, seed=2), "masters")
    assert_bit_equal(sums[1], sums[0], "sumsq")
    assert_gaps_untouched(before, tensors)
    plant_special_values(before, stride=2)
    tensors = copy_of(before)
    mask = sk.pack_mask(keep, backend="reference")
    sk.zo_combine_(tensors, COEF, src=masters, mask=mask, **factors, **arguments)
    for t, b, w, k in zip(tensors, before, wanted, keep, strict=True):
        assert_bit_equal(t[~k], b[~k], "entries with mask bit 0", payloads=True)
        assert_bit_equal(t[k], w[k], "entries with mask bit 1")


def test_no_sum_makes_the_masters_weights(target):
    """All coefficients 0: what a 16-bit model starts from is its masters, rounded to nearest."""
    for dtype in NARROW:
        if not supports(target, dtype):
            continue
        masters = [torch.randn(n, device=target.device) for n in (300, 70000)]
        plant_special_values(masters, stride=5)
        tensors = [torch.zeros(m.shape, dtype=dtype, device=target.device) for m in masters]
        sk.zo_combine_(tensors, [0.0], src=masters, seed=1, backend=target.backend)
        for t, m in zip(tensors, masters, strict=True):
            assert torch.equal(t.nan_to_num(), m.to(dtype).nan_to_num())
            assert torch.equal(t.isnan(), m.isnan())


def test_streamed_stores(target):
    # large enough for the CPU kernels to write around the caches
    n = 9 * 2**20 + 13
    masters = [torch.randn(n, device=target.device)]
    for dtype in (torch.bfloat16,) if supports(target, torch.bfloat16) else ():
        tensors = [torch.zeros(n, dtype=dtype, device=target.device)]
        arguments = {"seed": 1, "distribution": "rademacher", "backend": target.backend}
        sk.zo_combine_(tensors, [0.01], src=masters, firsts=[77], **arguments)
        exact = copy_of(masters)
        sk.zo_combine_(exact, [0.01], firsts=[77], **arguments)
        assert_bit_equal(tensors[0], exact[0].to(dtype), "tensors")
    mask = sk.pack_mask(make_masks(masters, 0.5, seed=3), backend="reference")
    ranks, packed = packed_backup(masters, mask)
    ours, whole, backup = copy_of(masters), copy_of(masters), copy_of(masters)
    arguments = {"seed": 1, "distribution": "rademacher", "backend": target.backend, "mask": mask}
    sk.zo_combine_(ours, [0.01], backup=packed, ranks=ranks, **arguments)
    sk.zo_combine_(whole, [0.01], backup=backup, **arguments)
    sk.zo_combine_(ours, [0.02], src=packed, ranks=ranks, **arguments)
    sk.zo_combine_(whole, [0.02], src=backup, **arguments)
    assert_bit_equal(ours, whole, "tensors")
