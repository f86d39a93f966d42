"""mask_topk: exactly the k first of a stable sort, whatever the scores, the layout, the backend."""

from __future__ import annotations

import pytest
import torch
from ranked_cases import (
    KEY,
    VALUES,
    bools,
    exactly,
    first_k,
    keys_of,
    scores_of,
    values,
    with_specials,
)

import sparse_kernels as sk
from sparse_kernels.testing import (
    LIST_CASES,
    assert_bit_equal,
    make_masks,
    supports,
    targets,
)

KINDS = ("value", "abs", "random")


def key_for(kind):
    return KEY if kind == "random" else None


def counts_for(total):
    return sorted({k for k in (0, 1, total // 3, total - 1, total) if 0 <= k <= total})


def check(scores, k, target, kind="value", here=None, **options):
    """One global selection against the stable sort; ``here`` are bool masks of the candidates."""
    words = sk.mask_topk(scores, k, kind=kind, key=key_for(kind), backend=target.backend, **options)
    keys = keys_of(scores, kind, key_for(kind))
    candidates = None if here is None else torch.cat([h.cpu().reshape(-1) for h in here])
    wanted = first_k(torch.cat(keys), k, candidates)
    got = bools(words, scores)
    assert torch.equal(torch.cat(got), wanted)
    return words


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kind", ["value", "abs"])
def test_equals_a_stable_sort(target, dtype, name, kind):
    scores = [values(name, dtype, target.device)]
    for k in counts_for(scores[0].numel()):
        check(scores, k, target, kind)


@pytest.mark.parametrize("kind", ["value", "abs"])
def test_special_values(target, dtype, kind):
    scores = [with_specials(dtype, 3001).to(target.device)]
    for k in (1, 500, 1500, 2400, 2999):
        check(scores, k, target, kind)


def test_every_code_of_16_bits(target):
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        order = torch.randperm(2**16, generator=torch.Generator().manual_seed(0))
        scores = [codes[order].view(dtype).to(target.device)]
        for k in (1, 300, 2**15, 2**16 - 400, 2**16 - 2**11):
            check(scores, k, target)


@pytest.mark.parametrize("case", [c for c in LIST_CASES if not c.startswith("tiny")])
@pytest.mark.parametrize("kind", KINDS)
def test_layouts(target, dtype, case, kind):
    scores = scores_of(case, dtype, target.device)
    before = [s.clone() for s in scores]
    total = sum(s.numel() for s in scores)
    if not scores:
        assert sk.mask_topk(scores, 0, backend=target.backend) == []
        return
    for k in counts_for(total)[1:4]:
        check(scores, k, target, kind)
    assert_bit_equal(scores, before, "scores", payloads=True)


@pytest.mark.parametrize("kind", ["value", "random"])
def test_many_tensors(target, kind):
    scores = scores_of("tiny-1000", torch.float32, target.device)
    check(scores, 700, target, kind)
    ones = [1] * len(scores)
    words = sk.mask_topk(scores, ones, kind=kind, key=key_for(kind), backend=target.backend)
    best = [int(k.argmax()) for k in keys_of(scores, kind, key_for(kind))]
    assert [int(b.nonzero()) for b in bools(words, scores)] == best


@pytest.mark.parametrize("kind", KINDS)
def test_one_selection_per_tensor(target, dtype, kind):
    scores = scores_of("mixed", dtype, target.device)
    ks = [s.numel() * (i % 4) // 3 for i, s in enumerate(scores)]
    key = key_for(kind)
    words = sk.mask_topk(scores, ks, kind=kind, key=key, backend=target.backend)
    keys = keys_of(scores, kind, key)
    for got, own, k in zip(bools(words, scores), keys, ks, strict=True):
        assert torch.equal(got, first_k(own, k))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.6, 1.0])
def test_candidates(target, dtype, density, inverted):
    scores = scores_of("mixed", dtype, target.device)
    masks = make_masks(scores, density, seed=5)
    among = sk.pack_mask(masks)
    here = [~m if inverted else m for m in masks]
    have = sum(int(h.sum()) for h in here)
    for k in {0, 1, have // 2, have}:
        if k <= have:
            check(scores, k, target, here=here, among=among, inverted=inverted)
    check(scores, have, target, "random", here=here, among=among, inverted=inverted)


def test_fewer_candidates_than_asked_for(target):
    scores = scores_of("mixed", torch.float32, target.device)
    masks = make_masks(scores, 0.1, seed=5)
    words = sk.mask_topk(
        scores, sum(s.numel() for s in scores), among=sk.pack_mask(masks), backend=target.backend
    )
    assert torch.equal(
        torch.cat(bools(words, scores)), torch.cat([m.reshape(-1) for m in masks]).cpu()
    )
    ks = [s.numel() for s in scores]
    words = sk.mask_topk(scores, ks, among=sk.pack_mask(masks), backend=target.backend)
    assert torch.equal(
        torch.cat(bools(words, scores)), torch.cat([m.reshape(-1) for m in masks]).cpu()
    )


def test_out_takes_the_result_by_or(target, dtype):
    scores = scores_of("mixed", dtype, target.device)
    masks = make_masks(scores, 0.2, seed=9)
    out = sk.pack_mask(masks)
    versions = [w._version for w in out]
    words = sk.mask_topk(scores, 5000, out=out, backend=target.backend)
    assert all(a is b for a, b in zip(words, out, strict=True))
    assert all(w._version > v for w, v in zip(out, versions, strict=True))
    fresh = bools(sk.mask_topk(scores, 5000, backend="reference"), scores)
    for got, new, old in zip(bools(out, scores), fresh, masks, strict=True):
        assert torch.equal(got, new | old.reshape(-1).cpu())


def test_out_need_not_be_contiguous(target):
    scores = scores_of("mixed", torch.float32, target.device)
    wanted = sk.mask_topk(scores, 5000, backend="reference")
    rooms = [torch.full((w.numel(), 2), 7, dtype=torch.int32, device=w.device) for w in wanted]
    out = [room[:, 1].zero_() for room in rooms]
    sk.mask_topk(scores, 5000, out=out, backend=target.backend)
    assert_bit_equal(out, wanted, "words")
    assert all((room[:, 0] == 7).all() for room in rooms)


def test_mixed_dtypes_share_one_order(target):
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float32]
    if supports(target, torch.float64):
        dtypes.append(torch.float64)
    generator = torch.Generator().manual_seed(1)
    quarters = [(torch.randn(5000, generator=generator) * 4).round() / 4 for _ in dtypes]
    scores = [q.to(target.device, d) for q, d in zip(quarters, dtypes, strict=True)]
    for k in (1, 7000, 15_000):
        check(scores, k, target)
    ks = [1, 10, 100, 1000, 5000][: len(scores)]
    words = sk.mask_topk(scores, ks, backend=target.backend)
    for got, own, k in zip(bools(words, scores), keys_of(scores), ks, strict=True):
        assert torch.equal(got, first_k(own, k))


@pytest.mark.parametrize("numel", [1, 7, 1000])
@pytest.mark.parametrize("sparsity", [0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1])
def test_live_count_is_exact(target, numel, sparsity):
    k = numel - int(numel * sparsity + 0.5)
    for scores in (torch.randn(numel), torch.zeros(numel), torch.full((numel,), float("nan"))):
        words = sk.mask_topk([scores.to(target.device)], k, backend=target.backend)
        assert int(bools(words, [scores])[0].sum()) == k


@pytest.mark.parametrize("fast", [t for t in targets() if t.backend in ("cpp", "cuda")], ids=str)
def test_the_size_of_a_resnet(fast):
    scores = torch.randn(11_173_962, device=fast.device)
    for sparsity in (0.5, 0.99):
        k = scores.numel() - int(scores.numel() * sparsity + 0.5)
        (words,) = sk.mask_topk([scores], k, backend=fast.backend)
        (mask,) = sk.unpack_mask([words], [scores.shape])
        assert int(mask.sum()) == k
        assert scores[mask].min() >= scores[~mask].max()


def test_order_properties(target):
    scores = with_specials(torch.float32, 4000).to(target.device)
    k = 1500
    (live,) = bools(sk.mask_topk([scores], k, backend=target.backend), [scores])
    kept, dropped = scores.cpu()[live], scores.cpu()[~live]
    assert kept.nan_to_num(-float("inf")).min() >= dropped.nan_to_num(-float("inf")).max()
    assert not kept.isnan().any()
    constant = torch.full((4000,), 0.25, device=target.device)
    (live,) = bools(sk.mask_topk([constant], k, backend=target.backend), [constant])
    assert live[:k].all()
    assert not live[k:].any()
    zeros = torch.tensor([-0.0, 0.0, -0.0, 0.0], device=target.device)
    (live,) = bools(sk.mask_topk([zeros], 2, backend=target.backend), [zeros])
    assert live.tolist() == [True, True, False, False]
    last = torch.tensor([float("nan"), -float("inf"), float("nan"), 1.0], device=target.device)
    (live,) = bools(sk.mask_topk([last], 3, backend=target.backend), [last])
    assert live.tolist() == [True, True, False, True]


def test_random_numbers_depend_on_key_and_index_alone(target):
    scores = [torch.randn(n, device=target.device) for n in (70_001, 3, 0, 65_537)]
    words = sk.mask_topk(scores, 9000, kind="random", key=KEY, backend=target.backend)
    torch.randn(100)
    flat = [torch.full((sum(s.numel() for s in scores),), float("nan"), device=target.device)]
    one = sk.mask_topk(flat, 9000, kind="random", key=KEY, backend=target.backend)
    assert torch.equal(torch.cat(bools(words, scores)), bools(one, flat)[0])
    half = [s.bfloat16() for s in scores]
    again = sk.mask_topk(half, 9000, kind="random", key=KEY, backend=target.backend)
    assert_bit_equal(again, words, "words")
    other = sk.mask_topk(scores, 9000, kind="random", key=KEY + 1, backend=target.backend)
    assert not torch.equal(other[0], words[0])


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_matter(target, kind):
    scores = scores_of("mixed", torch.float32, target.device)
    for k in (9000, [s.numel() // 2 for s in scores]):
        options = {"kind": kind, "key": key_for(kind), "backend": target.backend}
        torch.set_num_threads(1)
        first = sk.mask_topk(scores, k, **options)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_bit_equal(sk.mask_topk(scores, k, **options), first, "words")


BAD = [
    ({"k": -1}, "k must be in [0, 44], got -1"),
    ({"k": 45}, "k must be in [0, 44], got 45"),
    ({"k": [1, 41]}, "k must be in [0, 40], got 41"),
    ({"k": [1]}, "1 counts for 2 tensors"),
    ({"k": [1, 2.0]}, "k must be in [0, 40], got 2.0"),
    ({"kind": "sum"}, "kind must be one of ('value', 'abs', 'random'), got 'sum'"),
    ({"kind": "random"}, "key goes with kind='random' and only with it"),
    ({"key": 1}, "key goes with kind='random' and only with it"),
    ({"kind": "random", "key": 2**64}, f"key must be in [0, 2^64), got {2**64}"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_refused(target, change, message):
    scores = [torch.ones(4, device=target.device), torch.ones(5, 8, device=target.device)]
    with pytest.raises(ValueError, match=exactly(f"mask_topk: {message}")):
        sk.mask_topk(**{"scores": scores, "k": 3, **change}, backend=target.backend)


@pytest.mark.parametrize("name", ["among", "out"])
def test_words_that_do_not_fit(target, name):
    scores = [torch.ones(4, device=target.device), torch.ones(5, 8, device=target.device)]
    words = sk.pack_mask([s > 0 for s in scores])
    for wrong, message in (
        (words[:1], f"{name} has 1 tensors, scores has 2"),
        ([words[0], words[0]],
         f"{name}[1] has 1 words, the mask of scores[1] (40 elements) has 2"),
        ([words[0], words[1].long()],
         f"{name}[1] is torch.int64, expected torch.int32 to go with scores[1]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=exactly(f"mask_topk: {message}")):
            sk.mask_topk(scores, 3, **{name: wrong}, backend=target.backend)
