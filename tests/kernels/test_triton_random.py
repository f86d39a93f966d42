"""Random directions under Triton's interpreter: known answers, and sums against the reference.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton*.py

Triton reads the variable when it is imported, so these modules need a pytest process of their own.
Words and signs are compared bit by bit, normals within the 4 ulp of the stream's contract.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl
from triton_cases import (
    assert_same_bits,
    compare,
    copies,
    each_dtype,
    each_list,
    make,
    make_masks,
    needs_fma,
)

import sparse_kernels as sk
from sparse_kernels.reference import philox as reference_philox
from sparse_kernels.reference._common import CHUNK_SIZE
from sparse_kernels.triton import philox

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")

KEY = 0xE998CDE3B83FA088


@triton.jit
def _words_kernel(counters_ptr, key_ptr, out_ptr, ROUNDS: tl.constexpr):
    c0, c1 = tl.load(counters_ptr).to(tl.uint32), tl.load(counters_ptr + 1).to(tl.uint32)
    c2, c3 = tl.load(counters_ptr + 2).to(tl.uint32), tl.load(counters_ptr + 3).to(tl.uint32)
    k0, k1 = philox.key_words(key_ptr)
    x0, x1, x2, x3 = philox.philox4x32(c0, c1, c2, c3, k0, k1, ROUNDS)
    tl.store(out_ptr, x0.to(tl.int64))
    tl.store(out_ptr + 1, x1.to(tl.int64))
    tl.store(out_ptr + 2, x2.to(tl.int64))
    tl.store(out_ptr + 3, x3.to(tl.int64))


@triton.jit
def _box_muller_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    lanes = tl.arange(0, N)
    a, b = tl.load(a_ptr + lanes).to(tl.uint32), tl.load(b_ptr + lanes).to(tl.uint32)
    even, odd = philox.box_muller(a, b)
    tl.store(out_ptr + 2 * lanes, even)
    tl.store(out_ptr + 2 * lanes + 1, odd)


def signed64(key):
    return key - 2**64 if key >= 2**63 else key


def ulps(ours, theirs):
    """Distance in units in the last place of ``theirs``, the true float32 neighbours' spacing."""
    exponent = torch.frexp(theirs.double())[1].clamp(min=-125)
    return (ours.double() - theirs.double()).abs() * 2.0 ** (24 - exponent)


VECTORS = [  # Random123 tests/kat_vectors
    (10, [0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, [0xFFFFFFFF] * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822,
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
    (7, [0] * 4, 0, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, [0xFFFFFFFF] * 4, 2**64 - 1, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822,
     "4dfccaba 190a87f0 c47362ba b6b5242a"),
]  # fmt: skip


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), VECTORS)
def test_philox_known_answers(rounds, counter, key, expected):
    out = torch.zeros(4, dtype=torch.int64)
    key = torch.tensor(signed64(key))
    _words_kernel[(1,)](torch.tensor(counter), key, out, ROUNDS=rounds)
    assert [f"{w:08x}" for w in out.tolist()] == expected.split()


NORMALS = [  # uid, direction, block, bits of the four reference values; key KEY, 10 rounds
    (0, 0, 0, "be8aa366 bf739cc8 3f9cf329 3eaebce1"),
    (7, 0, 0, "bd85ad0f bf876881 3f6720a1 bf561fb2"),
    (7, 0, 1, "3faed950 bf7b71c7 3efc4abf 3f482368"),
    (7, 1, 0, "3e9f5531 bf452edb bf8e787d bd9ab4b2"),
]


@needs_fma
@pytest.mark.parametrize(("uid", "direction", "block", "expected"), NORMALS)
def test_normal_known_answers(uid, direction, block, expected):
    tensor = torch.zeros(8)
    sk.zo_combine_([tensor], [1.0], seed=KEY, directions=[direction], uids=[uid], backend="triton")
    bits = torch.tensor([int(w, 16) for w in expected.split()])
    bits = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)
    assert ulps(tensor[4 * block : 4 * block + 4], bits.view(torch.float32)).max() <= 4


def test_sign_known_answer():
    tensor = torch.zeros(16)
    sk.zo_combine_([tensor], [1.0], seed=KEY, uids=[7], distribution="rademacher", backend="triton")
    assert "".join("-" if x < 0 else "+" for x in tensor) == "-+----+-+-+--+--"


@triton.jit
def _first_word_kernel(key_ptr, first_ptr, out_ptr):
    k0, k1 = philox.key_words(key_ptr)
    uid, direction = tl.full((), 7, tl.uint32), tl.full((), 0, tl.uint32)
    x0, x1, x2, x3 = philox.words_at(tl.load(first_ptr), 4, 1, uid, direction, k0, k1, 10)
    tl.store(out_ptr + tl.arange(0, 4), philox.in_order(x0, x1, x2, x3).to(tl.int64))


def test_block_numbers_past_32_bits():
    out, first = torch.zeros(4, dtype=torch.int64), torch.tensor(4 * 2**32)
    _first_word_kernel[(1,)](torch.tensor(signed64(KEY)), first, out)
    assert [f"{w:08x}" for w in out.tolist()] == ["a623bbf3", "79ccf15e", "04129a0e", "9905450f"]


@needs_fma
def test_normals_are_within_four_ulp_of_the_reference():
    """Random words, and words at u = 1, u small, the octants' borders and the axes."""
    n, g = 2**17, torch.Generator().manual_seed(51)
    a = torch.randint(0, 2**32, (n,), generator=g)
    b = torch.randint(0, 2**32, (n,), generator=g)
    borders = torch.arange(17) * 2**28
    near = (borders[:, None] + torch.arange(-8, 8)).reshape(-1) % 2**32
    a[:256] = torch.arange(256)
    a[256:512] = 2**32 - 1 - torch.arange(256)
    a[512:1024] = (2**32 * torch.linspace(0.6, 0.72, 512).double()).long()  # around 2/3
    b[1024 : 1024 + near.numel()] = near
    b[512 : 512 + near.numel()] = near
    out = torch.zeros(2 * n)
    _box_muller_kernel[(1,)](a, b, out, N=n)
    expected = torch.stack(reference_philox.box_muller(a, b), dim=1).reshape(-1)
    worst = ulps(out, expected).max()
    assert worst <= 4, worst
    assert (ulps(out, expected) > 0).any()  # it is the polynomial that was tested


def zo_case(sizes, param_dtype, distribution, **options):
    tensors, src = make(sizes, param_dtype, 60), make(sizes, param_dtype, 61)
    masks = make_masks(sizes) if options.pop("masked", False) else None
    full = options.pop("full", False)
    uids = [2**32 - 1 - 5 * i for i in range(len(sizes))]
    coef = options.pop("coef", [0.5, -0.3])

    def run(backend):
        t, saved, sumsq = copies(tensors), None, None
        more = {}
        if full:
            saved = [torch.zeros_like(x) for x in t]
            sumsq = torch.ones((), dtype=torch.float64)
            factors = [0.9 + 0.01 * i for i in range(len(sizes))]
            more = {"src": src, "alpha": factors, "gamma": 1.1, "backup": saved, "sumsq": sumsq}
        stream = {"seed": KEY, "uids": uids, "distribution": distribution, "mask": masks}
        stream = {**stream, "backend": backend, **options}
        sk.zo_combine_(t, coef, **stream, **more)
        norm2 = sk.zo_norm2(tensors, coef, **stream)
        gram = sk.zo_gram(tensors, len(coef), **stream)
        if sumsq is not None:
            assert sumsq == norm2
        return {"tensors": t, "backup": saved or [], "norm2": norm2, "gram": gram}

    return run


@each_dtype
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("full", [False, True], ids=["add", "full"])
def test_signs(param_dtype, masked, full):
    rounds, directions = (7, [9, 2]) if full else (10, None)
    options = {"masked": masked, "full": full, "rounds": rounds, "directions": directions}
    compare(zo_case([1, 0, 7, 128, 2049, 4097], param_dtype, "rademacher", **options))


@each_list
def test_sign_lists(sizes):
    if sizes:
        compare(zo_case(sizes, torch.float32, "rademacher", coef=[1.5], directions=[2**32 - 2]))


def test_directions_from_the_device_equal_a_list():
    tensors, on_device = [torch.zeros(300)], torch.tensor([4, 2**31 + 5])
    expected = [torch.zeros(300)]
    options = {"seed": KEY, "distribution": "rademacher", "backend": "triton"}
    sk.zo_combine_(tensors, [0.5, 0.25], directions=on_device, **options)
    sk.zo_combine_(expected, [0.5, 0.25], directions=[4, 2**31 + 5], **options)
    assert torch.equal(tensors[0], expected[0])
    assert tensors[0].any()


def test_sign_sum_past_a_chunk_and_its_norm():
    compare(zo_case([CHUNK_SIZE + 1], torch.float32, "rademacher", full=True, masked=True))


@needs_fma
@each_dtype
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("full", [False, True], ids=["add", "full"])
def test_normal_sums(param_dtype, masked, full):
    """z within 4 ulp (|z| < 7, so 4 * 2^-22 at most) moves a sum by no more than that a term."""
    rounds, directions = (7, [9, 2]) if full else (10, None)
    options = {"masked": masked, "full": full, "rounds": rounds, "directions": directions}
    run = zo_case([1, 0, 7, 128, 2049], param_dtype, "normal", **options)
    ours, theirs = run("triton"), run("reference")
    for a, b in zip(ours["tensors"], theirs["tensors"], strict=True):
        # z's error, then the rounding of the sums in float32 and, on both sides, in the dtype
        size = b.float().abs().max() if b.numel() else torch.tensor(0.0)
        bound = 0.8 * 1.1 * 4 * 2**-22 + 4 * size * 2**-24 + size * torch.finfo(param_dtype).eps
        assert ((a.float() - b.float()).abs() <= bound).all()
    for a, b in zip(ours["backup"], theirs["backup"], strict=True):
        assert_same_bits(a, b)
    terms = 2185  # |z| < 7: a product's error is below 2 * 7 * 4 ulp, its rounding below 49 * 2^-23
    bound = terms * (2 * 7 * 4 * 2**-22 + 49 * 2**-23)
    assert ((ours["gram"] - theirs["gram"]).abs() <= bound).all()
    assert (ours["norm2"] - theirs["norm2"]).abs() <= bound


def test_unmasked_draws_do_not_depend_on_list_or_offset():
    sizes = [5, 4100]
    together, alone = [torch.zeros(n) for n in sizes], [torch.zeros(4100)]
    base = torch.zeros(4101)
    options = {"seed": KEY, "backend": "triton"}
    sk.zo_combine_(together, [1.0], uids=[3, 8], **options)
    sk.zo_combine_(alone, [1.0], uids=[8], **options)
    sk.zo_combine_([base[1:]], [1.0], uids=[8], **options)
    assert torch.equal(together[1], alone[0])
    assert torch.equal(base[1:], alone[0])
    first = torch.zeros(3)
    sk.zo_combine_([first], [1.0], uids=[8], **options)
    assert torch.equal(first, alone[0][:3])
