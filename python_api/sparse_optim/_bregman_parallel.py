"""Data-parallel Bregman training: ranks agree on the active set, coarse steps reduce it alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._bregman import BregmanOptimizer

_WORD, _HALF = (1 << 64) - 1, (1 << 32) - 1
_MIXERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # of splitmix64, as int64


def _shifted(x: Tensor, k: int) -> Tensor:
    """Right shift without the sign."""
    return (x >> k) & ((1 << (64 - k)) - 1)


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's finaliser: int64 products wrap."""
    x = (x ^ _shifted(x, 30)) * _MIXERS[0]
    x = (x ^ _shifted(x, 27)) * _MIXERS[1]
    return x ^ _shifted(x, 31)


@torch.no_grad()
def active_hash(opt: BregmanOptimizer) -> int:
    """A 64-bit hash of the active sets of all parameters, with the words' places in it.

    Before a coarse step the sets are those that the step works on. Reads the device once per
    device.

    Args:
        opt: ``LinBreg`` or ``AdaBreg``.

    Returns:
        A number in [0, 2^64); 0 where there is no active set.

    Example:
        >>> from sparse_optim import LinBreg
        >>> w = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
        >>> opt = LinBreg([w], reg="l1", lam=0.5, coarse_steps=1)
        >>> opt.init_dual()
        >>> active_hash(opt) == active_hash(opt) != 0
        True
    """
    if opt.next_is_coarse:
        opt._ready_phase()
    sums: dict[torch.device, Tensor] = {}
    first = 0
    for group in opt.param_groups:
        for p in group["params"]:
            words = opt._own.get(p, {}).get("active")
            if words is not None and words.numel():
                place = torch.arange(first, first + words.numel(), device=words.device) << 32
                part = _mixed(_mixed(place) ^ (words.long() & _HALF)).sum()
                sums[p.device] = sums.get(p.device, torch.zeros_like(part)) + part
            first += -(-p.numel() // 32) + 1  # the same for a set that is not there
    return sum(int(s) for s in sums.values()) & _WORD


def check_active(opt: BregmanOptimizer, process_group: Any = None) -> None:
    """Compare the active sets of all ranks: one all-reduce of four numbers.

    Args:
        opt: ``LinBreg`` or ``AdaBreg``.
        process_group: the ranks; None: all.

    Raises:
        RuntimeError: on every rank, if they differ: weights or duals have come apart.
    """
    own = active_hash(opt)
    high, low = own >> 32, own & _HALF
    home = opt.param_groups[0]["params"][0].device
    seen = torch.tensor([high, low, -high, -low], device=home)
    dist.all_reduce(seen, dist.ReduceOp.MAX, group=process_group)
    most_high, most_low, least_high, least_low = seen.tolist()
    if most_high != -least_high or most_low != -least_low:
        raise RuntimeError(
            f"{type(opt).__name__}: the ranks have different active sets; this one's hash is "
            f"{own:#018x}"
        )


@torch.no_grad()
def reduce_gradients_(opt: BregmanOptimizer, process_group: Any = None) -> None:
    """Average the gradients over the ranks before ``step``; before coarse ones, of active entries.

    Of tensors that step on copies of their active entries, those entries' gradients are reduced and
    given to ``set_active_gradient`` (``p.grad`` is then of no meaning: ``opt.mask_grads_`` writes
    into it what the step takes, for clipping). Of all others, and before a full step, ``p.grad`` is
    reduced. One buffer per dtype and device, one all-reduce each. In the first step of a phase
    ``check_active`` comes first.

    Args:
        opt: ``LinBreg``, ``AdaBreg`` or ``ProxSGD``.
        process_group: the ranks; None: all. All of them must have gradients for the same
            parameters.

    Raises:
        RuntimeError: the ranks have different active sets.
    """
    coarse = opt.next_is_coarse
    if coarse:
        opt._ready_phase()
        if opt.steps_taken == 0 or not opt.last_was_coarse:
            check_active(opt, process_group)
    found: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor, bool]]] = {}
    for group in opt.param_groups:
        for p in group["params"]:
            if not opt._active.has_gradient(p):
                continue
            compact = coarse and opt._freezes(group) and opt._active.compacts(p)
            part = opt._active.take_gradients([p], opt._own)[0] if compact else p.grad
            assert part is not None
            found.setdefault((part.dtype, part.device), []).append((p, part, compact))
    for parts in found.values():
        flat = torch.cat([part.reshape(-1) for _, part, _ in parts])
        dist.all_reduce(flat, group=process_group)
        flat /= dist.get_world_size(process_group)
        reduced = flat.split([part.numel() for _, part, _ in parts])
        for (p, part, compact), mean in zip(parts, reduced, strict=True):
            if compact:
                opt.set_active_gradient(p, mean)
            else:
                part.copy_(mean.reshape(part.shape))
