"""zo_combine_, zo_norm2 and zo_gram under Triton's interpreter against the reference.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton*.py

Triton reads the variable when it is imported, so these modules need a pytest process of their own.
Results of signs are compared bit by bit, normals within the 4 ulp of the stream's contract.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import (
    KEY,
    TILE,
    assert_same_bits,
    bits,
    compare,
    copies,
    each_dtype,
    each_list,
    flags_of,
    make,
    make_masks,
    needs_fma,
    ones_of,
    special,
)

import sparse_kernels as sk
from sparse_kernels.reference._common import CHUNK_SIZE, chunk_sums, sequential_sum

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN, and where
# it converts a signalling NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")

GUARD = 8  # elements before and behind a packed tensor


def packed_memory(tensors, masks, filled):
    """Memory of a packed tensor between guards; ``filled`` with the entries of bit 1, or with 7."""
    memory = tensors[0].new_full((ones_of(masks) + 2 * GUARD,), 7.0)
    if filled:
        kept = [bits([t])[0][k] for t, k in zip(tensors, flags_of(masks, tensors), strict=True)]
        bits([memory])[0][GUARD:-GUARD] = torch.cat(kept)
    return memory


def zo_case(
    sizes, param_dtype, distribution, *, coef=(0.5, -0.3), masked=False, full=False, wide=False,
    packed=None, **options,
):  # fmt: skip
    """``run(backend)`` of the three ops of one combination.

    ``full``: every argument; ``wide``: a float32 source; ``packed``: "backup" or "src", and no
    other source then.
    """
    tensors = make(sizes, param_dtype, 60) if packed is None else special(sizes, param_dtype, 60)
    src = make(sizes, torch.float32 if wide else param_dtype, 61)
    masks = make_masks(sizes) if masked or packed else None
    ranks = sk.mask_ranks(masks, backend="reference") if packed else None
    uids = [2**32 - 1 - 5 * i for i in range(len(sizes))]
    coef = list(coef)

    def run(backend):
        t, saved, sumsq, memory = copies(tensors), [], None, []
        more = {"src": src} if wide else {}
        if full:
            sumsq = torch.ones((), dtype=torch.float64)
            factors = [0.9 + 0.01 * i for i in range(len(sizes))]
            more = {"src": src, "alpha": factors, "gamma": 1.1, "sumsq": sumsq}
            if packed is None:
                more["backup"] = saved = [torch.zeros_like(x) for x in t]
            else:
                del more["src"]
        if packed:
            memory = [packed_memory(tensors, masks, filled=packed == "src")]
            more |= {packed: memory[0][GUARD:-GUARD], "ranks": ranks}
        stream = {"seed": KEY, "uids": uids, "distribution": distribution, "mask": masks}
        stream = {**stream, "backend": backend, **options}
        sk.zo_combine_(t, coef, **stream, **more)
        norm2 = sk.zo_norm2(tensors, coef, **stream)
        gram = sk.zo_gram(tensors, len(coef), **stream)
        if sumsq is not None:
            assert sumsq == norm2
        # what a packed backup holds are bits, NaN payloads included
        return {"tensors": t, "backup": saved, "packed": bits(memory), "norm2": norm2, "gram": gram}

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


# ---- shards ------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_sign_sums_of_shards(param_dtype, masked):
    sizes, firsts = [1, 0, 7, 128, 2049, 4097], [127, 3, 2**62 - 7, 128, 2**39 + 33, 65]
    options = {"masked": masked, "full": True, "directions": [9, 2], "firsts": firsts}
    ours = compare(zo_case(sizes, param_dtype, "rademacher", **options))
    elsewhere = zo_case(sizes, param_dtype, "rademacher", **{**options, "firsts": [0] * 6})
    assert not torch.equal(ours["tensors"][4], elsewhere("triton")["tensors"][4])


@pytest.mark.parametrize("first", [5, 130])
@pytest.mark.parametrize(("kind", "n"), [("normal", 5000), ("rademacher", CHUNK_SIZE + 1000)])
def test_sums_of_a_shard_are_those_of_its_numbers(kind, n, first):
    """zo_norm2 and zo_gram, bit by bit, from the numbers that zo_combine_ writes."""
    masks = make_masks([n])
    z = [torch.zeros(n), torch.zeros(n)]
    stream = {"seed": KEY, "distribution": kind, "mask": masks, "backend": "triton"}
    for k, tensor in enumerate(z):
        sk.zo_combine_([tensor], [1.0], uids=[7], firsts=[first], directions=[k], **stream)
    stream |= {"uids": [7], "firsts": [first]}
    gram = sk.zo_gram([z[0]], 2, **stream)
    for j, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert gram[j, k] == sequential_sum([chunk_sums(z[j] * z[k])], gram.device)
    assert sk.zo_norm2([z[0]], [0.0, 1.0], **stream) == gram[1, 1]
    assert gram[1, 1] > n / 3


each_narrow = pytest.mark.parametrize("param_dtype", [torch.bfloat16, torch.float16])


@each_narrow
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("full", [False, True], ids=["add", "full"])
def test_float32_sources(param_dtype, masked, full):
    sizes, options = [1, 0, 7, 128, 4097, TILE], {"masked": masked, "full": full, "wide": True}
    compare(zo_case(sizes, param_dtype, "rademacher", **options))


@each_narrow
def test_a_float32_source_is_rounded_after_the_sum(param_dtype):
    src = make([300], torch.float32, 61)
    stream = {"seed": KEY, "distribution": "rademacher", "backend": "triton"}
    once, exact = [torch.zeros(300, dtype=param_dtype)], copies(src)
    twice = copies(once)
    sk.zo_combine_(once, [0.5], src=src, **stream)
    sk.zo_combine_(exact, [0.5], **stream)
    sk.zo_combine_(twice, [0.5], src=[src[0].to(param_dtype)], **stream)
    assert torch.equal(once[0], exact[0].to(param_dtype))
    assert not torch.equal(once[0], twice[0])


@each_dtype
@pytest.mark.parametrize("full", [False, True], ids=["add", "full"])
def test_packed_backup(param_dtype, full):
    """Entries with bit 0 keep their bits and have no place in the backup."""
    sizes = [1, 0, 7, TILE - 1, TILE + 1]
    ours = compare(zo_case(sizes, param_dtype, "rademacher", packed="backup", full=full))
    tensors, masks = special(sizes, param_dtype, 60), make_masks(sizes)
    assert torch.equal(ours["packed"][0], bits([packed_memory(tensors, masks, True)])[0])
    for now, before, kept in zip(
        bits(ours["tensors"]), bits(tensors), flags_of(masks, tensors), strict=True
    ):
        assert torch.equal(now[~kept], before[~kept])


@each_dtype
@pytest.mark.parametrize("sumsq", [False, True], ids=["add", "sumsq"])
def test_packed_source(param_dtype, sumsq):
    """Tensors moved away come back, but for the sum; entries with bit 0 are not written."""
    sizes = [1, 0, 7, TILE - 1, TILE + 1]
    tensors, masks = special(sizes, param_dtype, 60), make_masks(sizes)
    memory = packed_memory(tensors, masks, True)
    ranks = sk.mask_ranks(masks, backend="reference")

    def run(backend):
        t = [torch.full_like(x, 3.0) for x in tensors]
        out = torch.zeros((), dtype=torch.float64)
        options = {"seed": KEY, "distribution": "rademacher", "alpha": 0.5, "gamma": 3.0}
        sk.zo_combine_(
            t, [0.5], src=memory[GUARD:-GUARD], mask=masks, ranks=ranks, backend=backend,
            sumsq=out if sumsq else None, **options,
        )  # fmt: skip
        return {"tensors": t, "sumsq": out}

    ours = compare(run)["tensors"]
    for now, kept in zip(ours, flags_of(masks, tensors), strict=True):
        assert (now[~kept] == 3).all()
        assert not (now[kept] == 3).any()


@pytest.mark.parametrize("packed", ["backup", "src"])
def test_packed_with_a_sum_over_the_tiles_of_a_chunk(packed):
    """A program of a sum is a chunk, eight tiles of the table of ranks."""
    case = {"packed": packed, "full": True, "firsts": [0, 77]}
    compare(zo_case([33, CHUNK_SIZE + TILE + 5], torch.float32, "rademacher", **case))


@pytest.mark.parametrize("missing", [1, TILE, None], ids=["one", "tile", "all"])
@pytest.mark.parametrize("packed", ["backup", "src"])
def test_nothing_beyond_a_packed_tensor_is_touched(packed, missing):
    """What a table of ranks leads to outside of it is neither written nor read."""
    tensors = make([TILE, TILE + 1, 33], torch.float32, 62)
    masks = make_masks([TILE, TILE + 1, 33])
    ranks, count = sk.mask_ranks(masks, backend="reference"), ones_of(masks)
    memory = torch.full((count + 2 * GUARD,), 7.0)
    room = GUARD if missing is None else GUARD + count - min(missing, count)
    kept = torch.cat([t[k] for t, k in zip(tensors, flags_of(masks, tensors), strict=True)])
    if packed == "src":
        memory[:] = float("nan")
        memory[GUARD:room] = kept[: room - GUARD]
    more = {packed: memory[GUARD:room], "ranks": ranks, "mask": masks}
    sk.zo_combine_(tensors, [0.5], seed=KEY, distribution="rademacher", backend="triton", **more)
    if packed == "src":
        assert not any(t.isnan().any() for t in tensors)
    else:
        assert (memory[:GUARD] == 7).all()
        assert (memory[room:] == 7).all()
        assert torch.equal(memory[GUARD:room], kept[: room - GUARD])


@each_dtype
def test_coefficients_of_zero_give_the_source(param_dtype):
    """By value, denormals included."""
    tensors = special([300], param_dtype, 63)
    moved = copies(tensors)
    sk.zo_combine_(moved, [0.0], seed=KEY, distribution="rademacher", backend="triton")
    assert_same_bits(moved[0] + 0.0, tensors[0] + 0.0)  # both zeros are equal by value
    small = (moved[0].abs() < torch.finfo(param_dtype).tiny) & (moved[0] != 0)
    assert small.any()
