"""Packed backups under Triton's interpreter against the reference, on the CPU.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton*.py

Triton reads the variable when it is imported, so these modules need a pytest process of their own.
Every bit is compared.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import (
    CHUNK_EDGES,
    TILE,
    bits,
    compare,
    copies,
    each_dtype,
    flags_of,
    make,
    make_masks,
    ones_of,
    special,
)

import sparse_kernels as sk

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN, and where
# it converts a signalling NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")

EDGES = [3, 0, TILE - 1, TILE, TILE + 1, 33]


def packed_for(params, masks, *, guard=0):
    """A packed backup with ``guard`` elements of 7 before and behind it, and all of the memory."""
    memory = params[0].new_full((ones_of(masks) + 2 * guard,), 7.0)
    return memory[guard : memory.numel() - guard], memory


def round_trip(params, grads, masks, norm=2.0, adaptive=False, rho=0.5):
    ranks = sk.mask_ranks(masks, backend="reference")

    def run(backend):
        p = copies(params)
        backup, memory = packed_for(params, masks, guard=8)
        sk.masked_perturb_(
            p, grads, torch.tensor(norm), rho, masks, backup, adaptive,
            ranks=ranks, eta=0.1, backend=backend,
        )  # fmt: skip
        moved = copies(p)
        sk.restore_(p, backup, masks, ranks=ranks, backend=backend)
        return {"moved": moved, "backup": bits([memory]), "restored": bits(p)}

    result = compare(run)
    for got, want in zip(result["restored"], bits(params), strict=True):
        assert torch.equal(got, want)
    return result


@each_dtype
@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_packed_round_trip(param_dtype, density, adaptive):
    params, grads = special(EDGES, param_dtype, 1), make(EDGES, param_dtype, 2)
    masks = make_masks(EDGES, density)
    result = round_trip(params, grads, masks, adaptive=adaptive)
    pairs = zip(bits(result["moved"]), bits(params), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == (density == 0)


def test_a_radius_on_the_device():
    params, grads = make(EDGES, torch.float32, 1), make(EDGES, torch.float32, 2)
    masks = make_masks(EDGES)
    moved = [
        round_trip(params, grads, masks, rho=rho)["moved"] for rho in (0.25, torch.tensor(0.25))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_packed_around_chunks():
    params, grads = special(CHUNK_EDGES, torch.float32, 3), make(CHUNK_EDGES, torch.float32, 4)
    round_trip(params, grads, make_masks(CHUNK_EDGES, 0.3))


def test_packed_many_tensors():
    sizes = [i % 7 for i in range(60)]
    params, grads = special(sizes, torch.bfloat16, 5), make(sizes, torch.bfloat16, 6)
    round_trip(params, grads, make_masks(sizes))


def test_packed_tiles_without_ones():
    flags = torch.zeros(3 * TILE, dtype=torch.bool)
    flags[TILE - 1], flags[2 * TILE :: 3] = True, True
    params, grads = special([3 * TILE], torch.float32, 7), make([3 * TILE], torch.float32, 8)
    round_trip(params, grads, sk.pack_mask([flags], backend="reference"))


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_packed_backup_is_written_where_the_norm_is_not_finite(norm):
    params, grads = special(EDGES, torch.float32, 9), make(EDGES, torch.float32, 10)
    result = round_trip(params, grads, make_masks(EDGES), norm=norm)
    for now, before in zip(bits(result["moved"]), bits(params), strict=True):
        assert torch.equal(now, before)


def test_part_of_a_packed_list():
    """Ranks are absolute, so any tensors of the list can be restored by themselves."""
    params, masks = special(EDGES, torch.float32, 11), make_masks(EDGES)
    ranks = sk.mask_ranks(masks, backend="reference")
    backup = torch.randn(ones_of(masks))

    def run(backend):
        p = copies(params)
        sk.restore_(p[3:1:-1], backup, masks[3:1:-1], ranks=ranks[3:1:-1], backend=backend)
        return {"params": bits(p)}

    assert not torch.equal(compare(run)["params"][2], bits(params)[2])


@pytest.mark.parametrize("missing", [0, 1, TILE, None], ids=["none", "one", "tile", "all"])
def test_nothing_beyond_a_packed_backup_is_touched(missing):
    """What a table of ranks leads to outside of the backup is neither written nor read."""
    params, grads = make(EDGES, torch.float32, 12), make(EDGES, torch.float32, 13)
    masks = make_masks(EDGES)
    ranks = sk.mask_ranks(masks, backend="reference")
    count = ones_of(masks)
    memory = torch.full((count + 16,), 7.0)
    room = 8 if missing is None else 8 + count - missing
    p = copies(params)
    sk.masked_perturb_(
        p, grads, torch.tensor(1.0), 0.5, masks, memory[8:room], ranks=ranks, backend="triton"
    )
    assert (memory[:8] == 7).all()
    assert (memory[room:] == 7).all()
    kept = torch.cat([t[k] for t, k in zip(params, flags_of(masks, params), strict=True)])
    assert torch.equal(memory[8:room], kept[: room - 8])
    p = [torch.zeros_like(t) for t in params]
    memory[room:] = float("nan")
    sk.restore_(p, memory[8:room], masks, ranks=ranks, backend="triton")
    assert not any(t.isnan().any() for t in p)
