"""What the tests of the Triton kernels share: inputs, and the comparison with the reference."""

from __future__ import annotations

import pytest
import torch

import sparse_kernels as sk
from sparse_kernels.reference._common import CHUNK_SIZE
from sparse_kernels.testing import plant_special_values
from sparse_kernels.triton import (
    _launch,
    bregman_step,
    compaction,
    mask_apply,
    mask_count,
    mask_nm,
    mask_pack,
    mask_topk,
    masked_perturb,
    norm,
    restore,
    restore_adamw,
    restore_sgd,
    zo_combine,
    zo_key,
)

#: what launches kernels
MODULES = (
    _launch, bregman_step, compaction, mask_apply, mask_count, mask_nm, mask_pack, mask_topk,
    masked_perturb, norm, restore, restore_adamw, restore_sgd, zo_combine, zo_key,
)  # fmt: skip
KEY = 0xE998CDE3B83FA088  # of the known answers of the stream
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TILE = 8192  # elements per program of an elementwise kernel; a test compares it with the package's
SIZES = {
    "no tensors": [],
    "empty": [0],
    "one": [1],
    "seven": [7],
    "mixed": [3, 0, 128, 2049, 33],
    "tile edges": [TILE - 1, TILE, TILE + 1],
}
CHUNK_EDGES = [CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1]
each_dtype = pytest.mark.parametrize("param_dtype", DTYPES, ids=lambda d: str(d)[6:])
each_kind = pytest.mark.parametrize("kind", ["normal", "rademacher"])
each_list = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())


def make(sizes, dtype, seed, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, generator=g) * scale).to(dtype) for n in sizes]


def make_masks(sizes, density=0.5, seed=99):
    g = torch.Generator().manual_seed(seed)
    bools = [torch.rand(n, generator=g) < density for n in sizes]
    return sk.pack_mask(bools, backend="reference")


def fused_interpreter():
    """Whether tl.fma rounds once under the interpreter (since Triton 3.9); devices always do."""
    from triton._C.libtriton import interpreter

    return hasattr(interpreter, "fma_fp32")


needs_fma = pytest.mark.skipif(
    not fused_interpreter(), reason="this Triton's interpreter rounds tl.fma twice"
)


def bits(tensors):
    """The bits of a list as integers, so that NaN payloads are compared too."""
    return [t.view(torch.int32 if t.element_size() == 4 else torch.int16) for t in tensors]


def special(sizes, dtype, seed):
    """Normal numbers, among them infinities, NaNs with payloads, both zeros and denormals."""
    tensors = make(sizes, dtype, seed)
    plant_special_values(tensors, stride=7, start=2)
    return tensors


def ones_of(masks):
    return int(sum(c.sum() for c in sk.count_ones(masks, backend="reference")))


def flags_of(masks, tensors):
    return sk.unpack_mask(masks, [t.shape for t in tensors], backend="reference")


def signed64(key):
    return key - 2**64 if key >= 2**63 else key


def ulps(ours, theirs):
    """Distance in units in the last place of ``theirs``, the true float32 neighbours' spacing."""
    exponent = torch.frexp(theirs.double())[1].clamp(min=-125)
    return (ours.double() - theirs.double()).abs() * 2.0 ** (24 - exponent)


def copies(tensors):
    return None if tensors is None else [t.clone() for t in tensors]


def assert_same_bits(ours, theirs, label=""):
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if ours.is_floating_point():
        assert torch.equal(ours.isnan(), theirs.isnan()), f"{label}: NaN in other places"
        words = {8: torch.int64, 4: torch.int32, 2: torch.int16}[ours.element_size()]
        numbers = ~theirs.isnan()
        ours, theirs = ours[numbers].view(words), theirs[numbers].view(words)
    wrong = (ours != theirs).nonzero()
    assert not len(wrong), f"{label}: first at {wrong[0].tolist()}"


def compare(run):
    """``run(backend)`` gives a dict of tensors and lists; equal bits on triton and reference.

    Returns:
        What it gave on triton.
    """
    ours, theirs = run("triton"), run("reference")
    for name, value in theirs.items():
        pairs = zip(ours[name], value, strict=True) if isinstance(value, list) else None
        for i, (a, b) in enumerate(pairs or [(ours[name], value)]):
            assert_same_bits(a, b, f"{name}[{i}]" if pairs else name)
    return ours
