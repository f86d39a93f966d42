"""The packed backup: the entries with mask bit 1 of all parameters, in one tensor."""

from __future__ import annotations

import pytest
import torch
from compare import assert_gaps_untouched, assert_same_lists, run_both

import sparse_kernels as sk
from sparse_kernels.reference._common import RANK_TILE
from sparse_kernels.testing import (
    LIST_CASES,
    assert_bit_equal,
    bits_of,
    copy_of,
    make_list,
    make_masks,
    plant_special_values,
)

#: sizes around the edges of a tile of ranks, a chunk, and a block of the CPU kernels
EDGES = (1, 31, 255, 257, RANK_TILE - 1, RANK_TILE, RANK_TILE + 1, 65535, 65536, 65537, 140000)


def packed_backup(params, masks):
    """Ranks, and a packed tensor of exactly as many entries as the masks have ones."""
    ranks = sk.mask_ranks(masks, backend="reference")
    ones = sum(int(c) for c in sk.count_ones(masks, backend="reference"))
    first = params[0] if params else torch.empty(0)
    return ranks, torch.zeros(ones, dtype=first.dtype, device=first.device)


def build(case, dtype, density):
    def on(device):
        params = make_list(case, dtype, device, seed=1)
        grads = make_list(case, dtype, device, seed=2)
        plant_special_values(params, stride=3)
        plant_special_values(grads, stride=4)
        masks = sk.pack_mask(make_masks(params, density, seed=3), backend="reference")
        ranks, packed = packed_backup(params, masks)
        return {"params": params, "grads": grads, "masks": masks, "ranks": ranks, "backup": packed}

    return on


def perturb(lists, backend, norm=3.0, **scalars):
    params = lists["params"]
    n = torch.tensor(norm, device=params[0].device if params else "cpu")
    sk.masked_perturb_(**lists, norm=n, rho=0.7, **scalars, backend=backend)


def restore(lists, backend):
    sk.restore_(**{k: v for k, v in lists.items() if k != "grads"}, backend=backend)


@pytest.mark.parametrize(
    ("case", "density"),
    [(c, d) for c in LIST_CASES for d in (0.5, 0.0, 1.0) if not c.startswith("tiny") or d == 0.5],
)
def test_equals_the_reference_payloads_included(twin, dtype, case, density):
    scalars = {"adaptive": density == 1.0, "eta": 0.25}
    ours, theirs, _, _ = run_both(
        twin, build(case, dtype, density), lambda x, backend: perturb(x, backend, **scalars)
    )
    assert_same_lists(ours, theirs)
    assert_bit_equal(ours["backup"], theirs["backup"], "backup", payloads=True)
    before = build(case, dtype, density)("cpu")["params"]
    restore(ours, twin.backend)
    assert_same_lists(ours, {"params": before}, payloads=True)


@pytest.mark.parametrize("density", [0.02, 0.5, 0.99])
def test_entries_stand_in_order(target, dtype, density):
    params = [torch.randn(n).to(target.device, dtype) for n in EDGES]
    plant_special_values(params, stride=7)
    keep = make_masks(params, density, seed=3)
    masks = sk.pack_mask(keep)
    ranks, packed = packed_backup(params, masks)
    wanted = torch.cat([p[k] for p, k in zip(params, keep, strict=True)])
    grads = [torch.randn_like(p) for p in params]
    before = copy_of(params)
    lists = {"params": params, "grads": grads, "masks": masks, "ranks": ranks, "backup": packed}
    perturb(lists, target.backend)
    assert packed.numel() == sum(int(k.sum()) for k in keep)
    assert_bit_equal(packed, wanted, "backup", payloads=True)
    assert sum(int((bits_of(p) != bits_of(b)).sum()) for p, b in zip(params, before, strict=True))
    restore(lists, target.backend)
    assert_bit_equal(params, before, "params", payloads=True)


def test_runs_of_ones_and_zeros(target, dtype):
    # whole words and whole blocks of either kind take paths of their own
    n = 3 * 65536 + 100
    params = [torch.randn(n).to(target.device, dtype)]
    i = torch.arange(n, device=target.device)
    keep = [((i // 32) % 3 == 0) | ((i // 256) % 4 == 1) & (i < 100000) | (i % 1000 == 7)]
    masks = sk.pack_mask(keep)
    ranks, packed = packed_backup(params, masks)
    before = copy_of(params)
    grads = [torch.randn_like(params[0])]
    lists = {"params": params, "grads": grads, "masks": masks, "ranks": ranks, "backup": packed}
    perturb(lists, target.backend)
    assert_bit_equal(packed, before[0][keep[0]], "backup", payloads=True)
    assert_bit_equal(params[0][~keep[0]], before[0][~keep[0]], "entries with mask bit 0")
    restore(lists, target.backend)
    assert_bit_equal(params, before, "params", payloads=True)


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_saved_also_where_the_norm_is_not_finite(target, dtype, norm):
    lists = build("mixed", dtype, 0.5)(target.device)
    before = copy_of(lists["params"])
    perturb(lists, target.backend, norm)
    assert_bit_equal(lists["params"], before, "params", payloads=True)
    keep = make_masks(before, 0.5, seed=3)
    wanted = torch.cat([p[k] for p, k in zip(before, keep, strict=True)])
    assert_bit_equal(lists["backup"], wanted, "backup", payloads=True)


def test_a_part_of_the_list(target, dtype):
    # a parameter without a gradient is left out of a call; the others keep their places
    lists = build("mixed", dtype, 0.5)(target.device)
    before = copy_of(lists["params"])
    lists["backup"].fill_(7.0)
    some = {k: v if k == "backup" else v[2::2] for k, v in lists.items()}
    perturb(some, target.backend)
    keep = make_masks(before, 0.5, seed=3)
    parts = list(lists["backup"].split([int(k.sum()) for k in keep]))
    for i, (p, k, part) in enumerate(zip(before, keep, parts, strict=True)):
        expected = p[k] if i in range(2, len(before), 2) else torch.full_like(part, 7.0)
        assert_bit_equal(part, expected, f"entries of params[{i}]", payloads=True)
    restore(some, target.backend)
    assert_bit_equal(lists["params"], before, "params", payloads=True)


def test_gaps_and_neighbours_are_not_written(target, dtype):
    params = make_list("strided", dtype, target.device, seed=1)
    grads = make_list("strided", dtype, target.device, seed=2)
    masks = sk.pack_mask(make_masks(params, 0.5, seed=3))
    ranks, packed = packed_backup(params, masks)
    room = torch.full((packed.numel() + 200,), 7.0, dtype=dtype, device=target.device)
    before = copy_of(params)
    for shift in (0, 1, 3, 100):
        room.fill_(7.0)
        inside = room[shift : shift + packed.numel()]
        lists = {"params": params, "grads": grads, "masks": masks, "ranks": ranks, "backup": inside}
        perturb(lists, target.backend)
        assert_gaps_untouched(before, params)
        outside = torch.cat([room[:shift], room[shift + packed.numel() :]])
        assert (outside == 7.0).all()
        restore(lists, target.backend)
        assert_bit_equal(params, before, "params")


@pytest.mark.parametrize("missing", [1, 5000])
def test_nothing_beyond_a_packed_tensor_that_is_too_small(target, missing):
    params = [torch.randn(n, device=target.device) for n in (3, 140000)]
    grads = [torch.randn_like(p) for p in params]
    masks = sk.pack_mask(make_masks(params, 0.5, seed=3))
    ranks, packed = packed_backup(params, masks)
    room = torch.full((packed.numel() + 64,), 7.0, device=target.device)
    small = room[: packed.numel() - missing]
    before = copy_of(params)
    lists = {"params": params, "grads": grads, "masks": masks, "ranks": ranks, "backup": small}
    if target.device == "cpu" and target.backend != "triton":
        with pytest.raises((RuntimeError, IndexError)):
            perturb(lists, target.backend)
    else:  # the ranks are on the device: what has no place is left alone
        perturb(lists, target.backend)
        restore(lists, target.backend)
        assert_bit_equal(params, before, "params")
    assert (room[packed.numel() - missing :] == 7.0).all()


@pytest.mark.needs_backend("cpp")
@pytest.mark.parametrize("first", [-1, 10**9, 60000])
def test_ranks_of_another_mask_write_nothing_outside(first):
    # inconsistent tables get past the check of the last tile: the kernel looks at every chunk
    if "cpp" not in sk.available_backends():
        pytest.skip(str(sk.explain("masked_perturb_")))
    params = [torch.randn(3 * 65536)]
    masks = sk.pack_mask(make_masks(params, 0.5, seed=3))
    ranks, packed = packed_backup(params, masks)
    room = torch.full((packed.numel() + 64,), 7.0)
    ranks[0][8] = first
    lists = {
        "params": params, "grads": [torch.randn_like(params[0])], "masks": masks, "ranks": ranks,
        "backup": room[: packed.numel()],
    }  # fmt: skip
    before = params[0].clone()
    perturb(lists, "cpp")
    assert (room[packed.numel() :] == 7.0).all()
    untouched = bool((params[0][65536:131072] == before[65536:131072]).all())
    assert untouched == (first != 60000)


def test_a_thousand_cycles_drift_nowhere(target, dtype):
    # spec sparse-sam, property 9
    lists = build("mixed", dtype, 0.5)(target.device)
    kept = ("params", "masks", "ranks")
    some = {k: [v[i] for i in (0, 2, 3, 6, 7)] if k in kept else v for k, v in lists.items()}
    before = copy_of(some["params"])
    some["ranks"], some["backup"] = packed_backup(some["params"], some["masks"])
    gradients = torch.Generator().manual_seed(5)
    moved = 0
    for _ in range(1000):
        some["grads"] = [torch.randn(p.shape, generator=gradients).to(p) for p in some["params"]]
        perturb(some, target.backend)
        moved += int((bits_of(some["params"][1]) != bits_of(before[1])).sum())
        restore(some, target.backend)
    assert_bit_equal(some["params"], before, "params", payloads=True)
    assert moved >= 300_000  # of 1,000 times the 1,000 masked entries of the (64, 33) tensor


def test_does_not_depend_on_threads(target):
    expected = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        lists = build("chunk-edges", torch.float32, 0.5)(target.device)
        perturb(lists, target.backend)
        expected = expected or lists
        assert_same_lists(lists, expected)
        assert_bit_equal(lists["backup"], expected["backup"], "backup", payloads=True)


def test_streamed_stores(target):
    # large enough for the CPU kernels to write around the caches, whatever the place's alignment
    n = 6 * 2**20 + 13
    params, grads = [torch.randn(n, device=target.device)], [torch.randn(n, device=target.device)]
    before = params[0].clone()
    masks = sk.pack_mask(make_masks(params, 0.5, seed=3))
    ranks, packed = packed_backup(params, masks)
    room = torch.zeros(packed.numel() + 5, device=target.device)
    for threads, shift in ((1, 0), (2, 5)):
        torch.set_num_threads(threads)
        inside = room[shift : shift + packed.numel()]
        lists = {"params": params, "grads": grads, "masks": masks, "ranks": ranks, "backup": inside}
        perturb(lists, target.backend)
        wanted = before[make_masks(params, 0.5, seed=3)[0]]
        assert_bit_equal(inside, wanted, "backup")
        restore(lists, target.backend)
        assert_bit_equal(params[0], before, "params")
