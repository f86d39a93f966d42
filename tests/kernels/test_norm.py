"""grad_norm: the one summation order, closed forms and the adaptive form's identities."""

from __future__ import annotations

import pytest
import torch
from compare import run_both

import sparse_kernels as sk
from sparse_kernels.testing import (
    LIST_CASES,
    Target,
    assert_bit_equal,
    copy_of,
    make_list,
    make_masks,
    plant_special_values,
)

FORMS = ("dense", "masked", "weighted", "weighted-masked")


def build(case, dtype, form, scale=1.0):
    def on(device):
        grads = make_list(case, dtype, device, seed=1, scale=scale)
        lists = {"grads": grads}
        if "masked" in form:
            lists["masks"] = sk.pack_mask(make_masks(grads, 0.4, seed=2), backend="reference")
        if "weighted" in form:
            lists["weights"] = make_list(case, dtype, device, seed=3)
            lists["eta"] = 0.25
        return lists

    return on


def norm(lists, backend):
    return sk.grad_norm(**lists, backend=backend)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", LIST_CASES)
def test_equals_the_reference_bit_by_bit(twin, dtype, case, form):
    # the order of summation is part of the contract, so sums are no exception to equal bits
    _, _, got, want = run_both(twin, build(case, dtype, form), norm)
    assert_bit_equal(got, want, "norm")


@pytest.mark.parametrize("case", ["mixed", "chunk-edges", "tiny-600", "transposed", "strided"])
@pytest.mark.parametrize("form", FORMS)
def test_is_the_norm(target, dtype, case, form):
    lists = build(case, dtype, form)(target.device)
    got = norm(lists, target.backend)
    masks = make_masks(lists["grads"], 0.4, seed=2)
    total = torch.zeros((), dtype=torch.float64)
    for i, grad in enumerate(lists["grads"]):
        x = grad.double().cpu()
        if "weights" in lists:
            x = (lists["weights"][i].double().cpu().abs() + 0.25) * x
        if "masks" in lists:
            x = x * masks[i].cpu()
        total += x.square().sum()
    # A term meets at most 3 roundings before it is added (|w| + eta, the product, the square: the
    # first two count twice), 32 additions in its lane and 11 in the tree: 48 half ulps on the sum,
    # half of that on the root, and the root's own rounding.
    u = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    assert abs(float(got) - float(total.sqrt())) <= (48 / 2 + 1) * u * float(total.sqrt())
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.dim() == 0


def test_of_nothing_is_zero(target, dtype):
    for grads in ([], make_list("zero-size", dtype, target.device)):
        got = sk.grad_norm(grads, backend=target.backend)
        assert float(got) == 0.0


def test_is_exact_on_small_integers(target, dtype):
    grads = [torch.tensor([3.0, 0.0], dtype=dtype, device=target.device), torch.tensor([4.0])]
    grads[1] = grads[1].to(dtype=dtype, device=target.device)
    assert float(sk.grad_norm(grads, backend=target.backend)) == 5.0
    twos = [torch.full((2**16,), 2.0, dtype=dtype, device=target.device) for _ in range(4)]
    assert float(sk.grad_norm(twos, backend=target.backend)) == 2.0 * 2**9


@pytest.mark.parametrize("form", FORMS)
def test_does_not_depend_on_threads_or_repetition(target, dtype, form):
    lists = build("mixed", dtype, form)(target.device)
    expected = norm(lists, target.backend)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert_bit_equal(norm(lists, target.backend), expected, f"norm, {threads} threads")


def test_chunks_are_added_in_list_order(target):
    # two lists with the same chunks in the same order have the same norm, however they are cut
    flat = make_list("chunk-edges", torch.float32, target.device, seed=5)[1]
    whole = torch.cat([flat, flat * 0.5, flat * 3.0])
    assert_bit_equal(
        sk.grad_norm([whole], backend=target.backend),
        sk.grad_norm(list(whole.split(flat.numel())), backend=target.backend),
        "norm",
    )


def test_memory_format_changes_rounding_only(target):
    grads = make_list("channels-last", torch.float32, target.device, seed=1)
    a = float(sk.grad_norm(grads, backend=target.backend))
    b = float(sk.grad_norm([g.contiguous() for g in grads], backend=target.backend))
    assert abs(a - b) <= 1e-6 * a  # spec sparse-sam, property 8


@pytest.mark.parametrize("power", [-10, 7])
def test_scaling_by_a_power_of_two_is_exact(target, power):
    grads = make_list("mixed", torch.float32, target.device, seed=1)
    scaled = [g * 2.0**power for g in grads]
    expected = sk.grad_norm(grads, backend=target.backend) * 2.0**power
    assert_bit_equal(sk.grad_norm(scaled, backend=target.backend), expected, "norm")


def test_full_and_empty_masks(target, dtype):
    grads = make_list("mixed", dtype, target.device, seed=1)
    full = sk.pack_mask([torch.ones_like(g, dtype=torch.bool) for g in grads])
    empty = [torch.zeros_like(m) for m in full]
    dense = sk.grad_norm(grads, backend=target.backend)
    assert_bit_equal(sk.grad_norm(grads, full, backend=target.backend), dense, "full mask")
    assert float(sk.grad_norm(grads, empty, backend=target.backend)) == 0.0


def test_masked_entries_may_hold_anything(target, dtype):
    grads = make_list("mixed", dtype, target.device, seed=1)
    keep = make_masks(grads, 0.5, seed=2)
    masks = sk.pack_mask(keep)
    dirty = copy_of(grads)
    for g, k in zip(dirty, keep, strict=True):
        g[~k] = float("nan")
    assert_bit_equal(
        sk.grad_norm(dirty, masks, backend=target.backend),
        sk.grad_norm(grads, masks, backend=target.backend),
        "norm",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows(target, dtype, value):
    grads = make_list("mixed", dtype, target.device, seed=1)
    grads[4][70000] = value
    assert not sk.grad_norm(grads, backend=target.backend).isfinite()


def test_special_values_one_by_one(twin, dtype):
    def on(device):
        grads = make_list("seven", dtype, device, seed=1) * 13
        grads = copy_of(grads)
        for i, g in enumerate(grads):
            plant_special_values([g], stride=100, start=0)
            special = torch.empty(13, dtype=dtype, device=device)
            plant_special_values([special], stride=1)
            g[3] = special[i]
        return {"grads": grads}

    for i in range(13):
        _, _, got, want = run_both(twin, lambda d, i=i: {"grads": on(d)["grads"][i : i + 1]}, norm)
        assert_bit_equal(got, want, f"norm with special value {i}")


def test_unit_weights_are_the_dense_norm(target):
    grads = make_list("mixed", torch.float32, target.device, seed=1)
    ones = [torch.ones_like(g) for g in grads]
    dense = sk.grad_norm(grads, backend=target.backend)
    got = sk.grad_norm(grads, weights=ones, backend=target.backend)
    assert_bit_equal(got, dense, "weights of 1")
    zeros = [torch.zeros_like(g) for g in grads]
    assert float(sk.grad_norm(grads, weights=zeros, backend=target.backend)) == 0.0
    got = sk.grad_norm(grads, weights=zeros, eta=1.0, backend=target.backend)
    assert_bit_equal(got, dense, "eta of 1")
    minus = [-w for w in make_list("mixed", torch.float32, target.device, seed=3)]
    plus = [w.abs() for w in minus]
    a = sk.grad_norm(grads, weights=minus, eta=0.5, backend=target.backend)
    b = sk.grad_norm(grads, weights=plus, eta=0.5, backend=target.backend)
    assert_bit_equal(a, b, "absolute value of weights")


def test_weighted_form_equals_weighting_first(target):
    grads = make_list("mixed", torch.float32, target.device, seed=1)
    weights = make_list("mixed", torch.float32, target.device, seed=3)
    first = [(w.abs() + 0.125) * g for w, g in zip(weights, grads, strict=True)]
    got = sk.grad_norm(grads, weights=weights, eta=0.125, backend=target.backend)
    assert_bit_equal(got, sk.grad_norm(first, backend=target.backend), "norm")


def test_several_dtypes_share_one_norm(target):
    grads = [torch.tensor([3.0]), torch.tensor([4.0], dtype=torch.bfloat16), torch.tensor([12.0])]
    grads = [g.to(target.device) for g in grads]
    got = sk.grad_norm(grads, backend=target.backend)
    assert got.dtype == torch.float32
    assert float(got) == 13.0


def test_float64_among_the_gradients_makes_a_float64_norm():
    grads = [torch.tensor([3.0]), torch.tensor([4.0], dtype=torch.float64)]
    for target in (Target("cpp", "cpu"), Target("reference", "cpu")):
        if target.backend in sk.available_backends():
            got = sk.grad_norm(grads, backend=target.backend)
            assert got.dtype == torch.float64
            assert float(got) == 5.0


def test_gradients_are_not_changed(target, dtype):
    grads = make_list("strided", dtype, target.device, seed=1)
    plant_special_values(grads)
    before = copy_of(grads)
    sk.grad_norm(grads, backend=target.backend)
    assert_bit_equal(grads, before, "grads", payloads=True)
