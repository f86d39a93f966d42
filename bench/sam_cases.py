"""``--suite sam``: whole steps of SAM and Sparse SAM without forward and backward, and parts.

A step is the ascent at w and the descent at w + e with the base optimizer's update, through the
package's optimizers, on gradients that stay as they are. Beside it the published code in eager
PyTorch with the same masks (davda54/sam for SAM, the released Sparse SAM code for the others; its
base is torch's own optimizer), and torch.compile of the same mathematics in two graphs, between
which the second backward would lie. Learning rates are tiny, so that values stay where they are.
The operations by themselves are in step_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from sparse_optim import SAM, SSAM, RandomMask
from torch import Tensor, nn
from torch.optim import SGD

from . import step_cases
from .cases import BITS, Case, Data, Make, Pass, Touched, parameters, per_backend
from .step_cases import BASES, RHO, SGD_OPTIONS, base_graph, base_pass


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


def sam_step(data: Data, base: str, adaptive: bool = False) -> Case:
    """SAM or adaptive SAM around a base optimizer; the published code swaps tensors to restore."""
    base_cls, options, _ = BASES[base]
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
    norm, ascent = (
        Pass((data.size,) * (1 + adaptive)),
        Pass((data.size,), (data.size,), (data.size,)),
    )
    return Case(
        f"{'asam' if adaptive else 'sam'} + {base}",
        (norm, ascent, base_pass(base, data.size)),
        _both_steps(optimizer),
        (ascend, descend),
        graphs=(ascend_graph, descend_graph),
        whole_step=True,
        target=8 if base == "sgd" and not adaptive else None,
    )


@dataclass(frozen=True)
class Masked:
    """A kind of mask, and what of a step it leaves in memory.

    Attributes:
        label: of the row.
        sparsity: fraction that is not perturbed.
        pattern: as for ``SSAM``.
        run: entries that are dead or live together, if those are whole cache lines: then dead ones
            cost nothing.
    """

    label: str
    sparsity: float
    pattern: str = "unstructured"
    run: int = 1

    def passes(self, size: int) -> tuple[Pass, ...]:
        """Of a step with SGD and momentum: norm, ascent with packed backup, base step.

        Live entries come from the backup; of dead ones a block leaves nothing to read or write in
        the ascent, and the base step finds them in the parameter.
        """
        density = 1.0 - self.sparsity
        live = density * size
        lines = Touched(density, size, self.run)
        ascent = Pass((lines, BITS), (lines,), (live,))
        if self.run > 1:
            base = Pass((size, live, BITS), (size, size - live), (live,))
        else:
            base = Pass((size, live, BITS), (size, size))
        return Pass((size,)), ascent, base


MASKS = (
    Masked("ssam 50 %", 0.5),
    Masked("ssam 90 %", 0.9),
    Masked("ssam 2:4", 0.5, "2:4"),
    Masked("ssam rows 90 %", 0.9, "row", run=1000),
)


def as_matrices(data: Data) -> Data:
    """The same memory as matrices of about 1,000 columns where that divides, for rows and n:m."""
    size = data.params[0].numel()
    cols = next((c for c in (1000, 1024, 512, 100, 64, 8) if size % c == 0), None)
    if cols is None:
        raise ValueError(f"suites sam and masks need --elements that 8 divides, got {size}")

    def shaped(tensors: list[Tensor]) -> list[Tensor]:
        return [t.view(-1, cols) for t in tensors]

    states = [shaped(s) for s in data.states]
    return Data(shaped(data.params), shaped(data.grads), states, data.size, data.name)


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

    look = (Pass((data.size,)),) * check
    return Case(
        kind.label + (" checked" if check else ""),
        (*look, *kind.passes(data.size)),
        _both_steps(per_backend(make)),
        (ascend, descend),
        graphs=(ascend_graph, descend_graph),
        whole_step=True,
    )


def all_cases(data: Data) -> list[Make]:
    """Cases to be made one at a time: each holds several copies of the parameters."""
    shaped = as_matrices(data)
    return [
        lambda: sam_step(data, "sgd"),
        lambda: sam_step(data, "sgd", adaptive=True),
        lambda: sam_step(data, "adamw"),
        *(lambda kind=kind: ssam_step(shaped, kind) for kind in MASKS),  # type: ignore[misc]
        lambda: ssam_step(shaped, MASKS[0], check=True),
        *step_cases.all_cases(data),
    ]
