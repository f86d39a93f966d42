"""linbreg_step_, adabreg_step_: dual step, soft-threshold readout and live count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._common import keep_bits, opmath_dtype, rounded, store, to_opmath


def shrink(dual: Tensor, lam: float, nonnegative: bool = False) -> Tensor:
    """Soft threshold S_lam(dual) = dual - clamp(dual, -lam, lam); +0.0 where |dual| <= lam.

    With ``nonnegative`` the clamp has no lower end: max(dual - lam, 0).

    ``torch.clamp`` may pick either zero for lam = 0; the two comparisons keep -0.0 and NaN.
    """
    bound = torch.tensor(lam, dtype=dual.dtype, device=dual.device)
    lower = torch.full_like(bound, -math.inf) if nonnegative else -bound
    return dual - torch.where(dual < lower, lower, torch.where(dual > bound, bound, dual))


def _begin(
    param: Tensor, duals: list[Tensor], i: int, lam: float, delta: float
) -> tuple[Tensor, Tensor]:
    """The dual and the parameter it stands for; without duals the parameter is its own dual."""
    if not duals:
        return to_opmath(param), to_opmath(param)
    dual = to_opmath(duals[i])
    return dual, delta * shrink(dual, lam)


def _finish(
    param: Tensor,
    duals: list[Tensor],
    i: int,
    dual: Tensor,
    lam: float,
    delta: float,
    keep: Tensor | None,
) -> Tensor:
    """Store the dual and its readout; return the number of live entries among those written."""
    if duals:
        store(duals[i], dual, keep)
        shrunk = shrink(dual, lam)
        store(param, delta * shrunk, keep)
    else:
        shrunk = dual
        store(param, dual, keep)
    live = shrunk != 0
    return (live if keep is None else live & keep).sum()


def linbreg_step_ref(
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
) -> Tensor:
    ema = momentum_form == "ema" and bool(momentum_buffers)
    scale = 1.0 if duals else delta
    step = scale if ema else lr * scale  # the ema buffer holds lr already
    decay = rounded(lr * weight_decay * scale, opmath_dtype(params[0].dtype))
    live = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        keep = keep_bits(active[i], param.numel()) if active else None
        dual, theta = _begin(param, duals, i, lam, delta)
        direction = to_opmath(grad)
        if maximize:
            direction = -direction
        if momentum_buffers:
            buffer = to_opmath(momentum_buffers[i])
            gain = (1.0 - momentum) * lr if ema else 1.0
            buffer = momentum * buffer + gain * direction
            store(momentum_buffers[i], buffer, keep)
            direction = direction + momentum * buffer if nesterov else buffer
        dual = dual - step * direction
        if decay != 0.0:
            dual = dual - decay * theta
        live.append(_finish(param, duals, i, dual, lam, delta, keep))
    return torch.stack(live)


def adabreg_step_ref(
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
    step: int,
    step_sizes: Tensor | None,
    bias2_sqrts: Tensor | None,
) -> Tensor:
    scale = 1.0 if duals else delta
    decay = rounded(lr * weight_decay * scale, opmath_dtype(params[0].dtype))
    live = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        keep = keep_bits(active[i], param.numel()) if active else None
        dual, theta = _begin(param, duals, i, lam, delta)
        g = to_opmath(grad)
        if maximize:
            g = -g
        a, u = to_opmath(exp_avgs[i]), to_opmath(exp_avg_sqs[i])
        a = a + (g - a) * (1.0 - beta1)
        u = u * beta2 + ((1.0 - beta2) * g) * g
        if counts:
            assert step_sizes is not None
            assert bias2_sqrts is not None
            n = counts[i].reshape(-1) + 1
            store(counts[i], n, keep)
            row = n.clamp(max=step_sizes.numel() - 1).long()
            step_size, bias2_sqrt = step_sizes[row], bias2_sqrts[row]
        else:
            dtype = opmath_dtype(param.dtype)
            step_size = torch.tensor(lr * scale / (1.0 - beta1**step), dtype=dtype)
            bias2_sqrt = torch.tensor(math.sqrt(1.0 - beta2**step), dtype=dtype)
            step_size, bias2_sqrt = step_size.to(a.device), bias2_sqrt.to(a.device)
        store(exp_avgs[i], a, keep)
        store(exp_avg_sqs[i], u, keep)
        if decay != 0.0:
            dual = dual - decay * theta
        # correctly rounded root: torch's own fp32 sqrt on the CPU is off by an ulp now and then
        root = u.double().sqrt().to(u.dtype)
        dual = dual - (step_size * a) / (root / bias2_sqrt + eps)
        live.append(_finish(param, duals, i, dual, lam, delta, keep))
    return torch.stack(live)
