"""mask_dropgrow: the exchange of a dynamic mask, against two stable sorts."""

from __future__ import annotations

import itertools

import pytest
import torch
from ranked_cases import KEY, bools, exactly, first_k, keys_of, scores_of

import sparse_kernels as sk
from sparse_kernels.testing import assert_bit_equal

SPARSITIES = (0.05, 0.2, 0.5, 0.9, 0.99)
RATES = (0.0, 0.3, 0.5, 1.0)


def setting(sparsity, dtype=torch.float32, device="cpu"):
    """Drop and grow scores, a mask of exactly k ones, and k."""
    drop = scores_of("mixed", dtype, device)
    grow = [g.flip(0) if g.dim() else g for g in drop]
    total = sum(s.numel() for s in drop)
    live = total - int(total * sparsity + 0.5)
    return drop, grow, sk.mask_topk(drop, live, kind="random", key=KEY), live


def moved(live, total, rate):
    return min(int(live * rate + 0.5), live, total - live)


def exchange(drop, grow, old, keep, count, regrow):
    """Bool masks (kept, grown) of one exchange by two stable sorts."""
    kept = first_k(torch.cat(keys_of(drop, "abs")), keep, old)
    free = ~kept if regrow else ~old
    return kept, first_k(torch.cat(keys_of(grow, "abs")), count, free)


@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize(("sparsity", "rate"), list(itertools.product(SPARSITIES, RATES)))
def test_equals_two_sorts(target, sparsity, rate, regrow):
    drop, grow, masks, live = setting(sparsity, device=target.device)
    old = torch.cat(bools(masks, drop))
    count = moved(live, old.numel(), rate)
    before = [m.clone() for m in masks]
    new = sk.mask_dropgrow(masks, live, count, drop, grow, regrow=regrow, backend=target.backend)
    assert_bit_equal(masks, before, "masks")
    kept, grown = exchange(drop, grow, old, live - count, count, regrow)
    got = torch.cat(bools(new, drop))
    assert torch.equal(got, kept | grown)
    assert int(got.sum()) == live  # conserved
    dropped = old & ~kept
    assert int(dropped.sum()) == count
    if count and count < live:
        size = torch.cat([d.cpu().reshape(-1) for d in drop]).abs()
        assert size[dropped].max() <= size[kept].min()
    if not regrow:
        assert not (got & dropped).any()  # a dropped entry does not return at once
        assert int((got & ~old).sum()) == count


def test_per_tensor_counts(target, dtype):
    drop, grow, _, _ = setting(0.5, dtype, target.device)
    lives = [s.numel() // 2 for s in drop]
    counts = [n // 3 for n in lives]
    masks = sk.mask_topk(drop, lives, kind="random", key=KEY)
    new = sk.mask_dropgrow(masks, lives, counts, drop, grow, backend=target.backend)
    for got, old, d, g, live, count in zip(
        bools(new, drop), bools(masks, drop), drop, grow, lives, counts, strict=True
    ):
        kept, grown = exchange([d], [g], old, live - count, count, False)
        assert torch.equal(got, kept | grown)


def test_counts_stay_over_many_updates(target):
    shape = (700,)
    for sparsity, rate in itertools.product(SPARSITIES, RATES):
        generator = torch.Generator().manual_seed(1)
        total = 700
        live = total - int(total * sparsity + 0.5)
        scores = [torch.randn(shape, generator=generator).to(target.device)]
        masks = sk.mask_topk(scores, live, kind="random", key=1, backend=target.backend)
        count = moved(live, total, rate)
        for update in range(200 if target.backend == "cpp" else 10):
            scores = [torch.randn(shape, generator=generator).to(target.device)]
            masks = sk.mask_dropgrow(
                masks, live, count, scores, scores, grow_kind="random", grow_key=update,
                backend=target.backend,
            )  # fmt: skip
            assert int(bools(masks, scores)[0].sum()) == live


def test_random_drop_and_other_number_to_grow(target):
    drop, grow, masks, live = setting(0.5, device=target.device)
    old = torch.cat(bools(masks, drop))
    options = {"drop_kind": "random", "drop_key": 5, "grow_kind": "value", "grow": 70}
    new = sk.mask_dropgrow(masks, live, 100, drop, grow, **options, backend=target.backend)
    kept = first_k(torch.cat(keys_of(drop, "random", 5)), live - 100, old)
    grown = first_k(torch.cat(keys_of(grow)), 70, ~old)
    got = torch.cat(bools(new, drop))
    assert torch.equal(got, kept | grown)
    assert int(got.sum()) == live - 30


def test_refused(target):
    scores = [torch.ones(8, device=target.device)]
    masks = sk.pack_mask([s > 0 for s in scores])
    for live, count, message in (
        (8, 9, "count must be in [0, 8], got 9"),
        (8, -1, "count must be in [0, 8], got -1"),
        ([8], [1, 1], "1 live counts, 2 and 2 to move"),
    ):
        with pytest.raises(ValueError, match=exactly(f"mask_dropgrow: {message}")):
            sk.mask_dropgrow(masks, live, count, scores, scores, backend=target.backend)
