"""Bad scalars and stream arguments: the same words on every backend, and nothing modified."""

from __future__ import annotations

import pytest
import torch
from test_checks import good, ones, refused

NAN, INF = float("nan"), float("inf")

NESTEROV = "nesterov needs momentum and the 'sgd' form"
DIRECTIONS = "directions must be a 1-D int64 or int32 tensor, or a list"

SCALARS = [
    ("grad_norm", "eta", ">= 0"), ("masked_perturb_", "rho", ">= 0"),
    ("masked_perturb_", "eta", ">= 0"), ("masked_perturb_", "eps", ">= 0"),
    *[(op, name, ">= 0") for op in ("linbreg_step_", "adabreg_step_")
      for name in ("lr", "lam", "weight_decay")],
    ("linbreg_step_", "delta", "> 0"), ("adabreg_step_", "delta", "> 0"),
    ("adabreg_step_", "eps", ">= 0"),
    *[(op, name, bound) for op in ("linbreg_step_", "adabreg_step_")
      for name, bound in (("dual_leak", ">= 0"), ("fine_scale", ">= 1"))],
]  # fmt: skip


@pytest.mark.parametrize(("op", "name", "bound"), SCALARS)
def test_scalars_are_finite_and_in_range(op, name, bound):
    for value in (-1.0, -1e-300, NAN, INF, -INF, *([0.0] if bound in ("> 0", ">= 1") else [])):
        message = refused(op, {**good(op), name: value})
        assert message == f"{op}: {name} must be finite and {bound}, got {value}"
    message = refused(op, {**good(op), name: "1"})
    assert message == f"{op}: {name} must be finite and {bound}, got 1"


BAD = [
    ("linbreg_step_", {"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ("linbreg_step_", {"momentum": -0.1}, "momentum must be in [0, 1), got -0.1"),
    ("linbreg_step_", {"momentum": NAN}, "momentum must be in [0, 1), got nan"),
    ("linbreg_step_", {"momentum_form": "x"}, "momentum_form must be 'sgd' or 'ema', got 'x'"),
    ("linbreg_step_", {"momentum_buffers": None}, "momentum 0.5 needs momentum_buffers"),
    ("linbreg_step_", {"nesterov": True, "momentum": 0.0}, NESTEROV),
    ("linbreg_step_", {"nesterov": True, "momentum_form": "ema"}, NESTEROV),
    *[(op, {"duals": None, **change}, "readout=False, dual_leak and fine_scale need duals")
      for op in ("linbreg_step_", "adabreg_step_")
      for change in ({"readout": False}, {"dual_leak": 0.1}, {"fine_scale": 2.0})],
    *[(op, {"readout": False, "fine_scale": 2.0}, "fine_scale needs the readout, its cap is lam")
      for op in ("linbreg_step_", "adabreg_step_")],
    ("adabreg_step_", {"betas": (1.0, 0.9)}, "betas[0] must be in [0, 1), got 1.0"),
    ("adabreg_step_", {"betas": (0.9, -1)}, "betas[1] must be in [0, 1), got -1"),
    ("adabreg_step_", {"step": 0}, "step must be >= 1, got 0"),
    ("masked_perturb_", {"norm": 1.0}, "norm must be a tensor with one element"),
    ("masked_perturb_", {"norm": torch.ones(2)}, "norm must be a tensor with one element"),
    ("zo_gram", {"num_directions": 0}, "at least one direction is needed, got 0"),
]  # fmt: skip

STREAM = [
    ({"seed": -1}, "seed must be in [0, 2^64), got -1"),
    ({"seed": 2**64}, f"seed must be in [0, 2^64), got {2**64}"),
    ({"seed": 1.5}, "seed must be in [0, 2^64), got 1.5"),
    ({"seed": torch.tensor(1.0)}, "seed must be an int or an int64 tensor with one element"),
    ({"seed": torch.tensor([1, 2])}, "seed must be an int or an int64 tensor with one element"),
    ({"coef": []}, "at least one direction is needed, got 0"),
    ({"coef": torch.ones(1, 2)}, "coef must be a 1-D floating tensor or a list of numbers"),
    ({"coef": torch.tensor([1, 2])}, "coef must be a 1-D floating tensor or a list of numbers"),
    ({"directions": [0]}, "directions has 1 entries, coef has 2"),
    ({"directions": torch.arange(3)}, "directions has 3 entries, coef has 2"),
    ({"directions": [0, -1]}, "directions[1] must be in [0, 2^32 - 1), got -1"),
    ({"directions": [2**32 - 1, 0]}, f"directions[0] must be in [0, 2^32 - 1), got {2**32 - 1}"),
    ({"directions": torch.ones(2)}, DIRECTIONS),
    ({"directions": torch.zeros(1, 2).long()}, DIRECTIONS),
    ({"uids": [0]}, "uids has 1 entries, tensors has 2"),
    ({"uids": [0, 2**32]}, f"uids[1] must be in [0, 2^32), got {2**32}"),
    ({"uids": [-5, 0]}, "uids[0] must be in [0, 2^32), got -5"),
    ({"distribution": "uniform"}, "distribution must be 'normal' or 'rademacher', got 'uniform'"),
    ({"rounds": 8}, "rounds must be 7 or 10, got 8"),
    ({"alpha": [1.0]}, "alpha must be a number or have one entry per tensor (2)"),
    ({"gamma": torch.ones(3)}, "gamma must be a number or have one entry per tensor (2)"),
    ({"sumsq": torch.zeros(())}, "sumsq must be a float64 tensor with one element"),
    ({"sumsq": torch.zeros(2).double()}, "sumsq must be a float64 tensor with one element"),
    ({"sumsq": torch.zeros((), device="meta").double()}, "sumsq is on meta, tensors[0] is on cpu"),
    ({"sumsq": torch.zeros((), requires_grad=True, dtype=torch.float64)},
     "sumsq requires grad; call under torch.no_grad() to modify it"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "change", "text"), BAD)
def test_bad_value(op, change, text):
    assert refused(op, {**good(op), **change}) == f"{op}: {text}"


@pytest.mark.parametrize(("change", "text"), STREAM, ids=[t[:30] for _, t in STREAM])
def test_bad_stream_argument(change, text):
    assert refused("zo_combine_", {**good("zo_combine_"), **change}) == f"zo_combine_: {text}"


@pytest.mark.parametrize("op", ["zo_norm2", "zo_gram"])
@pytest.mark.parametrize("change", [{"seed": -1}, {"rounds": 3}, {"uids": [1]}])
def test_twins_check_the_stream_as_well(op, change):
    text = dict((next(iter(c)), t) for c, t in STREAM)[next(iter(change))]  # noqa: C402
    assert refused(op, {**good(op), **change})[: len(op) + 6] == f"{op}: {text}"[: len(op) + 6]


def test_sumsq_needs_one_dtype():
    made = good("zo_combine_")
    made |= {"tensors": [ones(4), ones(5, 8).double()], "src": None, "backup": None}
    message = refused("zo_combine_", made)
    assert message == "zo_combine_: sumsq needs all tensors on one device and of one dtype"
