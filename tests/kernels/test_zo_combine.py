"""zo_combine_, zo_norm2, zo_gram: sums of regenerated directions."""

from __future__ import annotations

import pytest
import torch
from compare import assert_same_lists, run_both

import sparse_kernels as sk
from sparse_kernels.reference import philox
from sparse_kernels.testing import (
    LIST_CASES,
    SMALL_CASES,
    assert_bit_equal,
    bits_of,
    copy_of,
    make_list,
    make_masks,
    plant_special_values,
    supports,
    ulp_of,
)

SEED = 0xFEDCBA9876543210  # above 2^63: an int64 tensor holds its bits as a negative number
COEF = [0.75, -1.5, 0.3]

#: options of one call, as (lists to build, keywords); every argument is away from its default
VARIANTS = {
    "plain": ((), {}),
    "masked-backup": (("mask", "backup"), {"rounds": 7}),
    "source": (("src",), {"directions": [2, 3, 4], "alpha": 0.5, "gamma": -2.0}),
    "all": (
        ("mask", "src", "backup"),
        {"directions": [9, 0, 2**32 - 2], "alpha": 0.1, "gamma": 3.0},
    ),
}


def build(case, dtype, lists, special=True):
    def on(device):
        made = {"tensors": make_list(case, dtype, device, seed=1)}
        if special:
            plant_special_values(made["tensors"], stride=6)
        if "mask" in lists:
            masks = make_masks(made["tensors"], 0.5, seed=2)
            made["mask"] = sk.pack_mask(masks, backend="reference")
        if "src" in lists:
            made["src"] = make_list(case, dtype, device, seed=3)
        if "backup" in lists:
            made["backup"] = make_list(case, dtype, device, seed=4)
        return made

    return on


def run_with(distribution, keywords, coef=COEF, sumsq=False):
    def run(lists, backend):
        device = lists["tensors"][0].device if lists["tensors"] else "cpu"
        out = torch.full((), 5.0, dtype=torch.float64, device=device) if sumsq else None
        uids = [3 * i + 1 for i in range(len(lists["tensors"]))]
        keywords_ = {"uids": uids, "sumsq": out, **keywords}
        sk.zo_combine_(
            **lists, coef=coef, seed=SEED, distribution=distribution, backend=backend, **keywords_
        )
        return out

    return run


@pytest.mark.parametrize(
    ("case", "variant"),
    # the reference draws tensor by tensor: hundreds of them take it seconds, once is enough
    [(c, v) for c in LIST_CASES for v in VARIANTS if not c.startswith("tiny") or v == "all"],
)
def test_rademacher_equals_the_reference_bit_by_bit(twin, dtype, case, variant):
    lists, keywords = VARIANTS[variant]
    run = run_with("rademacher", keywords, sumsq=True)
    ours, theirs, got, want = run_both(twin, build(case, dtype, lists), run)
    assert_same_lists(ours, theirs)
    assert_bit_equal(got, want, "sumsq")


@pytest.mark.parametrize("q", [1, 2, 4, 5, 8, 15])
def test_any_number_of_signs_is_added_in_order(twin, dtype, q):
    """Kernels add several directions between a load and a store of the sums."""
    coef = [0.1 * (k + 1) * (-1) ** k for k in range(q)]  # inexact: every rounding shows
    run = run_with("rademacher", {}, coef=coef)
    ours, theirs, _, _ = run_both(twin, build("chunk-edges", dtype, ()), run)
    assert_same_lists(ours, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", [*SMALL_CASES, "chunk-edges", "channels-last"])
def test_normal_follows_the_reference(twin, dtype, case, variant):
    """The one exception from equal bits: each z may be 4 ulp off (spec zero-order, 4.2)."""
    lists, keywords = VARIANTS[variant]
    inputs = build(case, dtype, lists, special=False)
    before = inputs("cpu")
    run = run_with("normal", keywords, sumsq=True)
    ours, theirs, got, want = run_both(twin, inputs, run)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gamma = keywords.get("gamma", 1.0)
    directions = keywords.get("directions", [0, 1, 2])
    key = torch.tensor(SEED - 2**64)
    for i, (a, e) in enumerate(zip(ours["tensors"], theirs["tensors"], strict=True)):
        if not e.numel():
            continue
        z = [philox.normal(key, 3 * i + 1, d, 0, e.numel(), keywords.get("rounds", 10))
             for d in directions]  # fmt: skip
        # 4 ulp of each z, and the last bits of the three fma: their operands differ by then
        spread = sum(abs(c) * 4 * ulp_of(x, torch.float32) for c, x in zip(COEF, z, strict=True))
        partial = sum(abs(c) * x.abs().double() for c, x in zip(COEF, z, strict=True))
        tolerance = abs(gamma) * (spread + 4 * torch.finfo(wide).eps * partial).reshape(e.shape)
        # the store and the addition round once each; a different sum may round to a neighbour
        tolerance = tolerance + ulp_of(e, dtype) + ulp_of(e, wide)
        source = before["src"][i] if "src" in before else before["tensors"][i]
        tolerance = tolerance + ulp_of(source, wide)
        assert ((a.cpu().double() - e.double()).abs() <= tolerance).all(), i
    if "backup" in ours:
        assert_bit_equal(ours["backup"], theirs["backup"], "backup", payloads=True)
    if want:  # relative error of a square is twice that of the sum
        assert abs(float(got) - float(want)) <= 1e-5 * float(want)


def test_is_the_formula_on_exact_numbers(target, dtype):
    # signs, small coefficients: every operation is exact, so is the expected value
    tensors = [torch.arange(300.0).to(device=target.device, dtype=dtype) - 128 for _ in range(2)]
    src = [torch.full_like(t, 2.0) for t in tensors]
    before = copy_of(tensors)
    key = torch.tensor(SEED - 2**64)
    sums = [
        sum(
            c * philox.rademacher(key, uid, d, 0, 300).double()
            for c, d in zip((0.5, 2.0, -0.25), (5, 1, 3), strict=True)
        )
        for uid in (4, 2)
    ]
    arguments = {
        "seed": SEED, "directions": [5, 1, 3], "uids": [4, 2], "distribution": "rademacher",
        "backend": target.backend,
    }  # fmt: skip
    coef = [0.5, 2.0, -0.25]
    backup = [torch.empty_like(t) for t in tensors]
    sk.zo_combine_(
        tensors, coef, src=src, backup=backup, alpha=[4.0, 1.0], gamma=[1.0, 2.0], **arguments
    )
    want = [(4.0 * 2.0 + sums[0]), (2.0 + 2.0 * sums[1])]
    for t, w in zip(tensors, want, strict=True):
        assert torch.equal(t.double().cpu(), w)
    assert_bit_equal(backup, before, "backup")
    assert_bit_equal(src, [torch.full_like(t, 2.0) for t in src], "src")
    alpha = torch.tensor([4.0, 1.0], device=target.device)
    sk.zo_combine_(tensors, coef, src=src, alpha=alpha, gamma=2.0, **arguments)
    for t, w in zip(tensors, [8.0 + 2.0 * sums[0], 2.0 + 2.0 * sums[1]], strict=True):
        assert torch.equal(t.double().cpu(), w)


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_linear_in_the_coefficients(target, distribution):
    # One call with q directions = float64 sum of single calls, to 2 ulp of S = sum |c z|, which
    # bounds every partial sum: each single call rounds by half an ulp of its term, together at most
    # 1 ulp of S; the two later fma of three by half an ulp of S each.
    directions, coef = [3, 8, 30], [0.5, -1.25, 2.0]
    arguments = {"seed": SEED, "distribution": distribution, "backend": target.backend}
    together = [torch.zeros(70001, device=target.device)]
    sk.zo_combine_(together, coef, directions=directions, **arguments)
    singles = [torch.zeros(70001, device=target.device) for _ in coef]
    for single, c, d in zip(singles, coef, directions, strict=True):
        sk.zo_combine_([single], [c], directions=[d], **arguments)
    total = sum(s.double().cpu() for s in singles)
    scale = sum(s.double().abs().cpu() for s in singles)
    error = (together[0].double().cpu() - total).abs()
    assert (error <= 2 * ulp_of(scale, torch.float32)).all()


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_zero_coefficients_copy_the_source(target, dtype, distribution):
    tensors = make_list("mixed", dtype, target.device, seed=1)
    src = make_list("mixed", dtype, target.device, seed=2)
    arguments = {"seed": 1, "distribution": distribution, "backend": target.backend}
    sk.zo_combine_(tensors, [0.0, 0.0], src=src, **arguments)
    assert all(torch.equal(t, s) for t, s in zip(tensors, src, strict=True))
    sk.zo_combine_(tensors, [0.0], **arguments)
    assert all(torch.equal(t, s) for t, s in zip(tensors, src, strict=True))


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_unmasked_bits_stay_and_nothing_leaks_out_of_them(target, dtype, distribution):
    tensors = make_list("mixed", dtype, target.device, seed=1)
    plant_special_values(tensors, stride=2)
    keep = make_masks(tensors, 0.5, seed=3)
    before, whole = copy_of(tensors), copy_of(tensors)
    arguments = {"seed": 5, "distribution": distribution, "backend": target.backend}
    sk.zo_combine_(whole, COEF, **arguments)
    sk.zo_combine_(tensors, COEF, mask=sk.pack_mask(keep), **arguments)
    for t, b, w, k in zip(tensors, before, whole, keep, strict=True):
        assert_bit_equal(t[~k], b[~k], "entries with mask bit 0", payloads=True)
        assert_bit_equal(t[k], w[k], "entries with mask bit 1")
    full = sk.pack_mask([torch.ones_like(k) for k in keep])
    again = copy_of(before)
    sk.zo_combine_(again, COEF, mask=full, **arguments)
    assert_bit_equal(again, whole, "full mask")
    sk.zo_combine_(again, COEF, mask=[torch.zeros_like(m) for m in full], **arguments)
    assert_bit_equal(again, whole, "empty mask", payloads=True)


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_source_makes_every_sweep_start_from_the_true_weights(target, dtype, distribution):
    # first sweep +d with a backup, second -d from it: the mirror image, no add/subtract chain
    w = make_list("mixed", dtype, target.device, seed=1)
    true, backup = copy_of(w), [torch.zeros_like(t) for t in w]
    arguments = {"seed": 5, "distribution": distribution, "backend": target.backend}
    sk.zo_combine_(w, [0.1], backup=backup, **arguments)
    sk.zo_combine_(w, [-0.1], src=backup, **arguments)
    direct = copy_of(true)
    sk.zo_combine_(direct, [-0.1], **arguments)
    assert_bit_equal(w, direct, "w - d")
    sk.restore_(w, backup, backend=target.backend)
    assert_bit_equal(w, true, "w", payloads=True)
    same = copy_of(true)
    sk.zo_combine_(same, [-0.1], src=same, **arguments)  # dst may alias src
    assert_bit_equal(same, direct, "aliased source")


def test_many_directions(twin):
    run = run_with("rademacher", {"directions": None}, coef=[0.01 * k for k in range(70)])
    ours, theirs, _, _ = run_both(twin, build("mixed", torch.float32, ()), run)
    assert_same_lists(ours, theirs)


def test_one_name_has_many_spellings(target):
    tensors = make_list("mixed", torch.float32, target.device, seed=1)

    def call(**keywords):
        out = copy_of(tensors)
        arguments = {"coef": COEF, "seed": SEED, "backend": target.backend, **keywords}
        sk.zo_combine_(out, **arguments)
        return out

    expected = call()
    on_device = {"device": target.device}
    signed = torch.tensor(SEED - 2**64, dtype=torch.int64, **on_device)
    strided = torch.tensor([[0, 9], [1, 9], [2, 9]], **on_device)[:, 0]
    for keywords in (
        {"seed": signed}, {"seed": signed.reshape(1)},
        {"directions": [0, 1, 2]}, {"directions": (0, 1, 2)},
        {"directions": torch.arange(3, **on_device)}, {"directions": strided},
        {"directions": torch.arange(3, dtype=torch.int32)},
        {"coef": torch.tensor(COEF, **on_device)}, {"coef": tuple(COEF)},
        {"coef": torch.tensor(COEF, dtype=torch.float64)},
        {"coef": torch.tensor([COEF, COEF]).t()[:, 0]},
        {"uids": list(range(len(tensors)))}, {"alpha": 1.0}, {"gamma": torch.tensor(1.0)},
    ):  # fmt: skip
        assert_bit_equal(call(**keywords), expected, f"{keywords}")
    for keywords in (
        {"seed": SEED ^ 1}, {"seed": SEED ^ (1 << 63)}, {"rounds": 7}, {"directions": [0, 2, 1]},
        {"uids": [i + 1 for i in range(len(tensors))]}, {"distribution": "rademacher"},
    ):  # fmt: skip
        got = call(**keywords)
        assert (bits_of(got[4]) != bits_of(expected[4])).float().mean() > 0.5, keywords


def test_tensors_of_several_dtypes_keep_their_uids(target):
    dtypes = [d for d in (torch.bfloat16, torch.float32, torch.float64) if supports(target, d)]
    tensors = [torch.zeros(50, dtype=d, device=target.device) for d in [*dtypes, *dtypes]]
    sk.zo_combine_(
        tensors,
        [1.0],
        seed=3,
        distribution="rademacher",
        alpha=1.0,
        gamma=[1.0] * len(tensors),
        backend=target.backend,
    )
    for i, t in enumerate(tensors):
        alone = torch.zeros(50, device=target.device)
        sk.zo_combine_([alone], [1.0], seed=3, uids=[i], distribution="rademacher")
        assert torch.equal(t.float(), alone)
    total = sk.zo_norm2(tensors, [2.0], seed=3, distribution="rademacher", backend=target.backend)
    assert float(total) == 4.0 * 50 * len(tensors)
