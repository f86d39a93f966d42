"""What the tests of the Triton kernels share: inputs, and the comparison with the reference."""

from __future__ import annotations

import pytest
import torch

import sparse_kernels as sk
from sparse_kernels.reference._common import CHUNK_SIZE

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
each_list = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())


def make(sizes, dtype, seed, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, generator=g) * scale).to(dtype) for n in sizes]


def make_masks(sizes, density=0.5, seed=99):
    g = torch.Generator().manual_seed(seed)
    bools = [torch.rand(n, generator=g) < density for n in sizes]
    return sk.pack_mask(bools, backend="reference")


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
    """``run(backend)`` gives a dict of tensors and lists; equal bits on triton and reference."""
    ours, theirs = run("triton"), run("reference")
    for name, value in theirs.items():
        pairs = zip(ours[name], value, strict=True) if isinstance(value, list) else None
        for i, (a, b) in enumerate(pairs or [(ours[name], value)]):
            assert_same_bits(a, b, f"{name}[{i}]" if pairs else name)
