"""``--suite bregman``: Bregman steps of every kind, and coarse steps of a multilevel cycle.

Steps are one call of the fused operations (two with groups: dual step, group readout). Beside them
the published code in eager PyTorch (TimRoith/BregmanLearning: dual step, regulariser's prox, count
of the nonzeros) and torch.compile of the same mathematics.

A coarse step goes through ``LinBreg`` or ``AdaBreg`` in mid-phase, with 5 % of the weights active:
scattered entries or whole rows. "dense gradient" reads ``p.grad`` and writes the parameter where
entries are active, as in a training loop with dense layers; "active gradient" is given the
gradients of the active entries and leaves the parameter to ``active_values``, as a sparse layer
wants it. Its own baseline is the fused step of all entries (column "x dense"); the eager side masks
the dense gradient, as the published prototype does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sparse_optim import AdaBreg, LinBreg
from sparse_optim._bregman import BregmanOptimizer
from torch import Tensor, nn

import sparse_kernels as sk

from .cases import Case, Data, adabreg, linbreg, linbreg_momentum, per_backend

LR, LAM, DENSITY = 1e-3, 0.5, 0.05
FOREVER = 10**9  # coarse steps: the phase does not end while it is timed


def _matrices(tensors: list[Tensor], cols: int) -> list[Tensor]:
    """Views as matrices; what does not fill a row is left out."""
    return [t[: t.numel() // cols * cols].view(-1, cols) for t in tensors]


def _row_length(data: Data) -> int:
    """About as many columns as rows."""
    return 2 ** max(math.isqrt(data.params[0].numel()).bit_length() - 1, 0)


# steps on all entries -----------------------------------------------------------------------------


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

    return Case("linbreg l1_pos", 8 + 2 * data.size, fused, (eager,))


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

    return Case("proxsgd momentum", 8 + 3 * data.size, fused, (eager,))


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

    # g, v, v; v, p
    return Case(f"linbreg {what}", 12 + data.size + data.size, fused, (eager,))


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

    return Case(f"prox_group {what}", 4 + data.size, fused, (eager,))


# coarse steps -------------------------------------------------------------------------------------


def _live_duals(data: Data, rows: int | None) -> list[Tensor]:
    """Duals of which a share of DENSITY is beyond LAM: entries, or whole rows of that length."""
    generator = torch.Generator(data.params[0].device).manual_seed(2)
    made = []
    for p in data.params:
        units = p.numel() if rows is None else p.numel() // rows
        chosen = torch.rand(units, generator=generator, device=p.device) < DENSITY
        alive = chosen if rows is None else chosen.repeat_interleave(rows)
        v = torch.rand(p.numel(), generator=generator, device=p.device) * LAM
        v[: alive.numel()][alive] += 2.0
        made.append(v)
    return made


def coarse(data: Data, cls: type, options: dict[str, Any], form: str, rows: bool = False) -> Case:
    """One step inside a coarse phase; ``form`` is "dense gradient" or "active gradient"."""
    cols = _row_length(data) if rows else 1
    flat = [t[: t.numel() // cols * cols] for t in data.params]
    duals = _live_duals(data, cols if rows else None)
    grads = [g[: p.numel()] for g, p in zip(data.grads, flat, strict=True)]
    adam = cls is AdaBreg
    states = 3 if adam else 1 + ("momentum" in options)

    def make(backend: str) -> Callable[[], None]:
        params = [nn.Parameter(p.view(-1, cols) if rows else p) for p in flat]
        reg = {"reg": "l1_l2", "groups": "rows"} if rows else {"reg": "l1"}
        opt: BregmanOptimizer = cls(
            params, lr=1e-7, lam=LAM, coarse_steps=FOREVER, backend=backend, **reg, **options
        )
        opt.init_dual()
        for p, g, v in zip(params, grads, duals, strict=True):
            p.grad = g.view(p.shape)
            opt.state[p]["dual"].copy_(v[: p.numel()].view(p.shape))
        opt.step()
        if form == "dense gradient":
            return opt.step
        opt.writes_params = False
        given = [opt.active_values(p).clone() for p in params]

        def step() -> None:
            for p, values in zip(params, given, strict=True):
                opt.set_active_gradient(p, values)
            opt.step()

        return step

    own = [v.clone() for v in duals]
    moments = [[torch.zeros_like(v) for v in duals] for _ in range(states - 1)]
    masks = [(v > LAM).to(v.dtype) for v in duals]

    def dense(backend: str) -> object:
        if adam:
            return sk.adabreg_step_(
                data.params, data.grads, own, *moments, 1e-7, LAM, step=10, backend=backend
            )
        buffers = moments[0] if moments else None
        return sk.linbreg_step_(
            data.params, data.grads, own, 1e-7, LAM, 1.0, options.get("momentum", 0.0), buffers,
            backend=backend,
        )  # fmt: skip

    def eager(_: object) -> None:
        for i, (p, g, v, m) in enumerate(zip(data.params, data.grads, own, masks, strict=True)):
            d = g * m
            if adam:
                a, u = moments[0][i], moments[1][i]
                a.mul_(0.9).add_(d, alpha=0.1)
                u.mul_(0.999).addcmul_(d, d, value=0.001)
                d = a / (u.sqrt() + 1e-8)
            elif moments:
                moments[0][i].mul_(options["momentum"]).add_(d)
                d = moments[0][i]
            v.sub_(d, alpha=1e-7)
            p.copy_(torch.sign(v) * torch.clamp(torch.abs(v) - LAM, min=0.0))

    step = per_backend(make)
    # of an active entry: its gradient, parameter and states; and 4 bytes that say where it is
    moved = 2 * data.size + 8 * states + (0 if rows else 4)
    kind = ("adabreg" if adam else "linbreg") + (" momentum" if "momentum" in options else "")
    where = "rows" if rows else form
    return Case(
        f"coarse {kind}, {where}", DENSITY * moved, lambda backend: step(backend)(), (eager,),
        dense=dense,
    )  # fmt: skip


def refresh(data: Data) -> Case:
    """What begins a coarse phase: the active set, its index, and copies of the state."""
    duals = _live_duals(data, None)

    def fused(backend: str) -> object:
        words = sk.live_mask(duals, LAM, backend=backend)
        index = sk.mask_index(words, backend=backend)
        return sk.gather_entries(duals, index, backend=backend)

    def eager(_: object) -> list[Tensor]:
        index = [(v.abs() > LAM).nonzero().squeeze(1) for v in duals]
        return [v[i] for v, i in zip(duals, index, strict=True)]

    # v, bits; bits, index; index, v, copy
    moved = 4 + 0.125 + 0.125 + DENSITY * (4 + 4 + 4 + 4)
    return Case("active set and copies", moved, fused, (eager,), graphs=())


def all_cases(data: Data) -> list[Callable[[], Case]]:
    """Cases to be made one at a time: some hold copies of the parameters."""
    cols = _row_length(data)
    steps: list[Callable[[], Case]] = [
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
    if data.size < 4:
        return steps
    momentum = {"momentum": 0.9}
    coarse_steps: list[Callable[[], Case]] = [
        lambda cls=cls, options=options, form=form: coarse(data, cls, options, form)  # type: ignore[misc]
        for cls, options in ((LinBreg, {}), (LinBreg, momentum), (AdaBreg, {}))
        for form in ("dense gradient", "active gradient")
    ]
    by_rows = (lambda: coarse(data, LinBreg, {}, "", rows=True),)
    return [*steps, lambda: refresh(data), *coarse_steps, *by_rows]
