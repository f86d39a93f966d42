"""The Bregman optimizers on the Triton kernels: bit for bit the run on the reference.

The reference runs every numbered property of bregman.md section 12; a run with equal bits has them
too. Needs a process of its own (TRITON_INTERPRET=1) or a GPU.
"""

import os

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy
from sparse_optim import (
    AdaBreg,
    LinBreg,
    ProxSGD,
    QuantileLambda,
    bregman_param_groups,
    sparse_init_,
)
from torch import nn

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

LIN, ADA = {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"lr": 0.02}
CYCLE = {"coarse_steps": 3, "phase_offset": 3}
GROUPS = {
    "l1": ("l1", None, {}),
    "l1_pos": ("l1_pos", None, {}),
    "rows": ("l1_l2", "rows", {}),
    "blocks": ("l1_l2", "blocks", {"block": (2, 4)}),
    "sparse group": ("sparse_group", "filters", {"l1_ratio": 0.3}),
}


def make(nonnegative):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
    generator = torch.Generator().manual_seed(2)
    sparse_init_(model, 0.3, nonnegative=nonnegative, generator=generator)
    return model


def train(cls, reg, backend, steps=9, control=False, lam=0.02, **options):
    kind, groups, own = GROUPS[reg]
    model = make(kind == "l1_pos")
    params = bregman_param_groups(model, reg=kind, lam=lam, groups=groups, **own)
    opt = cls(params, backend=backend, **options)
    if control:
        QuantileLambda(opt, 0.8)
    x, y = batch()
    for _ in range(steps):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
    state = [v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [*model.parameters(), *state], opt


def assert_equal_runs(*args, **options):
    ours, opt = train(*args, "triton", **options)
    theirs, _ = train(*args, "reference", **options)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert_same_bits(a, b)
    return opt


@pytest.mark.parametrize("reg", GROUPS)
@pytest.mark.parametrize(("cls", "options"), [(LinBreg, LIN), (AdaBreg, ADA)])
@pytest.mark.parametrize("compact", [True, False])
def test_a_cycle_has_the_bits_of_the_reference(cls, options, reg, compact):
    lam = 0.02 if cls is LinBreg else 0.1  # AdaBreg's zeros move by lr in every full step
    opt = assert_equal_runs(
        cls, reg, compact=compact, weight_decay=0.01, lam=lam, **CYCLE, **options
    )
    assert 0.0 < opt.sparsity() < 1.0


def test_leak_scale_and_control_have_the_bits_of_the_reference():
    assert_equal_runs(LinBreg, "l1", dual_leak=0.01, fine_scale=4.0, **CYCLE, **LIN)
    opt = assert_equal_runs(LinBreg, "l1", control=True, **LIN)
    assert opt.sparsity() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("reg", ["l1", "l1_pos", "rows"])
def test_proximal_steps_have_the_bits_of_the_reference(reg):
    assert_equal_runs(ProxSGD, reg, lr=0.1, momentum=0.9)
