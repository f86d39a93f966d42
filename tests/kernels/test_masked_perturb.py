"""masked_perturb_: bits, masks, backup, and the closed forms of the ascent step."""

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
    error_budget,
    make_list,
    make_masks,
    plant_special_values,
    special_values,
)

#: options of one call; every hyper-parameter is away from its default in at least one
VARIANTS = {
    "dense": {},
    "masked-backup": {"masks": 0.5, "backup": True, "eps": 0.125},
    "adaptive": {"adaptive": True, "eta": 0.25},
    "adaptive-masked-backup": {"adaptive": True, "masks": 0.5, "backup": True, "eta": 0.01},
    "full-mask": {"masks": 1.0},
    "empty-mask-backup": {"masks": 0.0, "backup": True},
}


def build(case, dtype, options, special=False):
    def on(device):
        params = make_list(case, dtype, device, seed=1)
        grads = make_list(case, dtype, device, seed=2)
        if special:
            plant_special_values(params, stride=3)
            plant_special_values(grads, stride=4)
        lists = {"params": params, "grads": grads}
        if "masks" in options:
            masks = make_masks(params, options["masks"], seed=3)
            lists["masks"] = sk.pack_mask(masks, backend="reference")
        if options.get("backup"):
            lists["backup"] = make_list(case, dtype, device, seed=4)
        return lists

    return on


def run_with(options, norm=3.0, rho=0.7):
    scalars = {k: v for k, v in options.items() if k in ("adaptive", "eta", "eps")}

    def run(lists, backend):
        n = torch.tensor(norm, device=lists["params"][0].device if lists["params"] else "cpu")
        return sk.masked_perturb_(**lists, norm=n, rho=rho, **scalars, backend=backend)

    return run


@pytest.mark.parametrize(
    ("case", "variant"),
    # hundreds of tensors take the reference a while: once, with every list there is
    [(c, v) for c in LIST_CASES for v in VARIANTS
     if not c.startswith("tiny") or v == "adaptive-masked-backup"],
)  # fmt: skip
def test_equals_the_reference_bit_by_bit(twin, dtype, case, variant):
    # 16-bit results as well: the same float32 operations and one rounding on both sides
    options = VARIANTS[variant]
    for special in (False, True) if case in SMALL_CASES else (True,):
        inputs = build(case, dtype, options, special)
        ours, theirs, _, _ = run_both(twin, inputs, run_with(options))
        assert_same_lists(ours, theirs)


@pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])
def test_is_the_formula(target, dtype, adaptive):
    options = {"adaptive": adaptive, "eta": 0.25, "eps": 0.125}
    lists = build("mixed", dtype, options)(target.device)
    before = copy_of(lists["params"])
    run_with(options, norm=3.0, rho=0.7)(lists, target.backend)
    u = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    for w0, g0, w in zip(before, lists["grads"], lists["params"], strict=True):
        w64, g64 = w0.double(), g0.double()
        t = (w64.abs() + 0.25) if adaptive else torch.ones_like(w64)
        step = 0.7 / 3.125 * t * t * g64
        # roundings of the step: rho, norm + eps, the quotient, the product, and for the adaptive
        # form t (squared: twice), t * t, and the product with g: 8 half ulps; one on the sum; the
        # store to a 16-bit dtype rounds once more. The factor 2 is for float64, where the formula
        # here rounds as often
        store = torch.finfo(dtype).eps / 2
        bound = 2 * (8 * u * step.abs() + u * (w64 + step).abs()) + store * (w64 + step).abs()
        assert ((w.double() - (w64 + step)).abs() <= bound + 1e-45).all()


def test_within_the_error_budget(twin, dtype):
    options = {"adaptive": True, "eta": 0.25}
    ours, theirs, _, _ = run_both(twin, build("mixed", dtype, options), run_with(options))
    exact = build("mixed", dtype, options)("cpu")
    exact = {name: copy_of(tensors, torch.float64) for name, tensors in exact.items()}
    run_with(options)(exact, "reference")
    for i, oracle in enumerate(exact["params"]):
        got, ref = ours["params"][i], theirs["params"][i]
        if oracle.numel():
            error_budget(dtype).check(got, ref, oracle, f"params[{i}]")


def test_unmasked_bits_stay(target, dtype):
    params = make_list("strided", dtype, target.device, seed=1) + make_list(
        "mixed", dtype, target.device, seed=2
    )
    plant_special_values(params, stride=2)
    grads = [torch.full_like(p, float("nan")) for p in params]
    keep = make_masks(params, 0.5, seed=3)
    before = copy_of(params)
    norm = torch.tensor(1.0, device=target.device)
    sk.masked_perturb_(params, grads, norm, 0.5, sk.pack_mask(keep), backend=target.backend)
    for p, b, k in zip(params, before, keep, strict=True):
        assert_bit_equal(p[~k], b[~k], "entries with mask bit 0", payloads=True)
        assert p[k].isnan().all()
    assert_gaps_untouched(before, params)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_backup_holds_every_original_bit(target, dtype, masked):
    params = make_list("mixed", dtype, target.device, seed=1)
    plant_special_values(params)
    grads = make_list("mixed", dtype, target.device, seed=2)
    masks = sk.pack_mask(make_masks(params, 0.3, seed=3)) if masked else None
    backup = make_list("mixed", dtype, target.device, seed=4)
    before = copy_of(params)
    norm = torch.tensor(1.0, device=target.device)
    sk.masked_perturb_(params, grads, norm, 0.5, masks, backup, backend=target.backend)
    assert_bit_equal(backup, before, "backup", payloads=True)
    assert any((bits_of(p) != bits_of(b)).any() for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1e-12])
@pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])
def test_norm_that_is_not_usable_moves_nothing(target, dtype, norm, adaptive):
    # NaN and infinity: e = 0, selected and not multiplied (spec sparse-sam, decision 12);
    # -1e-12 + eps = 0 makes the scale infinite
    params = make_list("mixed", dtype, target.device, seed=1)
    plant_special_values(params)
    grads = make_list("mixed", dtype, target.device, seed=2)
    plant_special_values(grads)
    backup = [torch.zeros_like(p) for p in params]
    before = copy_of(params)
    dtype_of_norm = torch.float64 if dtype == torch.float64 else torch.float32
    n = torch.tensor(norm, dtype=dtype_of_norm, device=target.device)
    eps = -float(torch.tensor(-1e-12, dtype=dtype_of_norm))
    sk.masked_perturb_(
        params, grads, n, 0.5, None, backup, adaptive, eps=eps, backend=target.backend
    )
    assert_bit_equal(params, before, "params", payloads=True)
    assert_bit_equal(backup, before, "backup", payloads=True)


def test_zero_gradient_gives_no_step(target, dtype):
    params = make_list("mixed", dtype, target.device, seed=1)
    grads = [torch.zeros_like(p) for p in params]
    before = copy_of(params)
    norm = sk.grad_norm(grads, backend=target.backend)
    sk.masked_perturb_(params, grads, norm, 0.5, backend=target.backend)
    assert_bit_equal(params, before, "params")


@pytest.mark.parametrize("masked_norm", [False, True], ids=["dense-norm", "masked-norm"])
def test_length_and_direction_of_the_step(target, masked_norm):
    grads = make_list("mixed", torch.float32, target.device, seed=2)
    keep = make_masks(grads, 0.4, seed=3)
    masks = sk.pack_mask(keep)
    params = [torch.zeros_like(g) for g in grads]
    norm = sk.grad_norm(grads, masks if masked_norm else None, backend=target.backend)
    sk.masked_perturb_(params, grads, norm, 0.7, masks, backend=target.backend)
    kept = torch.cat([(g * k).double().reshape(-1) for g, k in zip(grads, keep, strict=True)])
    dense = torch.cat([g.double().reshape(-1) for g in grads])
    e = torch.cat([p.double().reshape(-1) for p in params])
    expected = 0.7 * kept.norm() / (kept if masked_norm else dense).norm()
    assert abs(e.norm() - expected) <= 1e-5 * expected  # spec sparse-sam, property 3
    # parallel: e is the kept gradient times one scale, each product rounded once
    scale = float(e @ kept / (kept @ kept))
    assert ((e - scale * kept).abs() <= 1e-6 * (scale * kept).abs()).all()
    assert (e.sign() == kept.sign()).all()
    assert scale > 0


@pytest.mark.parametrize("factor", [2.0**16, 2.0**-9, -1.0])
def test_scaling_the_gradient(target, factor):
    # by a power of two: the loss scale drops out exactly with eps = 0; by -1: the step flips
    grads = make_list("mixed", torch.float32, target.device, seed=2)
    steps = []
    for c in (1.0, factor):
        scaled = [g * c for g in grads]
        e = [torch.zeros_like(g) for g in grads]
        norm = sk.grad_norm(scaled, backend=target.backend)
        sk.masked_perturb_(e, scaled, norm, 0.7, eps=0.0, backend=target.backend)
        steps.append([x * (-1.0 if c < 0 else 1.0) + 0.0 for x in e])
    assert_bit_equal(steps[1], steps[0], "e")


def _asam(params, grads, target, rho=0.7, eta=0.0):
    w = copy_of(params)
    norm = sk.grad_norm(grads, weights=w, eta=eta, backend=target.backend)
    sk.masked_perturb_(
        w, grads, norm, rho, None, None, True, eta=eta, eps=0.0, backend=target.backend
    )
    return [a.double() - b.double() for a, b in zip(w, params, strict=True)]


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_adaptive_step_has_length_rho_in_its_own_metric(target, eta):
    # spec sparse-sam, property 6, in float64 where the subtraction of the weights costs nothing
    dtype = (
        torch.float64 if target.device == "cpu" and target.backend != "triton" else torch.float32
    )
    params = make_list("mixed", dtype, target.device, seed=1)
    grads = make_list("mixed", dtype, target.device, seed=2)
    e = _asam(params, grads, target, eta=eta)
    scaled = [x / (w.abs().double() + eta) for x, w in zip(e, params, strict=True)]
    length = torch.cat([s.reshape(-1) for s in scaled]).norm()
    assert abs(length - 0.7) <= 1e-5 * 0.7


def test_adaptive_step_leaves_zero_weights(target, dtype):
    params = make_list("mixed", dtype, target.device, seed=1)
    for p in params:
        p.reshape(-1)[::2] = 0.0
    grads = make_list("mixed", dtype, target.device, seed=2)
    e = _asam(params, grads, target)
    assert all((x[w == 0] == 0).all() for x, w in zip(e, params, strict=True))


def test_adaptive_step_follows_a_rescaling_of_weights(target):
    # w -> c w with g -> g / c scales e by c; exact for a power of two
    params = make_list("mixed", torch.float32, target.device, seed=1)
    grads = make_list("mixed", torch.float32, target.device, seed=2)
    plain = _asam(params, grads, target)
    scaled = _asam([w * 8.0 for w in params], [g / 8.0 for g in grads], target)
    assert_bit_equal(scaled, [8.0 * x for x in plain], "e")


def test_perturb_then_restore_is_the_identity(target, dtype):
    if torch.finfo(dtype).bits == 16:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)  # all bit patterns
    else:
        generator = torch.Generator().manual_seed(1)
        ints = {32: torch.int32, 64: torch.int64}[torch.finfo(dtype).bits]
        low, high = torch.iinfo(ints).min, torch.iinfo(ints).max
        every = torch.randint(low, high, (2**16,), dtype=ints, generator=generator).view(dtype)
    params = [every.to(target.device), special_values(dtype, target.device)]
    grads = [torch.randn(p.shape).to(p) for p in params]
    before = copy_of(params)
    masks = sk.pack_mask(make_masks(params, 0.5, seed=3))
    norm = torch.tensor(0.01, device=target.device)
    for m in (None, masks):
        backup = [torch.zeros_like(p) for p in params]
        sk.masked_perturb_(params, grads, norm, 0.5, m, backup, backend=target.backend)
        # about half of all patterns are numbers below 1 and have to move, unless masked out
        assert (bits_of(params[0]) != bits_of(before[0])).float().mean() > 0.1
        sk.restore_(params, backup, m, backend=target.backend)
        assert_bit_equal(params, before, "params", payloads=True)


def test_does_not_depend_on_threads(target, dtype):
    expected = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        lists = build("mixed", dtype, VARIANTS["masked-backup"])(target.device)
        run_with(VARIANTS["masked-backup"])(lists, target.backend)
        expected = expected or lists
        assert_same_lists(lists, expected)


def test_mixed_dtypes_and_layouts_in_one_call(twin):
    def on(device):
        params = make_list("transposed", torch.float32, device, seed=1)
        params += make_list("mixed", torch.bfloat16, device, seed=2)
        params += make_list("channels-last", torch.float16, device, seed=3)
        grads = make_list("transposed", torch.float32, device, seed=4)
        grads = [g.contiguous() for g in grads]  # not the layout of its parameter
        grads += make_list("mixed", torch.bfloat16, device, seed=5)
        grads += [g.contiguous() for g in make_list("channels-last", torch.float16, device, seed=6)]
        backup = [torch.zeros_like(p) for p in params]
        return {"params": params, "grads": grads, "backup": backup}

    ours, theirs, _, _ = run_both(twin, on, run_with({}))
    assert_same_lists(ours, theirs)
