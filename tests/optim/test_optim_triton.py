"""SAM and its relatives on the Triton kernels: bit for bit the run on the reference.

The reference runs every numbered property of sparse-sam.md section 9; a run with equal bits has
them too. Needs a process of its own (TRITON_INTERPRET=1) or a GPU.
"""

import os

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, mlp
from sparse_optim import (
    SAM,
    SET,
    SSAM,
    DynamicMask,
    FisherMask,
    ImplicitMask,
    MagnitudeMask,
    RandomMask,
    RigL,
)
from torch.optim import SGD, AdamW, RMSprop

from sparse_kernels import use_backend

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}


def sam(model, backend):
    return SAM(model.parameters(), SGD, rho=0.5, backend=backend, nesterov=True, lr=0.1,
               momentum=0.9)  # fmt: skip


def asam(model, backend):
    return SAM(
        model.parameters(), SGD, rho=1.0, adaptive=True, eta=0.1, backend=backend, **MOMENTUM
    )


def adamw(model, backend):
    masks = [torch.rand(p.shape, generator=torch.Generator().manual_seed(i)) < 0.6
             for i, p in enumerate(model.parameters())]  # fmt: skip
    return SAM(model.parameters(), AdamW, rho=0.5, weight_mask=masks, backend=backend, lr=0.01)


def unfused(model, backend):
    return SSAM(
        model.parameters(), RMSprop, rho=0.5, mask=MagnitudeMask(), backend=backend, lr=0.01
    )


def ssam(pattern, **options):
    def make(model, backend):
        return SSAM(model.parameters(), SGD, rho=0.5, mask=RandomMask(), pattern=pattern,
                    norm="masked", backend=backend, **options, **MOMENTUM)  # fmt: skip

    return make


def dynamic(model, backend):
    policy = DynamicMask(0.5, update_every=2, grow="gradient")
    return SSAM(
        model.parameters(), SGD, rho=0.5, mask=policy, sparsity=0.7, backend=backend, **MOMENTUM
    )


OPTIMIZERS = {
    "sam": sam,
    "asam": asam,
    "adamw with a weight mask": adamw,
    "unfused base": unfused,
    "unstructured": ssam("unstructured", sparsity=0.9),
    "row": ssam("row", sparsity=0.5),
    "2:4": ssam("2:4"),
    "1:3 out": ssam("1:3", axis="out"),
    "dynamic": dynamic,
}


def trained(make, backend, around=None, steps=5):
    """The model, its optimizer and the masks of every step."""
    model, (x, y), masks = mlp(norm=True), batch(), []
    opt = make(model, backend)
    method = None if around is None else around(model, opt, backend)
    for _ in range(steps):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        if method is not None and method.step():
            continue
        opt.first_step(zero_grad=True)
        cross_entropy(model(x), y).backward()
        opt.second_step()
        masks.append(getattr(opt, "mask", None) or opt.weight_mask)
    return model, opt, masks


def assert_same_runs(make, around=None):
    runs = []
    for backend in ("triton", "reference"):
        with use_backend(backend):  # masks too are made there
            runs.append(trained(make, backend, around))
    ours, theirs = runs
    start = mlp(norm=True)
    assert not torch.equal(ours[0][0].weight, start[0].weight)
    for p, q in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert_same_bits(p, q)
        for name, value in theirs[1].state[q].items():
            if isinstance(value, torch.Tensor):
                assert_same_bits(ours[1].state[p][name], value)
    assert ours[2] == theirs[2]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_has_the_bits_of_the_reference(name):
    assert_same_runs(OPTIMIZERS[name])


@pytest.mark.parametrize("method", [SET, RigL])
def test_sparse_training_has_the_bits_of_the_reference(method):
    def around(model, opt, backend):
        return method(model, opt, 0.5, update_every=2, stop_at=5, backend=backend)

    assert_same_runs(sam, around)


def test_fisher_and_implicit_masks_are_those_of_the_reference():
    model, (x, y) = mlp(), batch()
    params = list(model.parameters())
    chosen = []
    for backend in ("triton", "reference"):
        opt = SSAM(params, SGD, mask=FisherMask(), pattern="2:4", backend=backend, lr=0.1)
        with use_backend(backend):
            opt.update_mask(model, (x, y), cross_entropy)
            implicit = ImplicitMask(model, MagnitudeMask(), pattern="2:4", backend=backend)
        model.zero_grad()
        with implicit:
            cross_entropy(model(x), y).backward()
        chosen.append((opt.mask, implicit.mask, [p.grad.clone() for p in params]))
    assert chosen[0][:2] == chosen[1][:2]
    for a, b in zip(chosen[0][2], chosen[1][2], strict=True):
        assert_same_bits(a, b)


def test_cycles_of_perturb_and_restore_leave_the_bits():
    (p,) = [torch.nn.Parameter(torch.randn(70))]
    before = p.detach().clone()
    opt = SSAM([p], SGD, rho=3.0, sparsity=0.5, mask=RandomMask(), lr=0.1, backend="triton")
    p.grad = torch.empty_like(p)
    for _ in range(10):  # the interpreter takes a second for a hundred
        p.grad.normal_()
        opt.first_step()
        assert not torch.equal(p, before)
        opt.restore()
        assert_same_bits(p, before)
