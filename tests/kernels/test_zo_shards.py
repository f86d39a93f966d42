"""Shards of a parameter: their random numbers are the slices of the whole parameter's."""

from __future__ import annotations

import pytest
import torch
from compare import run_both

import sparse_kernels as sk
from sparse_kernels.reference import philox
from sparse_kernels.testing import assert_bit_equal, copy_of, make_list, make_masks, ulp_of

SEED = 2**64 - 77
COEF = [0.75, -1.5, 0.3]
DISTRIBUTIONS = ["normal", "rademacher"]
CHUNK = 65536

#: sizes of the shards of one parameter; the starts are odd, multiples of 4, of 128, and far apart
LAYOUTS = {
    "even": [1024] * 6,
    "uneven": [1, 2, 3, 127, 129, 33, 4096, 5, 4095, 260, 256, 700],
    "empty": [0, 300, 0, 0, 77, 0],
    "chunks": [CHUNK + 5, CHUNK - 1, 9],
}


def starts_of(sizes):
    return [sum(sizes[:i]) for i in range(len(sizes))]


def arguments_of(target, distribution, rounds=10, **more):
    return {
        "seed": SEED, "distribution": distribution, "rounds": rounds, "backend": target.backend,
        **more,
    }  # fmt: skip


def drawn(target, sizes, uids, firsts, distribution, coef=COEF, dtype=torch.float32, **more):
    """The sum of directions alone: what zo_combine_ adds to zeros."""
    out = [torch.zeros(n, dtype=dtype, device=target.device) for n in sizes]
    arguments = arguments_of(target, distribution, **more)
    sk.zo_combine_(out, coef, uids=uids, firsts=firsts, **arguments)
    return out


@pytest.mark.parametrize(
    ("layout", "masked"), [("even", False), ("uneven", True), ("empty", True), ("chunks", False)]
)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_shards_equal_the_slices_of_the_whole(target, dtype, layout, distribution, masked):
    sizes = LAYOUTS[layout]
    firsts = starts_of(sizes)
    whole = make_list("seven", dtype, target.device, seed=1)
    whole.append(torch.randn(sum(sizes)).to(whole[0]))
    keep = make_masks(whole, 0.5, seed=2)
    parts = [copy_of([p])[0] for p in whole[1].split(sizes)]
    bits = list(keep[1].split(sizes))
    arguments = arguments_of(target, distribution, alpha=0.5, gamma=-2.0)
    mask = sk.pack_mask(keep, backend="reference") if masked else None
    sk.zo_combine_(whole, COEF, uids=[4, 9], mask=mask, **arguments)
    mask = sk.pack_mask(bits, backend="reference") if masked else None
    sk.zo_combine_(parts, COEF, uids=[9] * len(sizes), firsts=firsts, mask=mask, **arguments)
    assert_bit_equal(parts, list(whole[1].split(sizes)), "shards")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rounds", [7, 10])
def test_every_start_offset(target, distribution, rounds):
    firsts = list(range(128))
    options = {"uids": [3] * 128, "rounds": rounds}
    whole = drawn(target, [1100], [3], None, distribution, rounds=rounds)[0]
    parts = drawn(target, [300 + 5 * f for f in firsts], firsts=firsts, distribution=distribution,
                  **options)  # fmt: skip
    for f, part in zip(firsts, parts, strict=True):
        assert_bit_equal(part, whole[f : f + part.numel()], f"from element {f}")


@pytest.mark.parametrize("base", [2**32 - 256, 2**32, 2**62 - 128])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_numbers_past_2_to_the_32(target, distribution, base):
    firsts = [base + o for o in (0, 1, 2, 3, 31, 32, 65, 127) if base + o < 2**62]
    uids = [7] * len(firsts)
    whole = drawn(target, [900], [7], [base], distribution)[0]
    parts = drawn(target, [700] * len(firsts), uids, firsts, distribution)
    for f, part in zip(firsts, parts, strict=True):
        assert_bit_equal(part, whole[f - base : f - base + 700], f"from element {f}")
    key = torch.tensor(SEED - 2**64)
    z = [philox.DISTRIBUTIONS[distribution](key, 7, k, base, 900) for k in range(3)]
    wanted = sum(c * x.double() for c, x in zip(COEF, z, strict=True))
    scale = sum(abs(c) * x.abs().double() for c, x in zip(COEF, z, strict=True))
    # 4 ulp of each z, half an ulp of each of the three fma
    error = (whole.cpu().double() - wanted).abs()
    assert (error <= 6 * ulp_of(scale, torch.float32)).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_many_directions(target, distribution):
    # more than are drawn together
    coef = [0.1 * (k + 1) for k in range(19)]
    sizes, firsts = [5000, 4097, 33], [0, 5000, 9097]
    whole = drawn(target, [sum(sizes)], [2], None, distribution, coef=coef)[0]
    parts = drawn(target, sizes, [2] * 3, firsts, distribution, coef=coef)
    assert_bit_equal(parts, list(whole.split(sizes)), "shards")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_sums_over_shards(target, distribution, masked):
    sizes, dtype = [CHUNK + 5, 4099, 9], torch.float32
    firsts = [f + 3 for f in starts_of(sizes)]
    zeros = [torch.zeros(n, dtype=dtype, device=target.device) for n in sizes]
    keep = make_masks(zeros, 0.4, seed=2)
    mask = sk.pack_mask(keep, backend="reference") if masked else None
    arguments = arguments_of(target, distribution, uids=[8] * 3, firsts=firsts, mask=mask)
    norm2 = sk.zo_norm2(zeros, COEF, **arguments)
    gram = sk.zo_gram(zeros, 3, **arguments)
    out = copy_of(zeros)
    sumsq = torch.zeros((), dtype=torch.float64, device=target.device)
    sk.zo_combine_(out, COEF, sumsq=sumsq, **arguments)
    assert_bit_equal(norm2, sumsq, "sumsq")
    whole = drawn(target, [sum(sizes) + 3], [8], None, distribution)[0][3:]
    live = torch.cat(keep).float() if masked else torch.ones_like(whole)
    assert float(norm2) == pytest.approx(float((whole * live).double().square().sum()), rel=1e-6)
    z = [
        drawn(target, [sum(sizes) + 3], [8], None, distribution, coef=[1.0], directions=[k])[0][3:]
        for k in range(3)
    ]
    flat = torch.stack([x.double() * live.double() for x in z])
    if distribution == "rademacher":
        assert torch.equal(gram, flat @ flat.T)
    else:
        assert torch.allclose(gram, flat @ flat.T, rtol=1e-6, atol=1e-6 * live.numel())
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_bit_equal(sk.zo_norm2(zeros, COEF, **arguments), norm2, "norm2")
        assert_bit_equal(sk.zo_gram(zeros, 3, **arguments), gram, "gram")
        again = copy_of(zeros)
        sk.zo_combine_(again, COEF, **arguments)
        assert_bit_equal(again, out, "shards")


def test_rademacher_sums_equal_the_reference_bit_by_bit(twin):
    sizes = LAYOUTS["uneven"]
    firsts = [2**33 + f for f in starts_of(sizes)]

    def build(device):
        tensors = [torch.zeros(n, device=device) for n in sizes]
        return {"tensors": tensors, "mask": sk.pack_mask(make_masks(tensors, 0.5, seed=2))}

    def run(lists, backend):
        arguments = {
            "seed": SEED, "distribution": "rademacher", "uids": [1] * len(sizes),
            "firsts": firsts, "backend": backend, "mask": lists["mask"],
        }  # fmt: skip
        norm2 = sk.zo_norm2(lists["tensors"], COEF, **arguments)
        return [norm2, sk.zo_gram(lists["tensors"], 9, **arguments)]

    _, _, got, want = run_both(twin, build, run)
    assert_bit_equal(got, want, "norm2, gram")


@pytest.mark.parametrize(
    ("firsts", "message"),
    [([0], "firsts has 1 entries"), ([0, -1], "firsts.1. must be"), ([2**62, 0], "firsts.0. must")],
)
def test_refuses_starts_that_do_not_exist(target, firsts, message):
    tensors = [torch.zeros(3, device=target.device) for _ in range(2)]
    with pytest.raises(ValueError, match=message):
        sk.zo_combine_(tensors, [1.0], seed=1, firsts=firsts, backend=target.backend)


@pytest.mark.needs_backend("cpp")
def test_the_op_refuses_them_too():
    if "cpp" not in sk.available_backends():
        pytest.skip(str(sk.explain("zo_combine_")))
    tensors, coef, key = [torch.zeros(3), torch.zeros(2)], torch.ones(1), torch.tensor(1)
    op = torch.ops.sparse_kernels.zo_norm2
    for firsts, math in (([1], "portable"), ([-1, 0], "portable"), ([], "hasty")):
        with pytest.raises(RuntimeError, match=r"first|math"):
            op(tensors, coef, key, None, 0, [0, 1], firsts, "normal", 10, math, [])
    with pytest.raises(RuntimeError, match="uid"):
        op(tensors, coef, key, None, 0, [0], [], "normal", 10, "portable", [])
