"""The Bregman steps under Triton's interpreter against the reference, on the CPU.

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
    assert_same_bits,
    compare,
    copies,
    each_dtype,
    each_list,
    make,
    make_masks,
)

import sparse_kernels as sk

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")

# ---- bregman_step -----------------------------------------------------------------------------

LINBREG = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True, "maximize": True, "weight_decay": 0.01},
    "ema": {"momentum": 0.7, "momentum_form": "ema", "weight_decay": 0.02},
    "device": {"lr": torch.tensor(0.1), "lam": torch.tensor(0.6), "weight_decay": 0.02},
}
NO_DUAL = {"proximal": {}, "proximal nonnegative": {"nonnegative": True, "weight_decay": 0.02}}
DUAL = {
    "nonnegative": {"nonnegative": True},
    "leak": {"dual_leak": 0.1, "weight_decay": 0.02},
    "fine": {"fine_scale": 5.0, "maximize": True},
    "nonnegative leak fine": {"nonnegative": True, "dual_leak": 0.1, "fine_scale": 3.0},
    "given": {"readout": False, "dual_leak": 0.1, "weight_decay": 0.02},
}
RESTING = [*[(False, o) for o in NO_DUAL.values()], *[(True, o) for o in DUAL.values()]]
each_resting = pytest.mark.parametrize(("with_dual", "options"), RESTING,
                                       ids=[*NO_DUAL, *DUAL])  # fmt: skip


def with_zeros(params):
    """Inactive entries for a step that does not read its dual out."""
    return [p.masked_fill(p.abs() < 0.5, 0.0) for p in params]


def linbreg_case(sizes, param_dtype, with_dual, with_active, options):
    grads = make(sizes, param_dtype, 21)
    params, duals = with_zeros(make(sizes, param_dtype, 20)), make(sizes, torch.float32, 22)
    buffers = make(sizes, torch.float32, 23)
    active = make_masks(sizes) if with_active else None

    def run(backend):
        p, d, b = copies(params), copies(duals) if with_dual else None, None
        if "momentum" in options:
            b = copies(buffers)
        live = sk.linbreg_step_(
            p, grads, d, delta=0.7, momentum_buffers=b, active=active, backend=backend,
            **{"lr": 0.1, "lam": 0.6, **options},
        )  # fmt: skip
        return {"live": live, "params": p, "duals": d or [], "buffers": b or []}

    return run


@each_dtype
@pytest.mark.parametrize("options", LINBREG.values(), ids=LINBREG.keys())
@pytest.mark.parametrize("with_active", [False, True], ids=["all", "active"])
@pytest.mark.parametrize("with_dual", [False, True], ids=["no dual", "dual"])
def test_linbreg(param_dtype, options, with_active, with_dual):
    compare(linbreg_case([1, 0, 7, 1024, 2049], param_dtype, with_dual, with_active, options))


@each_dtype
@each_resting
@pytest.mark.parametrize("with_active", [False, True], ids=["all", "active"])
def test_linbreg_entries_at_rest(param_dtype, with_dual, options, with_active):
    compare(linbreg_case([1, 0, 7, 1024, 2049], param_dtype, with_dual, with_active, options))


@each_list
def test_linbreg_lists(sizes):
    if sizes:
        compare(linbreg_case(sizes, torch.float32, True, False, LINBREG["nesterov"]))
    assert sk.linbreg_step_([], [], [], 0.1, 0.5, backend="triton").shape == (0,)


def adabreg_case(sizes, param_dtype, with_dual, with_active, with_counts, **options):
    grads = make(sizes, param_dtype, 31)
    params, duals = with_zeros(make(sizes, param_dtype, 30)), make(sizes, torch.float32, 32)
    first, second = make(sizes, torch.float32, 33), make(sizes, torch.float32, 34)
    second = [s.square() for s in second]
    g = torch.Generator().manual_seed(35)
    counts = [torch.randint(0, 5, (n,), dtype=torch.int32, generator=g) for n in sizes]
    active = make_masks(sizes) if with_active else None

    def run(backend):
        p, d, a, u = (copies(x) for x in (params, duals, first, second))
        d, n = d if with_dual else None, copies(counts) if with_counts else None
        live = sk.adabreg_step_(
            p, grads, d, a, u, delta=0.7, betas=(0.8, 0.95), eps=1e-3, counts=n, active=active,
            backend=backend, **{"lr": 0.1, "lam": 0.6, "step": 5, **options},
        )  # fmt: skip
        out = {"live": live, "params": p, "duals": d or [], "first": a, "second": u}
        return {**out, "counts": n or []}

    return run


@each_dtype
@pytest.mark.parametrize("with_counts", [False, True], ids=["step", "counts"])
@pytest.mark.parametrize("with_active", [False, True], ids=["all", "active"])
@pytest.mark.parametrize("with_dual", [False, True], ids=["no dual", "dual"])
def test_adabreg(param_dtype, with_counts, with_active, with_dual):
    options = {"weight_decay": 0.01, "maximize": True} if with_active else {}
    sizes = [1, 0, 7, 1024, 2049]
    compare(adabreg_case(sizes, param_dtype, with_dual, with_active, with_counts, **options))


@each_dtype
@each_resting
@pytest.mark.parametrize("with_counts", [False, True], ids=["step", "counts"])
def test_adabreg_entries_at_rest(param_dtype, with_dual, options, with_counts):
    sizes = [1, 0, 7, 1024, 2049]
    compare(adabreg_case(sizes, param_dtype, with_dual, with_counts, with_counts, **options))


@pytest.mark.parametrize("with_counts", [False, True], ids=["step", "counts"])
@pytest.mark.parametrize("nonnegative", [False, True], ids=["l1", "nonnegative"])
def test_adabreg_scalars_on_the_device(nonnegative, with_counts):
    """lam and lr only in tensors, and a step number that picks a row of a table."""
    options = {"lr": torch.tensor(0.1), "lam": torch.tensor([0.6]), "step": torch.tensor(5)}
    options |= {"weight_decay": 0.01, "nonnegative": nonnegative}
    compare(adabreg_case([7, 1025], torch.float32, True, False, with_counts, **options))


@each_list
def test_adabreg_lists(sizes):
    if sizes:
        compare(adabreg_case(sizes, torch.float32, True, False, False, weight_decay=0.03))


def test_bregman_thresholds_nan_and_zero():
    lam = 0.5
    special = [lam, -lam, 0.0, -0.0, float("nan"), float("inf"), -float("inf"), 0.75]
    dual = torch.tensor(special)
    near = torch.nextafter(torch.tensor([lam, lam, -lam, -lam]), torch.tensor([0.0, 9, 0, -9]))
    dual = torch.cat([dual, near]).repeat(100)  # a whole block and a part

    def run(backend):
        d, p = [dual.clone()], [torch.zeros_like(dual)]
        live = sk.linbreg_step_(p, [torch.zeros_like(dual)], d, 0.1, lam, backend=backend)
        e, q = [dual.clone()], [torch.zeros_like(dual)]
        sk.linbreg_step_(q, [dual], e, 0.0, 0.0, weight_decay=0.1, backend=backend)
        out = {"live": live, "params": p, "duals": d, "params0": q, "duals0": e}
        for i, options in enumerate((*NO_DUAL.values(), *DUAL.values())):
            f = [dual.clone()] if i >= len(NO_DUAL) else None
            r = [dual.clone()]
            out[f"live {i}"] = sk.linbreg_step_(
                r, [-dual], f, 0.25, lam, backend=backend, **options
            )
            out[f"params {i}"], out[f"duals {i}"] = r, f or []
        return out

    compare(run)
    result = run("triton")
    assert result["live"].item() == 600  # NaN, both inf, 0.75 and the two beyond the threshold
    dead = result["params"][0][:4]
    assert not dead.any()
    assert not dead.signbit().any()


def test_inactive_entries_keep_every_bit():
    sizes = [70, 2048]
    masks = make_masks(sizes)
    grads = [torch.full((n,), float("nan")) for n in sizes]
    lists = [make(sizes, torch.float32, s) for s in (41, 42, 43)]
    p, d, b = (copies(x) for x in lists)
    sk.linbreg_step_(p, grads, d, 0.1, 0.1, 1.0, 0.9, b, active=masks, backend="triton")
    keep = sk.unpack_mask(masks, [(n,) for n in sizes], backend="reference")
    for now, before in zip((p, d, b), lists, strict=True):
        for x, y, k in zip(now, before, keep, strict=True):
            assert x[k].isnan().all()
            assert_same_bits(x[~k], y[~k])
