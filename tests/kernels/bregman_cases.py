"""Cases of the Bregman steps: the lists and hyper-parameters of one call, and how to run it."""

from __future__ import annotations

import torch

import sparse_kernels as sk
from sparse_kernels.testing import copy_of, make_list, make_masks, plant_special_values

#: options of one LinBreg call: lists to build and hyper-parameters away from their defaults
LINBREG = {
    "plain": ((), {}),
    "lr-0": ((), {"lr": 0.0}),
    "lam-0": ((), {"lam": 0.0, "delta": 0.5}),
    "momentum": (("buffers",), {"momentum": 0.9}),
    "nesterov-masked": (
        ("buffers", "active"),
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "delta": 3.0},
    ),
    "ema": (("buffers",), {"momentum": 0.7, "momentum_form": "ema", "maximize": True}),
    "decay-masked": (("active",), {"weight_decay": 0.25, "maximize": True}),
    "no-dual": (("no-dual",), {"delta": 0.5, "weight_decay": 0.1, "lam": 0.0}),
    "proximal": (("no-dual", "buffers"), {"momentum": 0.9, "nesterov": True}),
    "proximal-nonnegative": (("no-dual", "active"), {"nonnegative": True, "weight_decay": 0.1}),
    "no-dual-nonnegative": (("no-dual",), {"nonnegative": True, "lam": 0.0}),
    "nonnegative": ((), {"nonnegative": True, "weight_decay": 0.1, "delta": 2.0}),
    "leak-masked": (("active",), {"dual_leak": 0.1, "weight_decay": 0.1}),
    "fine": (("buffers",), {"momentum": 0.9, "fine_scale": 7.0}),
    "nonnegative-leak-fine": (
        ("active",),
        {"nonnegative": True, "dual_leak": 0.25, "fine_scale": 3.0, "maximize": True},
    ),
    "given": (("zeros",), {"readout": False, "weight_decay": 0.25}),
    "given-leak-masked": (
        ("zeros", "buffers", "active"),
        {"readout": False, "dual_leak": 0.1, "momentum": 0.9, "momentum_form": "ema"},
    ),
    "no-dual-ema-masked": (
        ("no-dual", "buffers", "active"),
        {"momentum": 0.9, "momentum_form": "ema", "delta": 2.0},
    ),
}
ADABREG = {
    "plain": ((), {"step": 3}),
    "all-masked": (
        ("active",),
        {"step": 7, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.1, "delta": 2.0},
    ),
    "counts": (("counts",), {"step": 9, "maximize": True, "lam": 0.0}),
    "counts-masked": (("counts", "active"), {"step": 500, "betas": (0.0, 0.99), "delta": 0.5}),
    "no-dual": (("no-dual",), {"step": 1, "delta": 0.5, "weight_decay": 0.2}),
    "proximal-masked": (("no-dual", "active"), {"step": 2}),
    "proximal-nonnegative": (("no-dual", "counts"), {"step": 9, "nonnegative": True}),
    "nonnegative-leak": ((), {"step": 2, "nonnegative": True, "dual_leak": 0.1}),
    "leak-fine-masked": (
        ("counts", "active"),
        {"step": 9, "dual_leak": 0.1, "fine_scale": 4.0, "weight_decay": 0.1, "delta": 2.0},
    ),
    "given": (("zeros",), {"step": 3, "readout": False, "weight_decay": 0.2}),
    "given-leak": (("zeros", "counts"), {"step": 9, "readout": False, "dual_leak": 0.1}),
    "no-dual-counts": (("no-dual", "counts"), {"step": 9, "weight_decay": 0.2, "lr": 0.0}),
}


def math_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def build(case, dtype, op, kinds, special=True):
    def on(device):
        wide = math_dtype(dtype)
        lists = {
            "params": make_list(case, dtype, device, seed=1),
            "grads": make_list(case, dtype, device, seed=2),
            "duals": make_list(case, wide, device, seed=3),
        }
        if special:
            for i, name in enumerate(lists):
                plant_special_values(lists[name], stride=11 + i, start=i)
        if "zeros" in kinds:
            for t in lists["params"]:
                t.masked_fill_(t.abs() < 0.5, 0.0)
        if "no-dual" in kinds:
            lists["duals"] = None
        if op == "adabreg":
            lists["exp_avgs"] = make_list(case, wide, device, seed=4)
            lists["exp_avg_sqs"] = [t.square_() for t in make_list(case, wide, device, seed=5)]
        if "buffers" in kinds:
            lists["momentum_buffers"] = make_list(case, wide, device, seed=4)
        if "counts" in kinds:
            lists["counts"] = [t.abs_() for t in copy_of(lists["params"], torch.int32)]
            for t in lists["counts"]:
                t.copy_(torch.arange(t.numel(), device=device).reshape(t.shape) % 8)
        if "active" in kinds:
            masks = make_masks(lists["params"], 0.5, seed=6)
            lists["active"] = sk.pack_mask(masks, backend="reference")
        return lists

    return on


def run_with(op, hyper):
    function = {"linbreg": sk.linbreg_step_, "adabreg": sk.adabreg_step_}[op]
    scalars = {"lr": 0.3, "lam": 0.4, **hyper}

    def run(lists, backend):
        return function(**lists, **scalars, backend=backend)

    return run
