"""The Triton kernels under Triton's interpreter against the reference, on the CPU: norms, masks and
perturbations, and how lists are launched.

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
    compare,
    copies,
    each_dtype,
    each_list,
    make,
    make_masks,
)

import sparse_kernels as sk
from sparse_kernels.triton import _launch
from sparse_kernels.triton._launch import CHUNK_SIZE

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")


@each_dtype
@each_list
@pytest.mark.parametrize("form", ["dense", "masked", "weighted", "weighted masked"])
def test_norm(sizes, param_dtype, form):
    grads = make(sizes, param_dtype, 1)
    masks = make_masks(sizes) if "masked" in form else None
    weights = make(sizes, param_dtype, 2) if "weighted" in form else None

    def run(backend):
        return {"norm": sk.grad_norm(grads, masks, weights=weights, eta=0.1, backend=backend)}

    compare(run)


@pytest.mark.parametrize("numel", [*CHUNK_EDGES, 2 * CHUNK_SIZE + 4099])
def test_norm_around_chunks(numel):
    grads = make([5, numel, 300], torch.float32, 3, scale=1e3)
    masks = make_masks([5, numel, 300])
    compare(lambda b: {"dense": sk.grad_norm(grads, backend=b)})
    compare(lambda b: {"masked": sk.grad_norm(grads, masks, backend=b)})


def test_squared_norm_is_float64():
    grads = make([300, CHUNK_SIZE + 1], torch.bfloat16, 4)

    def run(backend):
        op = getattr(torch.ops, f"sparse_kernels_{backend}").grad_norm
        return {"squared": op(grads, [], [], 0.0, True)}

    assert run("triton")["squared"].dtype == torch.float64
    compare(run)


def test_masked_out_nan_does_not_count():
    grad, mask = torch.tensor([3.0, float("nan"), 4.0]), torch.tensor([True, False, True])
    words = sk.pack_mask([mask], backend="triton")
    assert sk.grad_norm([grad], words, backend="triton") == 5.0
    assert sk.grad_norm([grad], backend="triton").isnan()


# ---- masked_perturb, restore, mask_pack -------------------------------------------------------


@each_dtype
@each_list
@pytest.mark.parametrize("form", ["plain", "backup", "masked", "adaptive masked backup"])
def test_masked_perturb(sizes, param_dtype, form):
    params, grads = make(sizes, param_dtype, 5), make(sizes, param_dtype, 6)
    masks = make_masks(sizes) if "masked" in form else None

    def run(backend):
        p = copies(params)
        backup = [torch.full_like(t, 7.0) for t in p] if "backup" in form else None
        sk.masked_perturb_(
            p, grads, torch.tensor(3.7), 0.05, masks, backup,
            "adaptive" in form, eta=0.3, eps=1e-3, backend=backend,
        )  # fmt: skip
        return {"params": p, "backup": backup or []}

    compare(run)


@pytest.mark.parametrize("norm", [float("nan"), 0.0, float("inf")])
@pytest.mark.parametrize("masked", [False, True])
def test_scale_that_is_not_finite_keeps_parameters(norm, masked):
    params, grads = make([7, 2048, 33], torch.float32, 7), make([7, 2048, 33], torch.float32, 8)
    masks = make_masks([7, 2048, 33]) if masked else None

    def run(backend):
        p, backup = copies(params), [torch.zeros_like(t) for t in params]
        sk.masked_perturb_(
            p, grads, torch.tensor(norm), 0.05, masks, backup, eps=0.0, backend=backend
        )
        return {"params": p, "backup": backup}

    compare(run)
    result = run("triton")
    assert all(torch.equal(b, p) for b, p in zip(result["backup"], params, strict=True))


def test_special_values_go_through_whole_and_part_blocks():
    special = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-41, -1e-41, 3.3e38]
    )
    params = [special.repeat(n) for n in (1, 300)]
    grads = [special.repeat_interleave(8).repeat(40)[: t.numel()].clone() for t in params]

    def run(backend):
        p, norm = copies(params), torch.tensor(1.0)
        sk.masked_perturb_(p, grads, norm, 0.5, adaptive=False, backend=backend)
        q = copies(params)
        sk.masked_perturb_(q, grads, norm, 0.5, adaptive=True, backend=backend)
        return {"plain": p, "adaptive": q}

    compare(run)


@each_dtype
def test_misaligned_tensors(param_dtype):
    bases = make([2060, 4100], param_dtype, 9)
    grads = make([2059, 4099], param_dtype, 10)

    def run(backend):
        storage = copies(bases)
        views = [t[1:] for t in storage]  # 2 or 4 bytes past a 16-byte boundary
        sk.masked_perturb_(views, grads, sk.grad_norm(views, backend=backend), 0.5, backend=backend)
        sk.linbreg_step_(views, grads, None, 0.1, 0.0, backend=backend)
        sk.zo_combine_(views, [0.5], seed=1, distribution="rademacher", backend=backend)
        return {"whole storage": storage}

    compare(run)


@each_dtype
@pytest.mark.parametrize("masked", [False, True])
def test_restore_copies_bits(param_dtype, masked):
    sizes = [0, 1, 7, 2048, TILE + 1]
    words = torch.int32 if param_dtype == torch.float32 else torch.int16
    g, limit = torch.Generator().manual_seed(11), 2 ** (8 * words.itemsize - 1)
    saved = [torch.randint(-limit, limit, (n,), generator=g, dtype=words) for n in sizes]
    params, masks = make(sizes, param_dtype, 12), make_masks(sizes) if masked else None
    ours = copies(params)
    sk.restore_(ours, [s.view(param_dtype) for s in saved], masks, backend="triton")
    for i, (p, s, before) in enumerate(zip(ours, saved, params, strict=True)):
        expected = s
        if masked:
            keep = sk.unpack_mask([masks[i]], [p.shape], backend="reference")[0]
            expected = torch.where(keep, s, before.view(words))
        assert torch.equal(p.view(words), expected)  # integers: NaN payloads are compared too


@pytest.mark.parametrize("sizes", [[0], [1], [31, 32, 33, 0, 64], [TILE - 1, TILE, TILE + 1]])
def test_mask_pack_and_unpack(sizes):
    bools = [m < 0.3 for m in make(sizes, torch.float32, 13)]
    words = sk.pack_mask(bools, backend="triton")
    for ours, theirs in zip(words, sk.pack_mask(bools, backend="reference"), strict=True):
        assert torch.equal(ours, theirs)
    back = sk.unpack_mask(words, [m.shape for m in bools], backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(back, bools, strict=True))


def test_600_tiny_tensors_take_one_launch(launches):
    sizes = [i % 6 for i in range(600)]
    # the interpreter takes 10 ms a program: the longer kernels get a list that is mostly empty
    few = [n if i % 10 == 3 else 0 for i, n in enumerate(sizes)]
    grads, params = make(sizes, torch.float32, 71), make(sizes, torch.float32, 72)
    few_grads, few_params = make(few, torch.float32, 73), make(few, torch.float32, 74)

    def run(backend):
        p, f = copies(params), copies(few_params)
        norm = sk.grad_norm(grads, backend=backend)
        sk.masked_perturb_(p, grads, norm, 0.05, backend=backend)
        live = sk.linbreg_step_(f, few_grads, None, 0.1, 0.2, backend=backend)
        sk.zo_combine_(f, [0.5], seed=3, distribution="rademacher", backend=backend)
        return {"norm": norm, "params": p, "few": f, "live": live}

    compare(run)
    assert launches == [
        "_grad_norm_kernel",
        "_sum_in_order_kernel",
        "_masked_perturb_kernel",
        "_linbreg_step_kernel",
        "_zo_combine_kernel",
    ]


def test_nothing_is_launched_for_empty_tensors(launches):
    empty = [torch.zeros(0), torch.zeros(3, 0)]
    options = {"seed": 1, "backend": "triton"}
    sumsq = torch.ones((), dtype=torch.float64)
    assert sk.grad_norm(empty, backend="triton") == 0
    sk.masked_perturb_(empty, empty, torch.tensor(1.0), 0.1, backend="triton")
    sk.zo_combine_(empty, [1.0], sumsq=sumsq, **options)
    assert sumsq == 0
    assert sk.zo_norm2(empty, [1.0], **options) == 0
    assert not sk.zo_gram(empty, 2, **options).any()
    live = sk.linbreg_step_(empty, empty, None, 0.1, 0.1, backend="triton")
    assert live.tolist() == [0, 0]
    words = sk.pack_mask([torch.zeros(0, dtype=torch.bool)], backend="triton")
    assert words[0].numel() == 0
    assert launches == []


def test_tables_are_built_once_while_tensors_stay(monkeypatch):
    sizes = [70, 2048]
    params, grads = make(sizes, torch.float32, 81), make(sizes, torch.float32, 82)
    norm = torch.tensor(1.0)
    sk.masked_perturb_(params, grads, norm, 0.1, backend="triton")
    built = []
    store = _launch._TableCache.get

    def get(self, key, device, build):
        return store(self, key, device, lambda: built.append(key) or build())

    monkeypatch.setattr(_launch._TableCache, "get", get)
    sk.masked_perturb_(params, grads, norm, 0.2, backend="triton")
    assert built == []
    moved = copies(grads)
    sk.masked_perturb_(params, moved, norm, 0.2, backend="triton")
    assert len(built) == 1  # the addresses of the gradients, and nothing else


def test_caches_are_bounded():
    cache = _launch._TableCache(capacity=3)
    device = torch.device("cpu")
    for i in range(10):
        assert cache.get(("k", i), device, lambda i=i: torch.tensor([i])).item() == i
    assert len(cache._entries) == 3
    assert cache.get(("k", 9), device, lambda: torch.tensor([-1])).item() == 9


def test_tile_size_of_the_cases():
    assert _launch.TILE == TILE


def test_float64_is_refused():
    ops = torch.ops.sparse_kernels_triton
    with pytest.raises(TypeError, match="float32, bfloat16 and float16"):
        ops.grad_norm([torch.ones(3, dtype=torch.float64)], [], [], 0.0, False)
