"""The operations that SAM's steps are made of, one row each: part of ``--suite sam`` and ``host``.

Restoring and taking the base step is one operation; beside it torch's own fused and foreach
optimizers, which move as many bytes (they read the parameter where ours reads the backup).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import sparse_kernels as sk

from .cases import Case, Data, Make, Pass, torch_step

LR, RHO, MOMENTUM, DECAY = 1e-7, 1e-6, 0.9, 5e-4
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
SGD_OPTIONS = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
BASES: dict[str, tuple[type[Optimizer], dict[str, Any], int]] = {
    # class, options, states per parameter
    "sgd": (SGD, SGD_OPTIONS, 1),
    "adamw": (AdamW, {"lr": LR, "weight_decay": DECAY}, 2),
}


def base_pass(base: str, size: int) -> Pass:
    """The base step from the backup: what restores moves nothing of its own."""
    return Pass((size, size), (size,) * BASES[base][2], (size,))


def base_graph(base: str, params: list[Tensor], data: Data) -> Callable[[list[Tensor]], None]:
    """The base step as a graph: from weights that are given, into the parameters."""
    first = [torch.zeros_like(p) for p in params]
    second = [torch.zeros_like(p) for p in params]

    def sgd(weights: list[Tensor]) -> None:
        for p, w, g, b in zip(params, weights, data.grads, first, strict=True):
            d = g + DECAY * w
            b.mul_(MOMENTUM).add_(d)
            p.copy_(w - LR * b)

    def adamw(weights: list[Tensor]) -> None:
        for p, w, g, a, u in zip(params, weights, data.grads, first, second, strict=True):
            a.lerp_(g, 1 - BETA1)
            u.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            denominator = u.sqrt() / (1 - BETA2**9) ** 0.5 + EPS
            p.copy_(w * (1 - LR * DECAY) - LR / (1 - BETA1**9) * a / denominator)

    return {"sgd": sgd, "adamw": adamw}[base]


def norm(data: Data) -> Case:
    grads = data.grads

    def eager(_: object) -> Tensor:
        return torch.norm(torch.stack([g.norm(p=2) for g in grads]), p=2)

    def fused(backend: str) -> object:
        return sk.grad_norm(grads, backend=backend)

    return Case("norm", (Pass((data.size,)),), fused, (eager,))


def perturb(data: Data) -> Case:
    """The ascent with its backup, for a norm that is there."""
    params, grads, size = data.params, data.grads, data.size
    length = sk.grad_norm(grads)
    backup = [torch.empty_like(p) for p in params]

    def eager(_: object) -> list[Tensor]:
        scale = RHO / (length + 1e-12)
        saved = []
        for p, g in zip(params, grads, strict=True):
            saved.append(p.clone())
            p.add_(g * scale.to(p))
        return saved

    def fused(backend: str) -> None:
        sk.masked_perturb_(params, grads, length, RHO, None, backup, backend=backend)

    return Case("perturb with backup", (Pass((size,), (size,), (size,)),), fused, (eager,))


def restore(data: Data) -> Case:
    params, backup = data.params, [p.clone() for p in data.params]

    def eager(_: object) -> None:
        for p, old in zip(params, backup, strict=True):
            p.copy_(old)

    def fused(backend: str) -> None:
        sk.restore_(params, backup, backend=backend)

    return Case("restore", (Pass((data.size,), write=(data.size,)),), fused, (eager,))


def restore_step(data: Data, base: str) -> Case:
    """Restore and base step in one; eager: copy back, then torch's own step, tensor by tensor."""
    cls, options, states = BASES[base]
    params, grads, backup = data.params, data.grads, [p.clone() for p in data.params]
    moments = [[torch.zeros_like(p) for p in params] for _ in range(states)]
    steps = torch.full((len(params),), LR, device=params[0].device)
    ones = torch.ones_like(steps)
    shadow = [nn.Parameter(p.clone()) for p in params]
    for p, g in zip(shadow, grads, strict=True):
        p.grad = g
    torch_base = cls(shadow, foreach=False, **options)

    @torch.no_grad()
    def eager(_: object) -> None:
        for p, old in zip(shadow, backup, strict=True):
            p.copy_(old)
        torch_base.step()

    update = base_graph(base, [p.clone() for p in params], data)

    def graph(_: object) -> None:
        update(backup)

    def fused(backend: str) -> None:
        if base == "sgd":
            sk.restore_sgd_(params, grads, backup, moments[0], **options, backend=backend)
        else:
            sk.restore_adamw_(
                params, grads, backup, *moments, steps, ones, **options, backend=backend
            )

    return Case(
        f"restore + {base}", (base_pass(base, data.size),), fused, (eager,), graphs=(graph,),
        torch_step=torch_step(data, cls, **options),
    )  # fmt: skip


def all_cases(data: Data) -> list[Make]:
    return [
        lambda: norm(data),
        lambda: perturb(data),
        lambda: restore(data),
        lambda: restore_step(data, "sgd"),
        lambda: restore_step(data, "adamw"),
    ]
