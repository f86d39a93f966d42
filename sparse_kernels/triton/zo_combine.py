"""zo_combine_ and its read-only twins: sums of random directions, regenerated in registers.

    s = sum_k coef[k] z_k  (from 0, one fma per direction, k ascending)
    zo_combine_: tensor <- alpha src + gamma s where the mask bit is 1, one rounding on store
    zo_norm2: sum s^2;   zo_gram: <m z_j, m z_k>

Source: ZO-SAM, arXiv 2603.13115; MeZO, arXiv 2305.17333, algorithm 1. Twins:
reference/zo_combine.py, csrc/functors/zo_combine.h. Rademacher results and sums have equal bits;
normals are those of philox.py, also with ``math`` "fast".
"""

import torch
from torch import Tensor

from ._backup import packed_size
from ._directions import _zo_combine_kernel, _zo_gram_kernel, _zo_norm2_kernel
from ._launch import (
    CHUNK_SIZE,
    LANES,
    TILE,
    address_table,
    int64_table,
    launch,
    make_plan,
    storage_type,
    sum_in_order,
)

# Elements a program has in registers at a time. A Philox call serves 128 signs and every thread
# takes part in one, so signs want more elements a thread, if no mask or backup needs registers;
# places in a packed tensor need registers, and so do normals that may be those of two calls, or
# that a mask joins with what is there.
_BLOCK, _SIGN_BLOCK, _SMALL_BLOCK = 2048, 4096, 1024


def _stream(
    device: torch.device,
    key: Tensor,
    directions: Tensor | None,
    first_direction: int,
    uids: list[int],
    firsts: list[int],
) -> tuple:
    """Kernel arguments that name the random numbers, from ``key_ptr`` on."""
    # as a signed 32-bit word, so that every first direction has the same argument type
    first = first_direction - 2**32 if first_direction >= 2**31 else first_direction
    if directions is not None:
        directions = directions.contiguous()
    # tensors that start at 0 alone have no table: their blocks are the counter's
    starts = int64_table(tuple(firsts), device) if firsts else None
    return key, directions, first, int64_table(tuple(uids), device), starts


def zo_combine_triton(
    tensors: list[Tensor],
    src: list[Tensor],
    coef: Tensor,
    key: Tensor,
    directions: Tensor | None,
    first_direction: int,
    uids: list[int],
    firsts: list[int],
    distribution: str,
    rounds: int,
    math: str,
    masks: list[Tensor],
    backup: list[Tensor],
    ranks: list[Tensor],
    alpha: Tensor | None,
    gamma: Tensor | None,
    sumsq: Tensor | None,
) -> None:
    """Combine in place, one launch for the list; with ``sumsq`` one more that adds the chunks."""
    device, signs = tensors[0].device, distribution == "rademacher"
    plan = make_plan(tensors, TILE if sumsq is None else CHUNK_SIZE)
    if plan.programs == 0:
        if sumsq is not None:
            sumsq.zero_()
        return
    size, partials = TILE, None
    block = _SIGN_BLOCK if signs and not (masks or backup) else _BLOCK
    if ranks or (not signs and (firsts or (masks and not src))):
        block = _SMALL_BLOCK
    if sumsq is not None:
        size, block = CHUNK_SIZE, LANES
        partials = torch.empty((1, plan.programs), dtype=torch.float32, device=device)
    launch(
        _zo_combine_kernel, (plan.programs,), device,
        address_table(tensors), address_table(src), address_table(masks), address_table(backup),
        address_table(ranks), packed_size(backup or src, ranks), plan.rows, plan.numels,
        coef.contiguous(), coef.numel(),
        *_stream(device, key, directions, first_direction, uids, firsts),
        None if alpha is None else alpha.contiguous(),
        None if gamma is None else gamma.contiguous(), partials,
        TYPE=storage_type(tensors[0].dtype), SRC_TYPE=storage_type((src or tensors)[0].dtype),
        HAS_SRC=bool(src), HAS_MASK=bool(masks), HAS_BACKUP=bool(backup), PACKED=bool(ranks),
        HAS_ALPHA=alpha is not None, HAS_GAMMA=gamma is not None,
        SUMSQ=sumsq is not None, SIGNS=signs, ROUNDS=rounds,
        SIZE=size, BLOCK=block, num_warps=8 if sumsq is None else 16,
        # with fewer, sums beside places in a packed tensor or normals of two calls would spill
        maxnreg=80 if sumsq is not None and (ranks or (firsts and not signs)) else 64,
    )  # fmt: skip
    if sumsq is not None and partials is not None:
        sum_in_order(partials, sumsq)


def zo_norm2_triton(
    tensors: list[Tensor],
    coef: Tensor,
    key: Tensor,
    directions: Tensor | None,
    first_direction: int,
    uids: list[int],
    firsts: list[int],
    distribution: str,
    rounds: int,
    math: str,
    masks: list[Tensor],
) -> Tensor:
    """Sum of the squared combination, float64 0-dim; no tensor is read."""
    device = tensors[0].device
    out = torch.zeros((), dtype=torch.float64, device=device)
    plan = make_plan(tensors, CHUNK_SIZE)
    if plan.programs == 0:
        return out
    signs = distribution == "rademacher"
    partials = torch.empty((1, plan.programs), dtype=torch.float32, device=device)
    launch(
        _zo_norm2_kernel, (plan.programs,), device,
        address_table(masks), plan.rows, plan.numels, coef.contiguous(), coef.numel(),
        *_stream(device, key, directions, first_direction, uids, firsts), partials,
        HAS_MASK=bool(masks), SIGNS=signs, ROUNDS=rounds, num_warps=16,
        maxnreg=80 if firsts and not signs else 64,
    )  # fmt: skip
    sum_in_order(partials, out)
    return out


def zo_gram_triton(
    tensors: list[Tensor],
    q: int,
    key: Tensor,
    directions: Tensor | None,
    first_direction: int,
    uids: list[int],
    firsts: list[int],
    distribution: str,
    rounds: int,
    math: str,
    masks: list[Tensor],
) -> Tensor:
    """Gram matrix of the directions, float64 [q, q]; no tensor is read."""
    device = tensors[0].device
    out = torch.zeros((q, q), dtype=torch.float64, device=device)
    plan = make_plan(tensors, CHUNK_SIZE)
    if plan.programs == 0:
        return out
    partials = torch.empty((q * q, plan.programs), dtype=torch.float32, device=device)
    launch(
        _zo_gram_kernel, (plan.programs, q, q), device,
        address_table(masks), plan.rows, plan.numels, q,
        *_stream(device, key, directions, first_direction, uids, firsts), partials,
        HAS_MASK=bool(masks), SIGNS=distribution == "rademacher", ROUNDS=rounds, num_warps=16,
    )  # fmt: skip
    sum_in_order(partials, out)
    return out
