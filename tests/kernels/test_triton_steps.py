"""The fused base steps under Triton's interpreter against the reference, on the CPU.

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
    CHUNK_SIZE,
    TILE,
    bits,
    compare,
    copies,
    each_dtype,
    flags_of,
    make,
    make_masks,
    needs_fma,
    ones_of,
    special,
)

import sparse_kernels as sk

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN, and where
# it converts a signalling NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")

SIZES = [1, 0, 7, 1024, 2049, TILE + 3]
each_form = pytest.mark.parametrize("form", ["whole", "masked", "packed"])


SGD = {
    "plain": {"lr": 0.1},
    "decay": {"lr": 0.3, "weight_decay": 0.01, "maximize": True},
    "first": {"lr": 0.1, "momentum": 0.9, "first": True, "weight_decay": 0.1},
    "momentum": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    "nesterov": {"lr": 0.7, "momentum": 0.8, "nesterov": True, "weight_decay": 1e-3},
    "lr on the device": {"lr": torch.tensor(0.3), "momentum": 0.9, "weight_decay": 0.1},
}
ADAMW = {
    "adamw": {"lr": 0.1, "weight_decay": 0.01},
    "plain": {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3},
    "lr on the device": {"lr": torch.tensor(0.3), "weight_decay": 0.1},
    "adam": {"lr": 0.3, "weight_decay": 0.1, "decoupled": False, "maximize": True},
}


def backup_for(form, params, masks, seed):
    """(backup, masks, ranks) as a fused step takes them, other bits than the parameters'."""
    if form == "packed":
        count = ones_of(masks)
        return special([count], params[0].dtype, seed)[0], masks, sk.mask_ranks(masks)
    saved = special([t.numel() for t in params], params[0].dtype, seed)
    return saved, masks if form == "masked" else None, None


def sgd_case(sizes, dtype, form, options, make_values=make, skip=None):
    params, grads = make_values(sizes, dtype, 20), make_values(sizes, dtype, 21)
    buffers = make(sizes, dtype, 22)
    backup, masks, ranks = backup_for(form, params, make_masks(sizes), 23)

    def run(backend):
        p, b = copies(params), copies(buffers) if "momentum" in options else None
        sk.restore_sgd_(
            p, grads, backup, b, masks, ranks=ranks, skip=skip, backend=backend, **options
        )
        return {"params": p, "buffers": b or []}

    return run


def adamw_case(sizes, dtype, form, options, make_values=make, skip=None):
    params, grads = make_values(sizes, dtype, 30), make_values(sizes, dtype, 31)
    first = make(sizes, dtype, 32)
    second = [t.square() for t in make(sizes, dtype, 33)]
    step_sizes = torch.linspace(0.05, 0.3, len(sizes))
    roots = torch.linspace(0.1, 0.9, len(sizes))
    backup, masks, ranks = backup_for(form, params, make_masks(sizes), 34)

    def run(backend):
        p, a, u = copies(params), copies(first), copies(second)
        sk.restore_adamw_(
            p, grads, backup, a, u, step_sizes, roots, masks,
            ranks=ranks, skip=skip, backend=backend, **options,
        )  # fmt: skip
        return {"params": p, "first": a, "second": u}

    return run


STEPS = {
    **{f"sgd {name}": (sgd_case, options) for name, options in SGD.items()},
    **{f"adamw {name}": (adamw_case, options) for name, options in ADAMW.items()},
}
each_step = pytest.mark.parametrize(("case", "options"), STEPS.values(), ids=STEPS.keys())


@needs_fma
@each_dtype
@each_form
@each_step
def test_step(case, options, form, param_dtype):
    compare(case(SIZES, param_dtype, form, options))


@needs_fma
@each_form
@each_step
def test_step_special_values(case, options, form):
    compare(case([2048 + 77, 40], torch.float32, form, options, make_values=special))


@needs_fma
@pytest.mark.parametrize("form", ["whole", "packed"])
@pytest.mark.parametrize("case", [sgd_case, adamw_case])
def test_step_around_chunks_and_of_many_tensors(case, form):
    options = SGD["nesterov"] if case is sgd_case else ADAMW["adamw"]
    compare(case([CHUNK_SIZE + 1, 5], torch.float32, form, options))
    compare(case([i % 5 for i in range(60)], torch.bfloat16, form, options))


@needs_fma
@pytest.mark.parametrize("inv_scale", [0.125, 0.3])
@pytest.mark.parametrize("case", [sgd_case, adamw_case])
def test_scaled_gradients(case, inv_scale):
    options = SGD["momentum"] if case is sgd_case else ADAMW["adamw"]
    scaled = {**options, "inv_scale": torch.tensor(inv_scale)}
    compare(case([0, 7, 2049], torch.float32, "packed", scaled, skip=torch.tensor(0.0)))
    plain, small = (case([9], torch.float32, "whole", o)("triton") for o in (options, scaled))
    assert not torch.equal(plain["params"][0], small["params"][0])


@each_dtype
@each_form
@pytest.mark.parametrize("skip", [1.0, float("nan")])
@pytest.mark.parametrize("case", [sgd_case, adamw_case])
def test_skip_restores_bits_and_no_more(case, skip, form, param_dtype):
    options = SGD["momentum"] if case is sgd_case else ADAMW["adamw"]
    sizes = SIZES
    result = case(sizes, param_dtype, form, options, special, torch.tensor(skip))("triton")
    seed = 20 if case is sgd_case else 30
    params, masks = special(sizes, param_dtype, seed), make_masks(sizes)
    backup, masks, ranks = backup_for(form, params, masks, 23 if case is sgd_case else 34)
    sk.restore_(params, backup, masks, ranks=ranks, backend="reference")
    states = {"buffers": make(sizes, param_dtype, 22)}
    if case is adamw_case:
        second = [t.square() for t in make(sizes, param_dtype, 33)]
        states = {"first": make(sizes, param_dtype, 32), "second": second}
    for name, expected in {"params": params, **states}.items():
        for got, want in zip(bits(result[name]), bits(expected), strict=True):
            assert torch.equal(got, want)  # integers: NaN payloads are compared too


@needs_fma
@each_dtype
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_step_of_misaligned_tensors(param_dtype, packed):
    sizes = [2059, 4099]
    bases, grads = make([n + 1 for n in sizes], param_dtype, 40), make(sizes, param_dtype, 41)
    masks = make_masks(sizes) if packed else None
    ranks = sk.mask_ranks(masks) if packed else None
    saved = make(sizes, param_dtype, 42)
    if packed:
        saved = torch.cat([s[k] for s, k in zip(saved, flags_of(masks, saved), strict=True)])

    def run(backend):
        storage, states = copies(bases), copies(bases)
        views = [t[1:] for t in storage]  # 2 or 4 bytes past a 16-byte boundary
        sk.restore_sgd_(
            views, grads, saved, [t[1:] for t in states], masks,
            ranks=ranks, lr=0.1, momentum=0.9, backend=backend,
        )  # fmt: skip
        return {"whole storage": storage, "states": states}

    compare(run)


@needs_fma
@pytest.mark.parametrize(
    "options", [o for o in SGD.values() if "first" not in o], ids=[n for n in SGD if n != "first"]
)
def test_sgd_step_is_torch_optim_after_copying_back(options):
    sizes = [1, 7, 1024, 2049]
    params, grads = make(sizes, torch.float32, 50), make(sizes, torch.float32, 51)
    masks = make_masks(sizes)
    backup, _, ranks = backup_for("packed", params, masks, 52)
    backup = torch.randn(backup.shape, generator=torch.Generator().manual_seed(53))
    with_buffers = "momentum" in options
    buffers = [torch.zeros_like(p) for p in params] if with_buffers else None
    theirs = copies(params)
    base = torch.optim.SGD(theirs, foreach=False, **options)
    for step in range(3):
        # both are perturbed to the same point: what is backed up stays
        sk.restore_(theirs, backup, masks, ranks=ranks, backend="reference")
        for t, g in zip(theirs, grads, strict=True):
            t.grad = g * (1 + step)
        base.step()
        sk.restore_sgd_(
            params, [g * (1 + step) for g in grads], backup, buffers, masks,
            ranks=ranks, first=step == 0, backend="triton", **options,
        )  # fmt: skip
        for ours, want in zip(bits(params), bits(theirs), strict=True):
            assert torch.equal(ours, want)


def test_one_launch_for_a_list(launches):
    params, grads = make(SIZES, torch.float32, 60), make(SIZES, torch.float32, 61)
    masks = make_masks(SIZES)
    backup, _, ranks = backup_for("packed", params, masks, 62)
    options = {"ranks": ranks, "backend": "triton"}
    sk.masked_perturb_(params, grads, torch.tensor(1.0), 0.1, masks, backup, **options)
    sk.restore_(params, backup, masks, **options)
    sk.restore_sgd_(params, grads, backup, None, masks, lr=0.1, **options)
    tables = [torch.ones(len(params)) for _ in range(2)]
    sk.restore_adamw_(
        params, grads, backup, copies(grads), copies(params), *tables, masks, lr=0.1, **options
    )
    names = ["_masked_perturb_kernel", "_restore_kernel", "_restore_sgd_kernel"]
    assert launches == [*names, "_restore_adamw_kernel"]


def test_nothing_is_launched_for_empty_tensors(launches):
    empty = [torch.zeros(0), torch.zeros(3, 0)]
    masks = make_masks([0, 0])
    ranks, tables = sk.mask_ranks(masks, backend="reference"), [torch.ones(2) for _ in range(2)]
    options = {"ranks": ranks, "lr": 0.1, "backend": "triton"}
    sk.restore_(empty, torch.zeros(0), masks, ranks=ranks, backend="triton")
    sk.restore_sgd_(empty, copies(empty), torch.zeros(0), None, masks, **options)
    states = [copies(empty), copies(empty)]
    sk.restore_adamw_(empty, copies(empty), torch.zeros(0), *states, *tables, masks, **options)
    assert launches == []
