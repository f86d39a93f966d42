"""``--suite masks``: bit masks, selection, and copies of the entries of a support.

The eager side keeps what published code keeps: bool or float masks, sorted top-k with int64
indices, ``nonzero`` and advanced indexing. Packing to bits has no published counterpart; its eager
side is the shortest torch code that makes the same words. Selections (``mask_topk``,
``kth_largest``, ``mask_dropgrow``) have no promise against the roof: their histograms bind.
"""

from __future__ import annotations

import torch
from sparse_optim import BitMask, RandomMask
from torch import Tensor

import sparse_kernels as sk

from .cases import BITS, Case, Data, Make, Pass, Touched
from .coarse_cases import DENSITY, LAM, live_duals
from .sam_cases import as_matrices


def random_bools(data: Data, density: float = 0.5) -> list[Tensor]:
    device = data.params[0].device
    generator = torch.Generator(device).manual_seed(1)
    return [torch.rand(p.shape, generator=generator, device=device) < density for p in data.params]


def pack(data: Data) -> Case:
    bools = random_bools(data)
    weights = (1 << torch.arange(32, device=bools[0].device)).to(torch.int32)

    def eager(_: object) -> list[Tensor]:
        made = []
        for m in bools:
            bits = torch.nn.functional.pad(m.view(-1), (0, -m.numel() % 32)).view(-1, 32)
            made.append((bits * weights).sum(1, dtype=torch.int32))
        return made

    def fused(backend: str) -> object:
        return sk.pack_mask(bools, backend=backend)

    return Case("pack_mask", (Pass((1,), write=(BITS,)),), fused, (eager,))


def unpack(data: Data) -> Case:
    bools = random_bools(data)
    words, shapes = sk.pack_mask(bools), [m.shape for m in bools]
    places = torch.arange(32, device=bools[0].device, dtype=torch.int32)

    def eager(_: object) -> list[Tensor]:
        return [
            ((w[:, None] >> places) & 1).bool().view(-1)[: s.numel()].view(s)
            for w, s in zip(words, shapes, strict=True)
        ]

    def fused(backend: str) -> object:
        return sk.unpack_mask(words, shapes, backend=backend)

    return Case("unpack_mask", (Pass((BITS,), write=(1,)),), fused, (eager,))


def count(data: Data) -> Case:
    bools = random_bools(data)
    words = sk.pack_mask(bools)

    def eager(_: object) -> list[Tensor]:
        return [torch.count_nonzero(m) for m in bools]

    def fused(backend: str) -> object:
        return sk.count_ones(words, backend=backend)

    return Case("count_ones", (Pass((BITS,)),), fused, (eager,), graphs=())


def ranks(data: Data) -> Case:
    """Where packed entries stand; published code keeps them unpacked, so nothing is beside it."""
    words = sk.pack_mask(random_bools(data))

    def fused(backend: str) -> object:
        return sk.mask_ranks(words, backend=backend)

    return Case("mask_ranks", (Pass((BITS,), write=(8 / 8192,)),), fused, ())


def apply(data: Data) -> Case:
    bools = random_bools(data)
    words, floats = sk.pack_mask(bools), [m.to(data.params[0].dtype) for m in bools]
    tensors = [p.clone() for p in data.params]

    def eager(_: object) -> None:
        for t, m in zip(tensors, floats, strict=True):
            t.mul_(m)

    def fused(backend: str) -> None:
        sk.mask_apply_(tensors, words, backend=backend)

    passes = (Pass((BITS,), (Touched(0.5, data.size),)),)
    return Case("mask_apply 50 %", passes, fused, (eager,))


# selection ----------------------------------------------------------------------------------------


def top_k(data: Data, density: float = DENSITY) -> Case:
    """The largest 5 % of a score; published: concatenate, sorted top-k, zeros, scatter."""
    scores = [g.abs() for g in data.grads]
    live = round(data.elements * density)

    def published(_: object) -> list[Tensor]:
        flat = torch.cat([s.reshape(-1) for s in scores])
        chosen = torch.topk(flat, live).indices
        mask = torch.zeros_like(flat).scatter_(0, chosen, torch.ones_like(flat[:live]))
        return list(mask.split([s.numel() for s in scores]))

    def fused(backend: str) -> object:
        return sk.mask_topk(scores, live, backend=backend)

    # three histogram passes, one that writes; keys of 16-bit scores have 32 bits too
    passes = (*(Pass((data.size,)),) * 3, Pass((data.size,), write=(BITS,)))
    return Case("mask_topk 5 %", passes, fused, (published,), percent=None, graphs=())


def kth(data: Data, density: float = DENSITY) -> Case:
    """The threshold of the same selection; eager: a sorted top-k."""
    scores = [g.abs() for g in data.grads]
    live = round(data.elements * density)

    def eager(_: object) -> Tensor:
        return torch.topk(torch.cat([s.reshape(-1) for s in scores]), live).values[-1]

    def fused(backend: str) -> object:
        return sk.kth_largest(scores, live, backend=backend)

    passes = (Pass((data.size,)),) * 3
    return Case("kth_largest 5 %", passes, fused, (eager,), percent=None, graphs=())


def two_of_four(data: Data, axis: str) -> Case:
    """2:4 by magnitude; published: reshape, sorted top-k of every group, scatter."""
    scores = data.grads

    def published(_: object) -> list[Tensor]:
        masks = []
        for s in scores:
            groups = (s if axis == "in" else s.t()).abs().reshape(-1, 4)
            masks.append(torch.zeros_like(groups).scatter_(1, groups.topk(2).indices, 1.0))
        return masks

    def fused(backend: str) -> object:
        return sk.mask_nm(scores, 2, 4, axis, kind="abs", backend=backend)

    along = {"in": "rows", "out": "columns"}[axis]
    passes = (Pass((data.size,), write=(BITS,)),)
    return Case(f"mask_nm 2:4 along {along}", passes, fused, (published,), graphs=())


def drop_grow(data: Data, sparsity: float = 0.5, rate: float = 0.5) -> Case:
    """SSAM-D's exchange: drop by gradient, grow at random; published: two sorted top-k."""
    mask: BitMask = RandomMask().compute(data.params, sparsity)
    live = data.elements - int(data.elements * sparsity + 0.5)
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

    # two selections under a mask; random scores cost no memory
    drop, grow = Pass((data.size, BITS)), Pass((BITS,))
    passes = (
        *(drop,) * 3, Pass(drop.read, write=(BITS,)), *(grow,) * 3, Pass(grow.read, write=(BITS,))
    )  # fmt: skip
    return Case("mask_dropgrow", passes, fused, (published,), percent=None, graphs=())


# supports -----------------------------------------------------------------------------------------


def live(data: Data) -> Case:
    duals = live_duals(data, None)

    def eager(_: object) -> list[Tensor]:
        return [v.abs() > LAM for v in duals]

    def fused(backend: str) -> object:
        return sk.live_mask(duals, LAM, backend=backend)

    return Case("live_mask", (Pass((4,), write=(BITS,)),), fused, (eager,))


def index(data: Data) -> Case:
    bools = random_bools(data, DENSITY)
    words = sk.pack_mask(bools)

    def eager(_: object) -> list[Tensor]:
        return [m.view(-1).nonzero().squeeze(1) for m in bools]

    def fused(backend: str) -> object:
        return sk.mask_index(words, backend=backend)

    passes = (Pass((BITS,), write=(4 * DENSITY,)),)
    return Case("mask_index 5 %", passes, fused, (eager,), graphs=())


def entries(data: Data, scatter: bool) -> Case:
    """Copies of 5 % scattered entries; the dense side costs the cache lines they lie in."""
    tensors = [p.clone().view(-1) for p in data.params]
    chosen = sk.mask_index(sk.pack_mask(random_bools(data, DENSITY)))
    wide = [c.long() for c in chosen]
    values = sk.gather_entries(tensors, chosen)

    def gather(_: object) -> list[Tensor]:
        return [t[i] for t, i in zip(tensors, wide, strict=True)]

    def put(_: object) -> None:
        for t, i, v in zip(tensors, wide, values, strict=True):
            t[i] = v

    def fused(backend: str) -> object:
        if scatter:
            return sk.scatter_entries_(tensors, chosen, values, backend=backend)
        return sk.gather_entries(tensors, chosen, out=values, backend=backend)

    numbers, packed, lines = 4 * DENSITY, data.size * DENSITY, Touched(DENSITY, data.size)
    if scatter:
        return Case("scatter_entries 5 %", (Pass((numbers, packed), (lines,)),), fused, (put,))
    return Case("gather_entries 5 %", (Pass((numbers, lines), write=(packed,)),), fused, (gather,))


def all_cases(data: Data) -> list[Make]:
    """Cases to be made one at a time: some hold copies of the parameters."""
    shaped = as_matrices(data)
    return [
        lambda: pack(data),
        lambda: unpack(data),
        lambda: count(data),
        lambda: ranks(data),
        lambda: apply(data),
        lambda: top_k(data),
        lambda: kth(data),
        lambda: two_of_four(shaped, "in"),
        lambda: two_of_four(shaped, "out"),
        lambda: drop_grow(data),
        lambda: live(data),
        lambda: index(data),
        lambda: entries(data, scatter=False),
        lambda: entries(data, scatter=True),
    ]
