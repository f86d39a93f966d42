"""count_ones, mask_ranks: ones of bit masks, and where they stand when they are packed."""

from __future__ import annotations

import pytest
import torch
from ranked_cases import exactly

import sparse_kernels as sk
from sparse_kernels.testing import LIST_CASES, assert_bit_equal, make_list, make_masks

TILE = 8192
SIZES = [0, 1, 31, 33, 1023, TILE - 1, TILE, TILE + 1, 5 * TILE + 77, 9 * TILE]


def masks_of(sizes, density, device):
    return make_masks([torch.empty(n, device=device) for n in sizes], density, seed=len(sizes))


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_sizes_around_a_tile(target, density):
    masks = masks_of(SIZES, density, target.device)
    words = sk.pack_mask(masks)
    ones = sk.count_ones(words, backend=target.backend)
    assert [int(n) for n in ones] == [int(m.sum()) for m in masks]
    assert all(n.dtype == torch.int64 and n.dim() == 0 for n in ones)
    before, wanted = 0, []
    for m in masks:
        tiles = [m[i : i + TILE] for i in range(0, m.numel(), TILE)]
        ranks = []
        for tile in tiles:
            ranks.append(before)
            before += int(tile.sum())
        wanted.append(torch.tensor(ranks, dtype=torch.int64))
    assert_bit_equal(sk.mask_ranks(words, backend=target.backend), wanted, "ranks")


@pytest.mark.parametrize("case", LIST_CASES)
def test_layouts(twin, case):
    masks = make_masks(make_list(case, torch.float32, twin.device), 0.5, seed=7)
    words = sk.pack_mask(masks)
    ones = sk.count_ones(words, backend=twin.backend)
    assert [int(n) for n in ones] == [int(m.sum()) for m in masks]
    expected = sk.mask_ranks([w.cpu() for w in words], backend="reference")
    assert_bit_equal(sk.mask_ranks(words, backend=twin.backend), expected, "ranks")


def test_words_that_are_views(target):
    words = torch.arange(-3000, 3000, dtype=torch.int32, device=target.device)
    views = [words[1:2049], words[::3], words[:0], words.reshape(60, 100).t()]
    ones = sk.count_ones(views, backend=target.backend)
    counted = [sum(f"{x & 0xFFFFFFFF:b}".count("1") for x in v.flatten().tolist()) for v in views]
    assert [int(n) for n in ones] == counted


def test_threads_do_not_matter(target):
    words = sk.pack_mask(masks_of([70 * TILE, 3, 40 * TILE + 9], 0.5, target.device))
    first = sk.mask_ranks(words, backend=target.backend)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert_bit_equal(sk.mask_ranks(words, backend=target.backend), first, "ranks")


@pytest.mark.parametrize("op", ["count_ones", "mask_ranks"])
def test_refused(target, op):
    words = torch.zeros(4, dtype=torch.int32, device=target.device)
    call = getattr(sk, op)
    for wrong, message in (
        (words, "masks must be a list or tuple of tensors, got Tensor"),
        ([words, 3], "masks[1] must be a tensor, got int"),
        ([words, words.long()], "masks[1] is torch.int64, expected int32 words"),
    ):
        with pytest.raises(ValueError, match=exactly(f"{op}: {message}")):
            call(wrong, backend=target.backend)
    assert call([], backend=target.backend) == []
