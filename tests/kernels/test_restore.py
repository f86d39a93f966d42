"""restore_: a copy of bits."""

from __future__ import annotations

import pytest
import torch
from compare import assert_gaps_untouched, assert_same_lists, run_both

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


def build(case, dtype, density):
    def on(device):
        params = make_list(case, dtype, device, seed=1)
        backup = make_list(case, dtype, device, seed=2)
        plant_special_values(params, stride=3)
        plant_special_values(backup, stride=4)
        lists = {"params": params, "backup": backup}
        if density is not None:
            masks = make_masks(params, density, seed=3)
            lists["masks"] = sk.pack_mask(masks, backend="reference")
        return lists

    return on


def run(lists, backend):
    sk.restore_(**lists, backend=backend)


@pytest.mark.parametrize(
    ("case", "density"),
    [(c, d) for c in LIST_CASES for d in (None, 0.5, 0.0, 1.0) if c != "tiny-1000" or d == 0.5],
)
def test_equals_the_reference_payloads_included(twin, dtype, case, density):
    ours, theirs, _, _ = run_both(twin, build(case, dtype, density), run)
    assert_same_lists(ours, theirs, payloads=True)


@pytest.mark.parametrize("case", ["mixed", "chunk-edges", "misaligned", "transposed", "strided"])
def test_copies_exactly_the_masked_entries(target, dtype, case):
    lists = build(case, dtype, 0.5)(target.device)
    before = copy_of(lists["params"])
    run(lists, target.backend)
    keep = make_masks(before, 0.5, seed=3)
    for p, b, saved, k in zip(lists["params"], before, lists["backup"], keep, strict=True):
        assert_bit_equal(p[k], saved[k], "restored entries", payloads=True)
        assert_bit_equal(p[~k], b[~k], "entries with mask bit 0", payloads=True)
    assert_gaps_untouched(before, lists["params"])


def test_backup_is_not_changed(target, dtype):
    lists = build("mixed", dtype, 0.5)(target.device)
    before = copy_of(lists["backup"])
    run(lists, target.backend)
    assert_bit_equal(lists["backup"], before, "backup", payloads=True)


def test_every_16_bit_pattern(target):
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=target.device).view(dtype)
        w = torch.zeros_like(every)
        sk.restore_([w], [every], backend=target.backend)
        assert_bit_equal(w, every, "params", payloads=True)


def test_a_thousand_cycles_drift_nowhere(target, dtype):
    # spec sparse-sam, property 9: injected gradients, special values planted
    params = make_list("seven", dtype, target.device, seed=1) + make_list(
        "one", dtype, target.device, seed=2
    )
    plant_special_values(params, stride=2)
    before = copy_of(params)
    backup = [torch.empty_like(p) for p in params]
    norm = torch.tensor(1.0, device=target.device)
    gradients = torch.Generator().manual_seed(5)
    moved = 0
    for _ in range(1000):
        grads = [torch.randn(p.shape, generator=gradients).to(p) for p in params]
        sk.masked_perturb_(params, grads, norm, 0.5, None, backup, backend=target.backend)
        moved += int((bits_of(params[0]) != bits_of(before[0])).sum())
        sk.restore_(params, backup, backend=target.backend)
    assert_bit_equal(params, before, "params", payloads=True)
    assert moved >= 3000  # of 7000; the planted infinities and NaNs stay where they are


def test_restoring_from_itself_changes_nothing(target, dtype):
    params = make_list("mixed", dtype, target.device, seed=1)
    plant_special_values(params)
    before = copy_of(params)
    sk.restore_(params, params, backend=target.backend)
    assert_bit_equal(params, before, "params", payloads=True)


def test_threads_and_streamed_stores(target):
    # 2 x 20 MB is past the size above which the CPU kernels write around the caches
    threads = torch.get_num_threads()
    saved = torch.randn(5 * 2**20 + 13, device=target.device)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        w = torch.zeros(saved.numel() + 1, device=target.device)[1:]
        sk.restore_([w], [saved], backend=target.backend)
        assert_bit_equal(w, saved, "params", payloads=True)
    torch.set_num_threads(threads)
