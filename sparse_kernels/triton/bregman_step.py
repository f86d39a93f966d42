"""linbreg_step_, adabreg_step_: dual step, soft-threshold readout and live count in one pass.

    LinBreg: d = g, or b <- momentum b + gain g, d = b (nesterov: d = g + momentum b)
             dual <- dual - scaled(step d) - decay theta
    AdaBreg: a <- a + (1 - beta1)(g - a), u <- beta2 u + (1 - beta2) g^2
             dual <- dual - decay theta - scaled(step a / (sqrt(u) / bias2_sqrt + eps))
    readout: theta = delta shrink(dual),  shrink(v) = v - clamp(v, lower, lam),
             lower = -lam, or -inf where theta must not be negative
    inactive: where theta was 0, scaled(x) = fine_scale x, then dual <- dual - leak dual_old, then,
             if fine_scale != 1, dual <- clamp(dual, lower - |x|, lam + |x|); else scaled(x) = x

Without duals the parameter is its own dual, delta is part of the step, and the readout makes it a
proximal gradient step. Source: Bungert, Roith, Tenbrinck, Burger, arXiv 2105.04319, algorithms 1 to
3. Deviations: both bias corrections of Adam; decoupled decay in the dual; leak and fine_scale of
inactive entries. Twins: reference/bregman_step.py, csrc/functors/bregman_step.h; equal bits in
float32.
"""

import math

import torch
from torch import Tensor

from ._bregman import _adabreg_step_kernel, _linbreg_step_kernel, lower_bound
from ._launch import TILE, address_table, f32, launch, make_plan, storage_type

_BLOCK = 1024  # four elements a thread: at eight the states of a step take over 64 registers


def linbreg_step_triton(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    momentum_buffers: list[Tensor],
    active: list[Tensor],
    lr: float,
    lam: float,
    delta: float,
    momentum: float,
    momentum_form: str,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    nonnegative: bool,
    readout: bool,
    dual_leak: float,
    fine_scale: float,
    scalars: Tensor | None = None,
) -> Tensor:
    """Step in place, one launch for the list; int64 live counts [T]."""
    device = params[0].device
    live = torch.zeros(len(params), dtype=torch.int64, device=device)
    plan = make_plan(params, TILE)
    if plan.programs == 0:
        return live
    ema = momentum_form == "ema" and bool(momentum_buffers)
    scale = 1.0 if duals else delta
    step = scale if ema else lr * scale  # the ema buffer holds lr already
    gain = (1.0 - momentum) * lr if ema else 1.0
    lower = lower_bound(lam, nonnegative)
    decay = lr * weight_decay * scale
    numbers = (lam, lower, delta, momentum, gain, step, decay, dual_leak, fine_scale)
    launch(
        _linbreg_step_kernel, (plan.programs,), device,
        address_table(params), address_table(grads), address_table(duals),
        address_table(momentum_buffers), address_table(active), plan.rows, plan.numels, live,
        *map(f32, numbers), -1.0 if maximize else 1.0, scalars,
        TYPE=storage_type(params[0].dtype), HAS_DUAL=bool(duals), READOUT=readout,
        HAS_BUFFER=bool(momentum_buffers), HAS_ACTIVE=bool(active), NESTEROV=nesterov,
        SIZE=TILE, BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip
    return live


def adabreg_step_triton(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    counts: list[Tensor],
    active: list[Tensor],
    lr: float,
    lam: float,
    delta: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    nonnegative: bool,
    readout: bool,
    dual_leak: float,
    fine_scale: float,
    step: int,
    step_sizes: Tensor | None,
    bias2_sqrts: Tensor | None,
    scalars: Tensor | None = None,
) -> Tensor:
    """Step in place, one launch for the list; int64 live counts [T]."""
    device = params[0].device
    live = torch.zeros(len(params), dtype=torch.int64, device=device)
    plan = make_plan(params, TILE)
    if plan.programs == 0:
        return live
    scale = 1.0 if duals else delta
    corrections = (lr * scale / (1.0 - beta1**step), math.sqrt(1.0 - beta2**step))
    lower = lower_bound(lam, nonnegative)
    moments = (1.0 - beta1, beta2, 1.0 - beta2, eps)
    numbers = (lam, lower, delta, *moments, lr * weight_decay * scale, dual_leak, fine_scale)
    launch(
        _adabreg_step_kernel, (plan.programs,), device,
        address_table(params), address_table(grads), address_table(duals), address_table(exp_avgs),
        address_table(exp_avg_sqs), address_table(counts), address_table(active), plan.rows,
        plan.numels, live, *map(f32, numbers), -1.0 if maximize else 1.0, *map(f32, corrections),
        step_sizes, bias2_sqrts, 0 if step_sizes is None else step_sizes.numel() - 1, scalars,
        TYPE=storage_type(params[0].dtype), HAS_DUAL=bool(duals), READOUT=readout,
        HAS_COUNTS=bool(counts), HAS_ACTIVE=bool(active), SIZE=TILE, BLOCK=_BLOCK, num_warps=8,
        maxnreg=None if counts else 64,
    )  # fmt: skip
    return live
