"""mask_apply_: +0.0 where the bit is 0, every other bit as it was."""

from __future__ import annotations

import pytest
import torch
from compare import assert_gaps_untouched, assert_same_lists, run_both

import sparse_kernels as sk
from sparse_kernels.testing import (
    LIST_CASES,
    SMALL_CASES,
    assert_bit_equal,
    bits_of,
    copy_of,
    make_list,
    make_masks,
    plant_special_values,
)


def build_with(case, dtype, density=0.5):
    def build(device):
        tensors = make_list(case, dtype, device, seed=1)
        plant_special_values(tensors)
        return {"tensors": tensors, "masks": sk.pack_mask(make_masks(tensors, density, seed=2))}

    return build


def apply(lists, backend):
    sk.mask_apply_(lists["tensors"], lists["masks"], backend=backend)


@pytest.mark.parametrize("case", LIST_CASES)
def test_equals_the_reference(twin, dtype, case):
    ours, theirs, _, _ = run_both(twin, build_with(case, dtype), apply)
    assert_same_lists(ours, theirs, payloads=True)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("case", SMALL_CASES)
def test_zeros_and_nothing_else(target, dtype, case, density):
    tensors = make_list(case, dtype, target.device, seed=1)
    plant_special_values(tensors)
    before = copy_of(tensors)
    masks = make_masks(tensors, density, seed=4)
    versions = [t._version for t in tensors]
    sk.mask_apply_(tensors, sk.pack_mask(masks), backend=target.backend)
    for t, b, m, v in zip(tensors, before, masks, versions, strict=True):
        bits, old = bits_of(t), bits_of(b)
        assert torch.equal(bits[m], old[m])  # NaN payloads and -0.0 included
        assert not bits[~m].any()  # +0.0
        assert t._version > v
    assert_gaps_untouched(before, tensors)


def test_threads_do_not_matter(target, dtype):
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        lists = build_with("mixed", dtype)(target.device)
        apply(lists, target.backend)
        if count == 1:
            first = copy_of(lists["tensors"])
        assert_bit_equal(lists["tensors"], first, "tensors", payloads=True)


def test_padding_of_foreign_words_is_ignored(target):
    x = torch.ones(37, device=target.device)
    words = torch.tensor([0, -1], dtype=torch.int32, device=target.device)
    sk.mask_apply_([x], [words], backend=target.backend)
    assert x.tolist() == [0.0] * 32 + [1.0] * 5
