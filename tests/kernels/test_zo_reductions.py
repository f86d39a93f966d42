"""zo_norm2 and zo_gram, the read-only twins of zo_combine_, and its sumsq."""

from __future__ import annotations

import pytest
import torch
from compare import run_both
from test_zo_combine import COEF, build

import sparse_kernels as sk
from sparse_kernels.testing import assert_bit_equal, copy_of, make_list, make_masks


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_norm2_is_the_sumsq_of_the_same_call(target, dtype, distribution, masked):
    tensors = make_list("mixed", dtype, target.device, seed=1)
    mask = sk.pack_mask(make_masks(tensors, 0.5, seed=3)) if masked else None
    arguments = {
        "seed": 5, "distribution": distribution, "directions": [4, 0, 2], "mask": mask,
        "uids": [i * i for i in range(len(tensors))], "rounds": 7, "backend": target.backend,
    }  # fmt: skip
    before = copy_of(tensors)
    norm2 = sk.zo_norm2(tensors, COEF, **arguments)
    assert_bit_equal(tensors, before, "tensors", payloads=True)
    sumsq = torch.full((), -1.0, dtype=torch.float64, device=target.device)
    zeros = [torch.zeros_like(t) for t in tensors]
    sk.zo_combine_(zeros, COEF, sumsq=sumsq, gamma=3.0, alpha=2.0, **arguments)
    assert_bit_equal(norm2, sumsq, "sumsq")
    if dtype in (
        torch.float32,
        torch.float64,
    ):  # not rounded to the dtype: the sum of what is added
        plain = [torch.zeros_like(t) for t in tensors]
        sk.zo_combine_(plain, COEF, **arguments)
        total = sum(float(t.double().square().sum()) for t in plain)
        assert float(norm2) == pytest.approx(total, rel=1e-6)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_bit_equal(sk.zo_norm2(tensors, COEF, **arguments), norm2, "norm2")


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_gram_matrix(target, distribution, masked):
    tensors = make_list("mixed", torch.float32, target.device, seed=1)
    keep = make_masks(tensors, 0.3, seed=3)
    arguments = {
        "seed": 5, "distribution": distribution, "directions": [4, 0, 2], "rounds": 7,
        "mask": sk.pack_mask(keep) if masked else None, "backend": target.backend,
    }  # fmt: skip
    gram = sk.zo_gram(tensors, 3, **arguments)
    assert gram.dtype == torch.float64
    assert torch.equal(gram, gram.T)
    c = torch.tensor(COEF, dtype=torch.float64, device=target.device)
    norm2 = float(sk.zo_norm2(tensors, COEF, **arguments))
    assert float(c @ gram @ c) == pytest.approx(norm2, rel=1e-6)
    live = sum(int(k.sum()) if masked else k.numel() for k in keep)
    if distribution == "rademacher":
        assert torch.equal(gram, gram.round())
        assert gram.diagonal().tolist() == [live] * 3
    else:
        z = [[torch.zeros_like(t) for t in tensors] for _ in range(3)]
        for d, zs in zip((4, 0, 2), z, strict=True):
            sk.zo_combine_(zs, [1.0], **{**arguments, "directions": [d]})
        flat = torch.stack([torch.cat([t.double().reshape(-1) for t in zs]) for zs in z])
        assert torch.allclose(gram, flat @ flat.T, rtol=1e-6, atol=1e-6 * live)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_bit_equal(sk.zo_gram(tensors, 3, **arguments), gram, "gram")


def test_rademacher_sums_equal_the_reference_bit_by_bit(twin):
    for case in ("no-tensors", "zero-size", "chunk-edges", "mixed", "strided"):
        for masked in (False, True):

            def both(lists, backend):
                mask = lists.get("mask")
                arguments = {"seed": 5, "distribution": "rademacher", "backend": backend}
                norm2 = sk.zo_norm2(lists["tensors"], COEF, mask=mask, **arguments)
                return [norm2, sk.zo_gram(lists["tensors"], 4, mask=mask, **arguments)]

            lists = ("mask",) if masked else ()
            _, _, got, want = run_both(twin, build(case, torch.float32, lists), both)
            assert_bit_equal(got, want, f"norm2, gram of {case}")
