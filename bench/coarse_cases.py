"""Coarse steps of a multilevel cycle, part of ``--suite bregman``.

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

from .cases import Case, Data, Make, Pass, Touched, per_backend

LAM, DENSITY = 0.5, 0.05
FOREVER = 10**9  # coarse steps: the phase does not end while it is timed


def row_length(data: Data) -> int:
    """About as many columns as rows."""
    return 2 ** max(math.isqrt(data.params[0].numel()).bit_length() - 1, 0)


def live_duals(data: Data, rows: int | None) -> list[Tensor]:
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
    cols = row_length(data) if rows else 1
    flat = [t[: t.numel() // cols * cols] for t in data.params]
    duals = live_duals(data, cols if rows else None)
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
    # an active entry's states, and 4 bytes that say where it is
    own_states = (DENSITY * data.state_size,) * states
    index = () if rows else (DENSITY * 4.0,)
    if form == "active gradient":
        step_pass = Pass((DENSITY * data.size, *index), own_states, (DENSITY * data.size,))
    elif rows:
        step_pass = Pass((DENSITY * data.size,), own_states, (DENSITY * data.size,))
    else:  # scattered in gradient and parameter: whole lines, and a line is read to change a part
        lines = Touched(DENSITY, data.size)
        step_pass = Pass((lines, *index), (*own_states, lines))
    kind = ("adabreg" if adam else "linbreg") + (" momentum" if "momentum" in options else "")
    where = "rows" if rows else form
    return Case(
        f"coarse {kind}, {where}", (step_pass,), lambda backend: step(backend)(), (eager,),
        dense=dense,
    )  # fmt: skip


def refresh(data: Data) -> Case:
    """What begins a coarse phase: the active set, its index, and copies of the state."""
    duals = live_duals(data, None)

    def fused(backend: str) -> object:
        words = sk.live_mask(duals, LAM, backend=backend)
        index = sk.mask_index(words, backend=backend)
        return sk.gather_entries(duals, index, backend=backend)

    def eager(_: object) -> list[Tensor]:
        index = [(v.abs() > LAM).nonzero().squeeze(1) for v in duals]
        return [v[i] for v, i in zip(duals, index, strict=True)]

    entries, dual = DENSITY * 4.0, data.state_size
    passes = (
        Pass((dual,), write=(0.125,)),
        Pass((0.125,), write=(entries,)),
        Pass((entries, Touched(DENSITY, dual)), write=(DENSITY * dual,)),
    )
    return Case("active set and copies", passes, fused, (eager,), graphs=())


def all_cases(data: Data) -> list[Make]:
    """The active set first: it begins a phase."""
    steps: list[Make] = [
        lambda cls=cls, options=options, form=form: coarse(data, cls, options, form)  # type: ignore[misc]
        for cls, options in ((LinBreg, {}), (LinBreg, {"momentum": 0.9}), (AdaBreg, {}))
        for form in ("dense gradient", "active gradient")
    ]
    return [lambda: refresh(data), *steps, lambda: coarse(data, LinBreg, {}, "", rows=True)]
