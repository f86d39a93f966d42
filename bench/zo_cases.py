"""``--suite zo``: sums of q random directions, and whole zero-order steps without their forwards.

Sums come in float32 and bfloat16, steps in float32 with one direction. A step goes through the
package's optimizers with loss closures that only return a number, so their time on the host is part
of it. Beside it the published code in eager PyTorch: MeZO's perturbation (reseed, draw, scale
twice, add, into a new tensor) as often as MeZO calls it, for ZO-SAM, which has no public code, the
same perturbations and torch's own base optimizer; and torch.compile of the same mathematics with a
graph between any two forwards, the last of which restores and updates in one pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from sparse_optim import ZOSAM, MeZO
from torch import Tensor, nn
from torch.optim import SGD

import sparse_kernels as sk

from .cases import Case, Data, Make, Pass, Stage, parameters, per_backend
from .step_cases import DECAY, LR, RHO, SGD_OPTIONS, base_graph, base_pass

DIRECTIONS = (1, 4, 8, 16)
ROUNDS = {1: None, 4: 5, 8: 3, 16: 3}  # eager and compiled sums take q times as long
SMOOTHING, SEED = 1e-3, 7
LOSSES = (1.0, 1.0 - 2**-10)  # up and down: a tie would make every coefficient 0


def constant_losses(device: torch.device) -> Callable[[], Tensor]:
    """A closure that returns the two losses in turn."""
    values = itertools.cycle([torch.tensor(v, device=device) for v in LOSSES])
    return lambda: next(values)


def _reseed(_: int) -> None:
    torch.manual_seed(SEED)


# sums of directions ------------------------------------------------------------------------------


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


def sums(data: Data, distribution: str, q: int = 1, smoothing: float = 1e-9) -> Case:
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
    percent = 90 if distribution == "rademacher" and q == 1 else None
    return Case(
        name, (Pass(update=(data.size,)),), fused, tuple(add(c) for c in numbers), target, percent,
        graphs=(graph,), before=lambda k: torch.manual_seed(7 + k), directions=q,
        gaussian=distribution == "normal" and q == 1, rounds=ROUNDS[q],
    )  # fmt: skip


# MeZO ---------------------------------------------------------------------------------------------


def mezo_stages(params: list[Tensor]) -> tuple[Stage, ...]:
    """MeZO's zo_step and zo_update: each stage after a reseeding."""
    loss = constant_losses(params[0].device)

    def up(_: object) -> Tensor:
        perturb_(params, 1, SMOOTHING)
        return loss()

    def down(first: object) -> float:
        perturb_(params, -2, SMOOTHING)
        return ((cast(Tensor, first) - loss()) / (2 * SMOOTHING)).item()

    def back(slope: object) -> object:
        perturb_(params, 1, SMOOTHING)
        return slope

    def update(slope: object) -> None:
        for p in params:
            z = drawn(p, "normal")
            p.data = p.data - LR * (cast(float, slope) * z + DECAY * p.data)

    return up, down, back, update


def _probe_graphs(params: list[Tensor]) -> tuple[Stage, Stage]:
    def up(_: object) -> None:
        for p in params:
            p.add_(SMOOTHING * drawn(p, "normal", graph=True))

    def down(_: object) -> None:
        for p in params:
            p.sub_(2 * SMOOTHING * drawn(p, "normal", graph=True))

    return up, down


def mezo_graphs(params: list[Tensor]) -> tuple[Stage, ...]:
    """The same step; the way back and the update are one pass."""
    slope = torch.tensor((LOSSES[0] - LOSSES[1]) / (2 * SMOOTHING), device=params[0].device)

    def update(_: object) -> None:
        for p in params:
            z = drawn(p, "normal", graph=True)
            p.copy_((1 - LR * DECAY) * (p + SMOOTHING * z) - LR * slope * z)

    return *_probe_graphs(params), update


def _exact_sweeps(size: int) -> tuple[Pass, ...]:
    """The first of three sweeps writes the backup, the others start from it."""
    return Pass(update=(size,), write=(size,)), *(Pass((size,), write=(size,)),) * 2


def mezo_step(data: Data, restore: str) -> Case:
    """MeZO with one direction and weight decay: three sweeps, the published code makes four."""
    device = data.params[0].device

    def make(backend: str) -> Callable[[], object]:
        opt = MeZO(
            [nn.Parameter(p) for p in data.params], LR, 1, SMOOTHING, weight_decay=DECAY, seed=SEED,
            restore=restore, backend=backend,
        )  # fmt: skip
        loss = constant_losses(device)
        return lambda: opt.step(loss)

    step = per_backend(make)
    s = data.size
    sweeps = _exact_sweeps(s) if restore == "exact" else (Pass(update=(s,)),) * 3
    return Case(
        f"mezo step {restore}", sweeps, lambda backend: step(backend)(),
        mezo_stages([p.clone() for p in data.params]),
        graphs=mezo_graphs([p.clone() for p in data.params]), before=_reseed,
        percent=None, whole_step=True,
    )  # fmt: skip


# ZO-SAM -------------------------------------------------------------------------------------------


def zosam_stages(params: list[Tensor], base: torch.optim.Optimizer) -> tuple[Stage, ...]:
    """ZO-SAM composed of MeZO's perturbations; each stage after a reseeding."""
    loss = constant_losses(params[0].device)

    def up(_: object) -> Tensor:
        perturb_(params, 1, SMOOTHING)
        return loss()

    def down(first: object) -> Tensor:
        perturb_(params, -2, SMOOTHING)
        return torch.sign(cast(Tensor, first) - loss())

    def back(sign: object) -> object:
        perturb_(params, 1, SMOOTHING)
        return sign

    def length(sign: object) -> Tensor:
        norms = torch.stack([drawn(p, "normal").norm(p=2) for p in params])
        return RHO / SMOOTHING * cast(Tensor, sign) / norms.norm(p=2)

    def ascend(scale: object) -> object:
        perturb_(params, cast(Tensor, scale), SMOOTHING)
        return scale

    def descend(scale: object) -> None:
        perturb_(params, -cast(Tensor, scale), SMOOTHING)
        base.step()

    return up, down, back, length, ascend, descend


def zosam_graphs(params: list[Tensor], update: Callable[[list[Tensor]], None]) -> tuple[Stage, ...]:
    """The same step; the way back is part of the ascent, the restore of the base step."""
    sign = torch.tensor(LOSSES[0] - LOSSES[1], device=params[0].device).sign()

    def ascend(_: object) -> Tensor:
        directions = [drawn(p, "normal", graph=True) for p in params]
        square = torch.stack([z.square().sum() for z in directions]).sum()
        scale = RHO * sign / square.sqrt()
        for p, z in zip(params, directions, strict=True):
            p.add_((SMOOTHING + scale) * z)
        return scale

    def descend(scale: object) -> None:
        update([p - cast(Tensor, scale) * drawn(p, "normal", graph=True) for p in params])

    return *_probe_graphs(params), ascend, descend


def zosam_step(data: Data) -> Case:
    """ZO-SAM with one direction around SGD with momentum, on gradients that stay."""
    device = data.params[0].device
    shadow: list[Any] = [nn.Parameter(p.clone()) for p in data.params]  # eager's own
    for p, g in zip(shadow, data.grads, strict=True):
        p.grad = g

    def make(backend: str) -> Callable[[], None]:
        opt = ZOSAM(
            parameters(data), SGD, RHO, 1, SMOOTHING, seed=SEED, backend=backend, **SGD_OPTIONS
        )
        loss = constant_losses(device)

        def run() -> None:
            opt.probe(loss)
            opt.step()

        return run

    step = per_backend(make)
    plain = [p.clone() for p in data.params]
    graphs = zosam_graphs(plain, base_graph("sgd", plain, data))
    passes = (*_exact_sweeps(data.size), base_pass("sgd", data.size))
    return Case(
        "zo-sam + sgd", passes, lambda backend: step(backend)(),
        zosam_stages(shadow, SGD(shadow, **SGD_OPTIONS)), graphs=graphs, before=_reseed,
        percent=None, whole_step=True,
    )  # fmt: skip


def all_cases(data: Data) -> list[Make]:
    """Cases to be made one at a time: steps hold several copies of the parameters."""
    made: list[Make] = [
        lambda d=distribution, q=q: sums(data, d, q)  # type: ignore[misc]
        for distribution in ("normal", "rademacher")
        for q in DIRECTIONS
    ]
    if data.size < 4:  # replay makes 16-bit weights drift and is refused
        return made
    steps = (lambda: mezo_step(data, "exact"), lambda: mezo_step(data, "replay"))
    return [*made, *steps, lambda: zosam_step(data)]
