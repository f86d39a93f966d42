"""linbreg_step_, adabreg_step_: dual step, soft-threshold readout and live count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._common import keep_bits, opmath_dtype, rounded, store, to_opmath


def clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``torch.clamp`` may pick either zero at a bound of 0; comparisons keep -0.0 and NaN."""
    return torch.where(x < low, low, torch.where(x > high, high, x))


def shrink(dual: Tensor, lam: float, nonnegative: bool = False) -> Tensor:
    """Soft threshold: dual - clamp(dual, -lam, lam); +0.0 where |dual| <= lam.

    Nonnegative: the lower bound is -inf; +0.0 where dual <= lam, at -inf too.
    """
    bound = torch.tensor(lam, dtype=dual.dtype, device=dual.device)
    clamped = clamp(dual, torch.full_like(bound, -math.inf) if nonnegative else -bound, bound)
    return torch.where(clamped == dual, 0.0, dual - clamped)


@dataclass
class _Readout:
    """What both steps do with one tensor, its dual and the parameter that belongs to it.

    Without duals the parameter is its own dual. What depends on a scalar being 0 or 1 depends on
    it as rounded to the math dtype.
    """

    param: Tensor
    dual: Tensor | None
    keep: Tensor | None
    lam: float
    delta: float
    decay: float
    nonnegative: bool
    readout: bool
    leak: float
    fine_scale: float

    def __post_init__(self) -> None:
        dtype = opmath_dtype(self.param.dtype)
        self.lam, self.decay = rounded(self.lam, dtype), rounded(self.decay, dtype)
        self.leak, self.fine_scale = rounded(self.leak, dtype), rounded(self.fine_scale, dtype)

    def shrink(self, dual: Tensor) -> Tensor:
        return shrink(dual, self.lam, self.nonnegative)

    def decayed(self, dual: Tensor, theta: Tensor) -> Tensor:
        return dual - self.decay * theta if self.decay != 0.0 else dual

    def step(self, moved: Tensor, decay_first: bool) -> Tensor:
        """Move the dual, read the parameter out; the number of live entries among those written."""
        param = to_opmath(self.param)
        old = param if self.dual is None else to_opmath(self.dual)
        shrunk = self.shrink(old)
        read_out = self.dual is not None and self.readout
        theta = self.delta * shrunk if read_out else param
        dead = (shrunk if read_out else param) == 0
        if self.dual is None:
            dead = torch.zeros_like(dead)
        scaled = torch.where(dead, self.fine_scale * moved, moved)
        if decay_first:
            dual = self.decayed(old, theta) - scaled
        else:
            dual = self.decayed(old - scaled, theta)
        dual = torch.where(dead, self.rested(dual, old, moved), dual)
        return self.finish(dual)

    def rested(self, dual: Tensor, old: Tensor, moved: Tensor) -> Tensor:
        """What an inactive entry does beside the step."""
        if self.leak != 0.0:
            dual = dual - self.leak * old
        if self.fine_scale != 1.0:
            reach = moved.abs()
            lower = torch.full_like(reach, -math.inf) if self.nonnegative else -self.lam - reach
            dual = clamp(dual, lower, self.lam + reach)
        return dual

    def finish(self, dual: Tensor) -> Tensor:
        """Store the dual and its readout, or without duals the parameter."""
        if self.dual is None:
            shrunk = self.shrink(dual) if self.lam != 0.0 or self.nonnegative else dual
            store(self.param, shrunk, self.keep)
        else:
            store(self.dual, dual, self.keep)
            if not self.readout:
                return torch.zeros((), dtype=torch.int64, device=dual.device)
            shrunk = self.shrink(dual)
            store(self.param, self.delta * shrunk, self.keep)
        live = shrunk != 0
        return (live if self.keep is None else live & self.keep).sum()


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
    nonnegative: bool,
    readout: bool,
    dual_leak: float,
    fine_scale: float,
    scalars: Tensor | None = None,
) -> Tensor:
    ema = momentum_form == "ema" and bool(momentum_buffers)
    scale = 1.0 if duals else delta
    step = scale if ema else lr * scale  # the ema buffer holds lr already
    gain = (1.0 - momentum) * lr if ema else 1.0
    decay = lr * weight_decay * scale
    if scalars is not None:
        lam, decay, step, gain = scalars.tolist()
    options = (lam, delta, decay, nonnegative, readout, dual_leak, fine_scale)
    live = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        keep = keep_bits(active[i], param.numel()) if active else None
        entry = _Readout(param, duals[i] if duals else None, keep, *options)
        direction = to_opmath(grad)
        if maximize:
            direction = -direction
        if momentum_buffers:
            buffer = to_opmath(momentum_buffers[i])
            buffer = momentum * buffer + gain * direction
            store(momentum_buffers[i], buffer, keep)
            direction = direction + momentum * buffer if nesterov else buffer
        live.append(entry.step(step * direction, decay_first=False))
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
    nonnegative: bool,
    readout: bool,
    dual_leak: float,
    fine_scale: float,
    step: int,
    step_sizes: Tensor | None,
    bias2_sqrts: Tensor | None,
    scalars: Tensor | None = None,
) -> Tensor:
    scale = 1.0 if duals else delta
    decay = lr * weight_decay * scale
    now = [lr * scale / (1.0 - beta1**step), math.sqrt(1.0 - beta2**step)]
    if scalars is not None:
        lam, decay, *now = scalars.tolist()
    options = (lam, delta, decay, nonnegative, readout, dual_leak, fine_scale)
    live = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        keep = keep_bits(active[i], param.numel()) if active else None
        entry = _Readout(param, duals[i] if duals else None, keep, *options)
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
            step_size, bias2_sqrt = torch.tensor(now, dtype=a.dtype, device=a.device)
        store(exp_avgs[i], a, keep)
        store(exp_avg_sqs[i], u, keep)
        # correctly rounded root: torch's own fp32 sqrt on the CPU is off by an ulp now and then
        root = u.double().sqrt().to(u.dtype)
        moved = (step_size * a) / (root / bias2_sqrt + eps)
        live.append(entry.step(moved, decay_first=True))
    return torch.stack(live)
