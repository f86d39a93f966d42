"""Random directions under Triton's interpreter: known answers, shards, step keys.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton*.py

Triton reads the variable when it is imported, so these modules need a pytest process of their own.
Words and signs are compared bit by bit, normals within the 4 ulp of the stream's contract.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl
from triton_cases import KEY, TILE, each_kind, needs_fma, signed64, ulps

import sparse_kernels as sk
from sparse_kernels.reference import philox as reference_philox
from sparse_kernels.triton import philox

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")


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


def test_directions_from_the_device_equal_a_list():
    tensors, on_device = [torch.zeros(300)], torch.tensor([4, 2**31 + 5])
    expected = [torch.zeros(300)]
    options = {"seed": KEY, "distribution": "rademacher", "backend": "triton"}
    sk.zo_combine_(tensors, [0.5, 0.25], directions=on_device, **options)
    sk.zo_combine_(expected, [0.5, 0.25], directions=[4, 2**31 + 5], **options)
    assert torch.equal(tensors[0], expected[0])
    assert tensors[0].any()


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


STARTS = [0, 1, 2, 3, 5, 31, 32, 64, 95, 97, 127, 128, 2**32 - 2, 128 * 2**32 - 40, 2**62 - 1]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rounds", [7, 10])
def test_signs_from_any_index(start, rounds):
    ours = torch.zeros(2100)
    stream = {"seed": KEY, "uids": [7], "rounds": rounds, "distribution": "rademacher"}
    sk.zo_combine_([ours], [1.0], firsts=[start], **stream, backend="triton")
    key = torch.tensor(KEY - 2**64)
    assert torch.equal(ours, reference_philox.rademacher(key, 7, 0, start, 2100, rounds))


@needs_fma
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rounds", [7, 10])
def test_normals_from_any_index(start, rounds):
    ours = torch.zeros(2100)
    stream = {"seed": KEY, "uids": [7], "rounds": rounds}
    sk.zo_combine_([ours], [1.0], firsts=[start], **stream, backend="triton")
    theirs = reference_philox.normal(torch.tensor(KEY - 2**64), 7, 0, start, 2100, rounds)
    assert ulps(ours, theirs).max() <= 4


@each_kind
def test_shards_draw_the_numbers_of_the_whole(kind):
    """Cut anywhere, also into nothing; one of the shards begins in the middle of a program."""
    edges = [0, 1, 130, 130, 4099, 4100, TILE + 2, 2 * TILE + 7]
    stream = {"seed": KEY, "distribution": kind, "backend": "triton"}
    whole = torch.zeros(edges[-1])
    sk.zo_combine_([whole], [1.0, 0.5], uids=[7], **stream)
    shards = [torch.zeros(b - a) for a, b in itertools.pairwise(edges)]
    uids = [7] * len(shards)
    sk.zo_combine_(shards, [1.0, 0.5], uids=uids, firsts=edges[:-1], **stream)
    assert torch.equal(torch.cat(shards), whole)
    assert whole.abs().min() > 0


@pytest.mark.parametrize("step", [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("stream", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_step_keys(step, stream):
    key, counter, seed = (torch.tensor([signed64(v)]) for v in (1, step, KEY))
    sk.zo_key_(key, counter, seed, stream=stream, backend="triton")
    assert key.item() == signed64(sk.derive_key(KEY, step, stream))
    assert counter.item() == signed64((step + 1) % 2**64)
    assert seed.item() == signed64(KEY)


def test_a_step_key_names_the_directions():
    key, counter, seed = torch.tensor(0), torch.tensor(4), torch.tensor(9)
    drawn, expected = torch.zeros(300), torch.zeros(300)
    options = {"distribution": "rademacher", "backend": "triton"}
    sk.zo_key_(key, counter, seed, stream=2, backend="triton")
    sk.zo_combine_([drawn], [1.0], seed=key, **options)
    sk.zo_combine_([expected], [1.0], seed=sk.derive_key(9, 4, 2), **options)
    assert torch.equal(drawn, expected)


@each_kind
def test_fast_math_draws_portable_numbers(kind):
    fast, portable = torch.zeros(300), torch.zeros(300)
    options = {"seed": KEY, "distribution": kind, "backend": "triton"}
    sk.zo_combine_([fast], [1.0], rng_math="fast", **options)
    sk.zo_combine_([portable], [1.0], **options)
    assert torch.equal(fast, portable)
    assert fast.abs().min() > 0
