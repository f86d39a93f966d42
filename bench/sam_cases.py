"""``--suite sam``: whole steps of SAM and Sparse SAM without forward and backward, and mask ops.

A step is the ascent at w and the descent at w + e with the base optimizer's update, through the
package's optimizers, on gradients that stay as they are. Beside it the published code in eager
PyTorch with the same masks (davda54/sam for SAM, the released Sparse SAM code for the others; its
base is torch's own optimizer), and torch.compile of the same mathematics in two graphs, between
which the second backward would lie. Learning rates are tiny, so that values stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from sparse_optim import SAM, SSAM, BitMask, RandomMask
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import sparse_kernels as sk

from .cases import Case, Data, parameters, per_backend

LR, RHO, MOMENTUM, DECAY = 1e-7, 1e-6, 0.9, 5e-4
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
SGD_OPTIONS = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
BASES: dict[str, tuple[type[Optimizer], dict[str, Any], float]] = {
    # class, options, passes of the least base step that restores as it goes
    "sgd": (SGD, SGD_OPTIONS, 5),
    "adamw": (AdamW, {"lr": LR, "weight_decay": DECAY}, 7),
}


def _both_steps(optimizer: Callable[[str], SAM]) -> Callable[[str], None]:
    def run(backend: str) -> None:
        opt = optimizer(backend)
        opt.first_step()
        opt.second_step()

    return run


def _scale(grads: list[Tensor], params: list[Tensor], adaptive: bool) -> Tensor:
    norms = [
        ((p.abs() if adaptive else 1.0) * g).norm(p=2) for p, g in zip(params, grads, strict=True)
    ]
    return RHO / (torch.norm(torch.stack(norms), p=2) + 1e-12)


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


def sam_step(data: Data, base: str, adaptive: bool = False) -> Case:
    """SAM or adaptive SAM around a base optimizer; the published code swaps tensors to restore."""
    base_cls, options, passes = BASES[base]
    shadow = [nn.Parameter(p.clone()) for p in data.params]  # eager's own: it changes their storage
    for p, g in zip(shadow, data.grads, strict=True):
        p.grad = g
    torch_base = base_cls(shadow, **options)

    @torch.no_grad()
    def ascend(_: object) -> list[Tensor]:
        scale = _scale(data.grads, [p.data for p in shadow], adaptive)
        saved = []
        for p, g in zip(shadow, data.grads, strict=True):
            saved.append(p.data.clone())
            p.add_((torch.pow(p, 2) if adaptive else 1.0) * g * scale.to(p))
        return saved

    @torch.no_grad()
    def descend(saved: object) -> None:
        for p, old in zip(shadow, cast(list[Tensor], saved), strict=True):
            p.data = old
        torch_base.step()

    plain = [p.clone() for p in data.params]
    update = base_graph(base, plain, data)

    def ascend_graph(_: object) -> list[Tensor]:
        scale = _scale(data.grads, plain, adaptive)
        saved = [p.clone() for p in plain]
        for p, g in zip(plain, data.grads, strict=True):
            p.add_((p * p if adaptive else 1.0) * g * scale.to(p))
        return saved

    def descend_graph(saved: object) -> None:
        update(cast(list[Tensor], saved))

    optimizer = per_backend(
        lambda backend: SAM(
            parameters(data), base_cls, RHO, adaptive, check_gradients=False, backend=backend,
            **options,
        )
    )  # fmt: skip
    # norm: g (w); ascent: g, w, w, backup; base step from the backup
    count = (2 if adaptive else 1) + 4 + passes
    name = f"{'asam' if adaptive else 'sam'} + {base}"
    fused = _both_steps(optimizer)
    return Case(
        name, count * data.size, fused, (ascend, descend), graphs=(ascend_graph, descend_graph)
    )


@dataclass(frozen=True)
class Masked:
    """A kind of mask, and what of a step it leaves in memory.

    Attributes:
        label: of the row.
        sparsity: fraction that is not perturbed.
        pattern: as for ``SSAM``.
        blocks: dead entries come in runs longer than a cache line, so that they cost nothing.
    """

    label: str
    sparsity: float
    pattern: str = "unstructured"
    blocks: bool = False

    def passes(self) -> float:
        """Passes over the parameters of a step with SGD and momentum, without the mask bits."""
        live = 1.0 - self.sparsity
        return 6 + 4 * live if self.blocks else 9 + 2 * live


MASKS = (
    Masked("ssam 50 %", 0.5),
    Masked("ssam 90 %", 0.9),
    Masked("ssam 2:4", 0.5, "2:4"),
    Masked("ssam rows 90 %", 0.9, "row", blocks=True),
)


def _as_matrices(data: Data) -> Data:
    """The same memory as matrices of about 1,000 columns where that divides, for rows and n:m."""
    size = data.params[0].numel()
    cols = next((c for c in (1000, 1024, 512, 100, 64, 8) if size % c == 0), None)
    if cols is None:
        raise ValueError(f"--suite sam needs --elements that 8 divides, got {size}")

    def shaped(tensors: list[Tensor]) -> list[Tensor]:
        return [t.view(-1, cols) for t in tensors]

    return Data(shaped(data.params), shaped(data.grads), [], data.size)


def ssam_step(data: Data, kind: Masked, check: bool = False) -> Case:
    """Sparse SAM around SGD with momentum; the published code keeps a float mask and e."""
    params, grads = data.params, data.grads
    mask = RandomMask().compute(params, kind.sparsity, pattern=kind.pattern)
    floats = [m.to(p.dtype) for m, p in zip(mask.to_bool(), params, strict=True)]
    shadow = [nn.Parameter(p.clone()) for p in params]
    for p, g in zip(shadow, grads, strict=True):
        p.grad = g
    torch_base = SGD(shadow, **SGD_OPTIONS)

    @torch.no_grad()
    def ascend(_: object) -> list[Tensor]:
        scale = _scale(grads, params, False)
        kept = []
        for p, g, m in zip(shadow, grads, floats, strict=True):
            e = g * scale.to(p)
            e.mul_(m)
            p.add_(e)
            kept.append(e)
        return kept

    @torch.no_grad()
    def descend(kept: object) -> None:
        for p, e in zip(shadow, cast(list[Tensor], kept), strict=True):
            p.sub_(e)
        torch_base.step()

    plain = [p.clone() for p in params]
    update = base_graph("sgd", plain, data)

    def ascend_graph(_: object) -> list[Tensor]:
        scale = _scale(grads, plain, False)
        kept = [g * scale.to(g) * m for g, m in zip(grads, floats, strict=True)]
        for p, e in zip(plain, kept, strict=True):
            p.add_(e)
        return kept

    def descend_graph(kept: object) -> None:
        update([p - e for p, e in zip(plain, cast(list[Tensor], kept), strict=True)])

    def make(backend: str) -> SSAM:
        opt = SSAM(
            parameters(data), SGD, RHO, mask=RandomMask(), check_gradients=check, backend=backend,
            **SGD_OPTIONS,
        )  # fmt: skip
        opt.set_masks(mask)
        return opt

    return Case(
        kind.label + (" checked" if check else ""),
        (kind.passes() + check) * data.size + 0.25,  # the mask is read twice
        _both_steps(per_backend(make)),
        (ascend, descend),
        graphs=(ascend_graph, descend_graph),
    )


# masks --------------------------------------------------------------------------------------------


def top_k(data: Data, sparsity: float = 0.95) -> Case:
    """The largest 5 % of a score; published: concatenate, sorted top-k, zeros, scatter."""
    scores = [g.abs() for g in data.grads]
    live = round(sum(s.numel() for s in scores) * (1 - sparsity))

    def published(_: object) -> list[Tensor]:
        flat = torch.cat([s.reshape(-1) for s in scores])
        chosen = torch.topk(flat, live).indices
        mask = torch.zeros_like(flat).scatter_(0, chosen, torch.ones_like(flat[:live]))
        return list(mask.split([s.numel() for s in scores]))

    def fused(backend: str) -> object:
        return sk.mask_topk(scores, live, backend=backend)

    # three histogram passes, one that writes; keys of 16-bit scores have 32 bits too
    return Case("mask_topk 5 %", 4 * data.size + 0.125, fused, (published,), graphs=())


def two_of_four(data: Data) -> Case:
    """2:4 by magnitude; published: reshape, sorted top-k of every group, scatter."""
    scores = data.grads

    def published(_: object) -> list[Tensor]:
        masks = []
        for s in scores:
            groups = s.abs().reshape(-1, 4)
            masks.append(torch.zeros_like(groups).scatter_(1, groups.topk(2).indices, 1.0))
        return masks

    def fused(backend: str) -> object:
        return sk.mask_nm(scores, 2, 4, kind="abs", backend=backend)

    return Case("mask_nm 2:4", data.size + 0.125, fused, (published,), graphs=())


def drop_grow(data: Data, sparsity: float = 0.5, rate: float = 0.5) -> Case:
    """SSAM-D's exchange: drop by gradient, grow at random; published: two sorted top-k."""
    numel = sum(p.numel() for p in data.params)
    mask: BitMask = RandomMask().compute(data.params, sparsity)
    live = numel - int(numel * sparsity + 0.5)
    moved = int(live * rate + 0.5)
    bools = torch.cat([m.reshape(-1) for m in mask.to_bool()])

    def published(_: object) -> Tensor:
        flat = torch.cat([g.abs().reshape(-1) for g in data.grads])
        kept = torch.topk((flat + 1e-7) * bools, live - moved).indices
        grown = torch.topk(torch.rand_like(flat) * ~bools, moved).indices
        new = torch.zeros_like(flat)
        return new.scatter_(0, kept, 1.0).scatter_(0, grown, 1.0)

    def fused(backend: str) -> object:
        return sk.mask_dropgrow(
            mask.words, live, moved, data.grads, data.params, grow_kind="random", grow_key=3,
            backend=backend,
        )  # fmt: skip

    # four readings of the gradient; random numbers cost no memory; bits eight times and twice out
    return Case("mask_dropgrow", 4 * data.size + 1.25, fused, (published,), graphs=())


def all_cases(data: Data) -> list[Callable[[], Case]]:
    """Cases to be made one at a time: each holds several copies of the parameters."""
    shaped = _as_matrices(data)
    steps: list[Callable[[], Case]] = [
        lambda: sam_step(data, "sgd"),
        lambda: sam_step(data, "sgd", adaptive=True),
        lambda: sam_step(data, "adamw"),
        *(lambda kind=kind: ssam_step(shaped, kind) for kind in MASKS),  # type: ignore[misc]
        lambda: ssam_step(shaped, MASKS[0], check=True),
    ]
    return [*steps, lambda: top_k(data), lambda: two_of_four(shaped), lambda: drop_grow(data)]
