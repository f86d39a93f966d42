"""``--suite bregman``: Bregman steps of every kind, and coarse steps (coarse_cases.py).

Steps are one call of the fused operations (two with groups: dual step, group readout). Beside them
the published code in eager PyTorch (TimRoith/BregmanLearning: dual step, regulariser's prox, count
of the nonzeros), torch.compile of the same mathematics and torch's own SGD or Adam, which lack the
dual: they move fewer bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sparse_optim import ProxSGD
from torch import Tensor
from torch.optim import SGD, Adam

import sparse_kernels as sk

from . import coarse_cases
from .cases import Case, Data, Make, Pass, parameters, per_backend, torch_step
from .coarse_cases import LAM, row_length

LR = 1e-3


def _matrices(tensors: list[Tensor], cols: int) -> list[Tensor]:
    """Views as matrices; what does not fill a row is left out."""
    return [t[: t.numel() // cols * cols].view(-1, cols) for t in tensors]


def whole_step(data: Data, cls: type, case: Case, **options: Any) -> Case:
    """A whole optimizer step; its other sides are those of the operation."""

    def make(backend: str) -> Callable[[], object]:
        opt = cls(parameters(data), lr=1e-7, lam=LAM, backend=backend, **options)
        if cls is not ProxSGD:
            opt.init_dual()
        return opt.step

    step = per_backend(make)
    name = f"{cls.__name__}.step" + (" momentum" if "momentum" in options else "")
    return replace(
        case, name=name, target=None, whole_step=True, fused=lambda backend: step(backend)()
    )


# steps on all entries -----------------------------------------------------------------------------


def linbreg(data: Data, lr: float = 1e-3, lam: float = 0.5, delta: float = 1.0) -> Case:
    params, grads, duals = data.params, data.grads, data.states[0]

    def eager(_: object) -> list[Tensor]:
        live = []
        for p, g, v in zip(params, grads, duals, strict=True):
            v.add_(g, alpha=-lr)
            p.copy_(delta * torch.sign(v) * torch.clamp(torch.abs(v) - lam, min=0.0))
            live.append(torch.count_nonzero(p))
        return live

    def fused(backend: str) -> object:
        return sk.linbreg_step_(params, grads, duals, lr, lam, delta, backend=backend)

    passes = (Pass((data.size,), (data.state_size,), (data.size,)),)
    return Case(
        "linbreg", passes, fused, (eager,), target=25, torch_step=torch_step(data, SGD, lr=1e-7)
    )


def linbreg_momentum(data: Data, lr: float = 1e-3, lam: float = 0.5, beta: float = 0.9) -> Case:
    params, grads, duals, buffers = data.params, data.grads, *data.states[:2]

    def eager(_: object) -> list[Tensor]:
        live = []
        for p, g, v, b in zip(params, grads, duals, buffers, strict=True):
            b.mul_(beta).add_(g, alpha=(1 - beta) * lr)
            v.sub_(b)
            p.copy_(torch.sign(v) * torch.clamp(torch.abs(v) - lam, min=0.0))
            live.append(torch.count_nonzero(p))
        return live

    def fused(backend: str) -> object:
        return sk.linbreg_step_(
            params, grads, duals, lr, lam, 1.0, beta, buffers, momentum_form="ema", backend=backend
        )

    passes = (Pass((data.size,), (data.state_size,) * 2, (data.size,)),)
    baseline = torch_step(data, SGD, lr=1e-7, momentum=beta)
    return Case("linbreg momentum", passes, fused, (eager,), torch_step=baseline)


def adabreg(data: Data, lr: float = 1e-3, lam: float = 0.5) -> Case:
    params, grads = data.params, data.grads
    duals, averages, squares = data.states
    beta1, beta2, eps, step = 0.9, 0.999, 1e-8, 10

    def eager(_: object) -> list[Tensor]:
        live = []
        for p, g, v, a, u in zip(params, grads, duals, averages, squares, strict=True):
            a.mul_(beta1).add_(g, alpha=1 - beta1)
            u.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            denom = (u.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
            v.addcdiv_(a, denom, value=-lr / (1 - beta1**step))
            p.copy_(torch.sign(v) * torch.clamp(torch.abs(v) - lam, min=0.0))
            live.append(torch.count_nonzero(p))
        return live

    def fused(backend: str) -> object:
        return sk.adabreg_step_(
            params, grads, duals, averages, squares, lr, lam, step=step, backend=backend
        )

    passes = (Pass((data.size,), (data.state_size,) * 3, (data.size,)),)
    return Case(
        "adabreg", passes, fused, (eager,), target=15, torch_step=torch_step(data, Adam, lr=1e-7)
    )


def nonnegative(data: Data) -> Case:
    params, grads, duals = data.params, data.grads, data.states[0]

    def eager(_: object) -> list[Tensor]:
        live = []
        for p, g, v in zip(params, grads, duals, strict=True):
            v.add_(g, alpha=-LR)
            p.copy_(torch.clamp(v - LAM, min=0.0))
            live.append(torch.count_nonzero(p))
        return live

    def fused(backend: str) -> object:
        return sk.linbreg_step_(params, grads, duals, LR, LAM, nonnegative=True, backend=backend)

    passes = (Pass((data.size,), (data.state_size,), (data.size,)),)
    return Case("linbreg l1_pos", passes, fused, (eager,))


def proximal(data: Data) -> Case:
    """Proximal SGD with momentum: the parameter is its own dual."""
    params, grads, buffers = data.params, data.grads, data.states[0]
    beta, lam = 0.9, 1e-6

    def eager(_: object) -> list[Tensor]:
        live = []
        for p, g, b in zip(params, grads, buffers, strict=True):
            b.mul_(beta).add_(g)
            p.add_(b, alpha=-LR)
            p.copy_(torch.sign(p) * torch.clamp(torch.abs(p) - lam, min=0.0))
            live.append(torch.count_nonzero(p))
        return live

    def fused(backend: str) -> object:
        return sk.linbreg_step_(
            params, grads, None, LR, lam, momentum=beta, momentum_buffers=buffers, backend=backend
        )

    passes = (Pass((data.size,), (data.size, data.state_size)),)
    baseline = torch_step(data, SGD, lr=1e-7, momentum=beta)
    return Case("proxsgd momentum", passes, fused, (eager,), torch_step=baseline)


def grouped(data: Data, what: str, cols: int, l1_ratio: float = 0.0) -> Case:
    """LinBreg with the group lasso over rows of ``cols`` entries; about half the groups live."""
    params, grads = _matrices(data.params, cols), _matrices(data.grads, cols)
    duals = _matrices(data.states[0], cols)
    lam = 1.0  # of standard normal duals: |v_g| is about sqrt(n)
    lam_entries, lam_groups = l1_ratio * lam, (1.0 - l1_ratio) * lam
    threshold = lam_groups * math.sqrt(cols)
    tilings = [sk.Tiling(cols, 1, cols)] * len(params)

    def eager(_: object) -> list[Tensor]:
        live = []
        for p, g, v in zip(params, grads, duals, strict=True):
            v.add_(g, alpha=-LR)
            s = v
            if lam_entries > 0.0:
                s = torch.sign(v) * torch.clamp(torch.abs(v) - lam_entries, min=0.0)
            norms = s.norm(p=2, dim=1, keepdim=True)
            p.copy_(s * torch.clamp(1.0 - threshold / norms.clamp(min=1e-12), min=0.0))
            live.append(torch.count_nonzero(p))
        return live

    def fused(backend: str) -> object:
        sk.linbreg_step_(params, grads, duals, LR, 0.0, readout=False, backend=backend)
        return sk.prox_group_(params, duals, tilings, lam_groups, lam_entries, backend=backend)

    dual = data.state_size
    passes = (Pass((data.size,), (dual,)), Pass((dual,), write=(data.size,)))
    return Case(f"linbreg {what}", passes, fused, (eager,))


def readout(data: Data, what: str, cols: int) -> Case:
    """The group readout alone."""
    params, duals = _matrices(data.params, cols), _matrices(data.states[0], cols)
    threshold = math.sqrt(cols)
    tilings = [sk.Tiling(cols, 1, cols)] * len(params)

    def eager(_: object) -> list[Tensor]:
        live = []
        for p, v in zip(params, duals, strict=True):
            norms = v.norm(p=2, dim=1, keepdim=True)
            p.copy_(v * torch.clamp(1.0 - threshold / norms.clamp(min=1e-12), min=0.0))
            live.append(torch.count_nonzero(p))
        return live

    def fused(backend: str) -> object:
        return sk.prox_group_(params, duals, tilings, 1.0, backend=backend)

    passes = (Pass((data.state_size,), write=(data.size,)),)
    return Case(f"prox_group {what}", passes, fused, (eager,))


def all_cases(data: Data) -> list[Make]:
    """Cases to be made one at a time: some hold copies of the parameters."""
    cols = row_length(data)
    steps: list[Make] = [
        lambda: linbreg(data),
        lambda: linbreg_momentum(data),
        lambda: adabreg(data),
        lambda: nonnegative(data),
        lambda: proximal(data),
        lambda: grouped(data, f"rows of {cols}", cols),
        lambda: grouped(data, "kernels 3x3", 9),
        lambda: grouped(data, f"sparse group, rows of {cols}", cols, 0.5),
        lambda: readout(data, f"rows of {cols}", cols),
        lambda: readout(data, "kernels 3x3", 9),
    ]
    return steps if data.size < 4 else [*steps, *coarse_cases.all_cases(data)]
