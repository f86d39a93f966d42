"""The measured operations, each with its byte model and its baselines.

A case holds one list of tensors and closures over it:

* ``fused``: the public operations, one closure per backend;
* ``stages``: the step as the published code writes it in eager PyTorch, in place where it is. A
  stage takes what the one before returned. ``torch.compile`` gets each stage as a graph of its own:
  in training a backward pass lies between them, and as one graph perturb and restore cancel.

Closures may run any number of times: the time of none depends on the values (no denormals arise).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

import sparse_kernels as sk

Stage = Callable[[object], object]


@dataclass
class Case:
    """One operation on one list of tensors.

    Attributes:
        name: the row's name.
        bytes_per_element: the minimal traffic, reads plus writes (docs/performance.md).
        fused: backend name -> closure.
        stages: the published step in eager PyTorch.
        graphs: what ``torch.compile`` gets in place of the stages, where those cannot be graphs or
            a better one exists; () leaves it out.
        before: called before the stages and never compiled.
        target: least ratio against eager on a CPU that the project promises, or None.
    """

    name: str
    bytes_per_element: float
    fused: Callable[[str], object]
    stages: tuple[Stage, ...]
    target: float | None = None
    graphs: tuple[Stage, ...] | None = None
    before: Callable[[], object] | None = None

    def eager(self, stages: tuple[Stage, ...] | None = None) -> object:
        """Run the published step, or other stages in its place."""
        if self.before is not None:
            self.before()
        passed: object = None
        for stage in self.stages if stages is None else stages:
            passed = stage(passed)
        return passed


@dataclass
class Data:
    """Tensors of one shape list, made once and shared by the cases."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    size: int

    @classmethod
    def make(cls, tensors: int, elements: int, dtype: torch.dtype, device: str) -> Data:
        generator = torch.Generator(device).manual_seed(0)

        def draw(kind: torch.dtype) -> list[Tensor]:
            make = torch.randn
            return [
                make(elements, generator=generator, device=device).to(kind) for _ in range(tensors)
            ]

        math = torch.float64 if dtype == torch.float64 else torch.float32
        states = [draw(math) for _ in range(3)]
        states[2] = [t.abs() for t in states[2]]  # a second moment
        return cls(draw(dtype), draw(dtype), states, torch.empty((), dtype=dtype).element_size())


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

    return Case("linbreg", 8 + 2 * data.size, fused, (eager,), target=15)


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

    return Case("linbreg momentum", 16 + 2 * data.size, fused, (eager,))


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

    return Case("adabreg", 24 + 2 * data.size, fused, (eager,), target=10)


def sam(data: Data, rho: float = 1e-6) -> Case:
    """Norm, perturbation with exact backup, restore: both steps around the second backward."""
    params, grads = data.params, data.grads
    backup = [torch.empty_like(p) for p in params]

    def ascend(_: object) -> list[Tensor]:
        norm = torch.norm(torch.stack([g.norm(p=2) for g in grads]), p=2)
        scale = rho / (norm + 1e-12)
        saved = []
        for p, g in zip(params, grads, strict=True):
            saved.append(p.clone())
            p.add_(g * scale.to(p))
        return saved

    def restore(saved: object) -> None:
        for p, old in zip(params, cast(list[Tensor], saved), strict=True):
            p.copy_(old)

    def fused(backend: str) -> None:
        norm = sk.grad_norm(grads, backend=backend)
        sk.masked_perturb_(params, grads, norm, rho, None, backup, backend=backend)
        sk.restore_(params, backup, backend=backend)

    # norm: g; perturb: g, w, w, backup; restore: backup, w
    return Case("sam (both steps)", 7 * data.size, fused, (ascend, restore), target=3)


def ssam(data: Data, rho: float = 1e-6) -> Case:
    """The same with a random mask of half the entries; the published code keeps a float mask."""
    params, grads = data.params, data.grads
    backup = [torch.empty_like(p) for p in params]
    generator = torch.Generator(params[0].device).manual_seed(1)
    bools = [torch.rand(p.shape, generator=generator, device=p.device) < 0.5 for p in params]
    masks, floats = sk.pack_mask(bools), [b.to(p.dtype) for b, p in zip(bools, params, strict=True)]

    def ascend(_: object) -> list[Tensor]:
        norm = torch.norm(torch.stack([g.norm(p=2) for g in grads]), p=2)
        scale = rho / (norm + 1e-12)
        kept = []
        for p, g, m in zip(params, grads, floats, strict=True):
            e = g * scale.to(p)
            e.mul_(m)
            p.add_(e)
            kept.append(e)
        return kept

    def descend(kept: object) -> None:
        for p, e in zip(params, cast(list[Tensor], kept), strict=True):
            p.sub_(e)

    def fused(backend: str) -> None:
        norm = sk.grad_norm(grads, backend=backend)
        sk.masked_perturb_(params, grads, norm, rho, masks, backup, backend=backend)
        sk.restore_(params, backup, masks, backend=backend)

    return Case("ssam 50 % (both steps)", 7 * data.size + 0.25, fused, (ascend, descend))


def zo(data: Data, distribution: str, smoothing: float = 1e-9) -> Case:
    """params += smoothing * z, as MeZO perturbs: reseed, draw, scale, add, tensor by tensor."""
    params = data.params
    device = params[0].device

    def draw(p: Tensor) -> Tensor:
        if distribution == "normal":
            return torch.normal(mean=0, std=1, size=p.size(), device=device, dtype=p.dtype)
        return torch.randint(0, 2, p.size(), device=device, dtype=p.dtype).mul_(2).sub_(1)

    def eager(_: object) -> None:
        for p in params:
            p.add_(smoothing * draw(p))

    def fused(backend: str) -> None:
        sk.zo_combine_(params, [smoothing], seed=7, distribution=distribution, backend=backend)

    name = {"normal": "zo gaussian", "rademacher": "zo rademacher"}[distribution]
    target = {"normal": 8, "rademacher": 25}[distribution]
    return Case(name, 2 * data.size, fused, (eager,), target, before=lambda: torch.manual_seed(7))


def all_cases(data: Data) -> list[Callable[[], Case]]:
    """Cases to be made one at a time: some hold copies of the parameters."""
    return [
        lambda: linbreg(data),
        lambda: linbreg_momentum(data),
        lambda: adabreg(data),
        lambda: sam(data),
        lambda: ssam(data),
        lambda: zo(data, "normal"),
        lambda: zo(data, "rademacher"),
    ]
