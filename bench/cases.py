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
from typing import Any, cast

import torch
from torch import Tensor, nn

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
        before: called before every stage with its number, and never compiled.
        target: least ratio against eager on a CPU that the project promises, or None.
        directions: random directions that one call adds, or None where that is no measure.
        rounds: at most so many timed rounds, where the baselines take seconds each.
        dense: the fused step that the row's saves work of, one closure per backend, or None.
    """

    name: str
    bytes_per_element: float
    fused: Callable[[str], object]
    stages: tuple[Stage, ...]
    target: float | None = None
    graphs: tuple[Stage, ...] | None = None
    before: Callable[[int], object] | None = None
    directions: int | None = None
    rounds: int | None = None
    dense: Callable[[str], object] | None = None

    @property
    def label(self) -> str:
        """The name, and the number of directions where a table has several."""
        return self.name + (f" q={self.directions}" if self.directions is not None else "")

    def eager(self, stages: tuple[Stage, ...] | None = None) -> object:
        """Run the published step, or other stages in its place."""
        passed: object = None
        for number, stage in enumerate(self.stages if stages is None else stages):
            if self.before is not None:
                self.before(number)
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


def parameters(data: Data) -> list[nn.Parameter]:
    """Parameters over the same memory, with gradients that stay."""
    params = [nn.Parameter(p) for p in data.params]
    for p, g in zip(params, data.grads, strict=True):
        p.grad = g
    return params


def per_backend(make: Callable[[str], Any]) -> Callable[[str], Any]:
    """One object per backend, made at its first call."""
    made: dict[str, Any] = {}

    def get(backend: str) -> Any:
        if backend not in made:
            made[backend] = make(backend)
        return made[backend]

    return get


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

    return Case("linbreg", 8 + 2 * data.size, fused, (eager,), target=25)


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

    return Case("adabreg", 24 + 2 * data.size, fused, (eager,), target=15)


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


def drawn(like: Tensor, distribution: str, graph: bool = False) -> Tensor:
    """A direction from the global generator, as MeZO draws it.

    In a graph on a GPU ``torch.compile`` draws inside its own kernel, which only ``randn`` lets it
    do; on a CPU its own normals are slower than the library's, to which it leaves ``normal``.
    """
    drawing = {"size": like.size(), "device": like.device, "dtype": like.dtype}
    if distribution == "rademacher":
        return torch.randint(0, 2, **drawing).mul_(2).sub_(1)
    if graph and like.device.type == "cuda":
        return torch.randn(**drawing)
    return torch.normal(mean=0, std=1, **drawing)


def perturb_(
    params: list[Tensor], scale: float | Tensor, smoothing: float, distribution: str = "normal"
) -> None:
    """MeZO's zo_perturb_parameters: draw, scale twice, add, into new tensors."""
    for p in params:
        p.data = p.data + scale * drawn(p, distribution) * smoothing


def zo(data: Data, distribution: str, q: int = 1, smoothing: float = 1e-9) -> Case:
    """params += sum_k c_k z_k, c_k = +-smoothing, as MeZO: reseed and perturb, for every k.

    ``torch.compile`` gets all q draws in one graph, after one reseeding.
    """
    params = data.params
    numbers = [smoothing * (-1) ** k for k in range(q)]  # the sum stays small
    coef = torch.tensor(numbers, device=params[0].device)

    def add(c: float) -> Stage:
        def stage(_: object) -> None:
            perturb_(params, c / smoothing, smoothing, distribution)

        return stage

    def graph(_: object) -> None:
        for p in params:
            for c in numbers:
                p.add_(c * drawn(p, distribution, graph=True))

    def fused(backend: str) -> None:
        sk.zo_combine_(params, coef, seed=7, distribution=distribution, backend=backend)

    name = {"normal": "zo gaussian", "rademacher": "zo rademacher"}[distribution]
    target = {"normal": 13, "rademacher": 45}[distribution] if q == 1 else None
    return Case(
        name, 2 * data.size, fused, tuple(add(c) for c in numbers), target, graphs=(graph,),
        before=lambda k: torch.manual_seed(7 + k), directions=q,
    )  # fmt: skip


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
