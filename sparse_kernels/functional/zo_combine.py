"""Sums of random directions, regenerated from a counter-based stream and never stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._check import (
    ListArg,
    bump_versions,
    check_lists,
    grouped,
    opmath_dtype,
)
from .._group import checked_by_kernel
from ..reference.philox import derive_key
from ._backup import BackupArgs
from ._scalars import Numbers, numbers_of
from ._zo_stream import check_coef, check_per_tensor, check_stream

__all__ = ["derive_key", "zo_combine_", "zo_gram", "zo_norm2"]


def _check_sumsq(op: str, sumsq: Tensor, tensors: Sequence[Tensor]) -> None:
    if sumsq.dtype != torch.float64 or sumsq.numel() != 1:
        raise ValueError(f"{op}: sumsq must be a float64 tensor with one element")
    if len({(t.device, t.dtype) for t in tensors}) > 1:
        raise ValueError(f"{op}: sumsq needs all tensors on one device and of one dtype")
    if tensors and sumsq.device != tensors[0].device:
        raise ValueError(f"{op}: sumsq is on {sumsq.device}, tensors[0] is on {tensors[0].device}")
    if torch.is_grad_enabled() and sumsq.requires_grad:
        raise ValueError(f"{op}: sumsq requires grad; call under torch.no_grad() to modify it")


@checked_by_kernel
def zo_combine_(
    tensors: Sequence[Tensor],
    coef: Numbers,
    *,
    seed: int | Tensor,
    directions: Sequence[int] | Tensor | None = None,
    uids: Sequence[int] | None = None,
    firsts: Sequence[int] | None = None,
    distribution: str = "normal",
    rounds: int = 10,
    rng_math: str = "portable",
    src: Sequence[Tensor] | Tensor | None = None,
    mask: Sequence[Tensor] | None = None,
    backup: Sequence[Tensor] | Tensor | None = None,
    ranks: Sequence[Tensor] | None = None,
    sumsq: Tensor | None = None,
    alpha: float | Numbers | None = None,
    gamma: float | Numbers | None = None,
    backend: str | None = None,
) -> None:
    """Add a sum of random directions to a list of tensors, in one pass for any number of them.

    ``tensors[n] = alpha * src[n] + gamma * sum_k coef[k] * z(seed, directions[k], uid, n)`` where
    the mask bit is 1. The z are drawn anew from a counter-based stream and never stored; n is the
    row-major index in the tensor's shape, whatever its strides.

    Args:
        tensors: destination (mutated); float32, bfloat16, float16 or float64.
        coef: q finite coefficients, a tensor (read on the device) or numbers.
        seed: 64-bit stream key, an int or an int64 tensor with one element (its bits).
        directions: q direction numbers in [0, 2^32 - 1); default 0 ... q - 1.
        uids: parameter number of each tensor, in [0, 2^32); default the list positions.
        firsts: index in its parameter of each tensor's first element, in [0, 2^62): the tensors are
            shards, contiguous in row-major order; default 0.
        distribution: "normal" or "rademacher" (+1 or -1).
        rounds: Philox rounds, 10 or 7 (another stream).
        rng_math: "portable", or "fast": the cuda backend may take the hardware's approximate
            functions for normals, which have other bits and errors that have not been measured.
            Others draw portable normals.
        src: tensors like ``tensors``, or float32 ones under 16-bit ``tensors``, that the sum is
            added to; default ``tensors`` themselves. With ``ranks`` the packed tensor of a backup.
        mask: int32 bit masks (``pack_mask``); entries with bit 0 keep their bits.
        backup: tensors like ``tensors`` (mutated): their original bits, written in the same pass.
            With ``ranks`` one flat tensor (mutated) of the tensors' dtype that takes the entries
            with bit 1 alone.
        ranks: where each mask's entries stand in a packed ``src`` or ``backup`` (``mask_ranks``);
            one of the two is then given, and all tensors are of one dtype and device.
        sumsq: float64 tensor with one element (mutated): sum over the masked entries of the squared
            direction sum, before gamma and before rounding. One device and dtype only.
        alpha: factor on ``src``, a number or one per tensor; default 1.
        gamma: factor on the sum, a number or one per tensor; default 1.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: lists do not fit, a stream argument is out of range, a tensor requires grad.
        BackendUnavailableError: the backend asked for is not there.

    Note:
        Words and Rademacher results are bit-equal on every backend; normals of cpp and cuda agree
        bit by bit and lie within 4 ulp of the reference. No result depends on launch shape, list
        order (uids fixed), chunking or thread count. The global random state is not touched.

    Source: ZO-SAM, arXiv 2603.13115; MeZO, arXiv 2305.17333, algorithm 1; Philox, SC11.

    Example:
        >>> w = torch.zeros(4)
        >>> zo_combine_([w], [0.5], seed=7, distribution="rademacher")
        >>> w.abs()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    op = "zo_combine_"
    packed_src = ranks is not None and src is not None
    if packed_src and backup is not None:
        raise ValueError(f"{op}: with ranks, give src or backup, not both")
    args = [ListArg("tensors", tensors, mutated=True)]
    if packed_src:
        kept = BackupArgs(
            op, mask, src, ranks, mutated=False, optional=False, names=("mask", "src")
        )
    else:
        names = ("mask", "backup")
        kept = BackupArgs(op, mask, backup, ranks, mutated=True, optional=True, names=names)
        args.append(ListArg("src", src, kind=_source_kind(tensors, src)))  # type: ignore[arg-type]
    args += kept.lists
    whole = check_lists(op, args)
    kept.check(tensors, "tensors")
    c = check_coef(op, coef)
    count, q = len(tensors), len(c)
    stream = check_stream(
        op, count, q, seed, directions, uids, firsts, distribution, rounds, rng_math
    )
    factors = [check_per_tensor(op, n, v, count) for n, v in (("alpha", alpha), ("gamma", gamma))]
    groups = grouped(op, backend, args, ordered=True, whole=whole)
    if sumsq is not None:
        _check_sumsq(op, sumsq, tensors)
        if not tensors:
            sumsq.zero_()
    every = list(range(q))
    for g in groups:
        math = opmath_dtype(g.dtype)
        words, saved, table = kept.of(g)
        source, saved = (saved, []) if packed_src else (g.lists["src"], saved)
        g.run(
            g.lists["tensors"], source, numbers_of(c, every, math, g.device),
            *stream.on(g.device, g.indices), words, saved, table,
            *(numbers_of(f, g.indices, math, g.device) for f in factors), sumsq,
        )  # fmt: skip
    summed = ListArg("sumsq", None if sumsq is None else [sumsq], mutated=True)
    bump_versions([*args, *kept.mutated_lists(), summed])


def _source_kind(tensors: Sequence[Tensor], src: Sequence[Tensor] | Tensor | None) -> str:
    """Sources have the dtype of the tensors, or all of them that of their arithmetic."""
    if not isinstance(src, (list, tuple)) or not isinstance(tensors, (list, tuple)):
        return "same"
    pairs = zip(tensors, src, strict=False)
    other = any(isinstance(s, Tensor) and s.dtype != getattr(t, "dtype", None) for t, s in pairs)
    return "opmath" if other else "same"


@checked_by_kernel
def zo_norm2(
    tensors: Sequence[Tensor],
    coef: Numbers,
    *,
    seed: int | Tensor,
    directions: Sequence[int] | Tensor | None = None,
    uids: Sequence[int] | None = None,
    firsts: Sequence[int] | None = None,
    distribution: str = "normal",
    rounds: int = 10,
    rng_math: str = "portable",
    mask: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Squared norm of a sum of random directions: ``sum_n (sum_k coef[k] z_k[n])^2``.

    The read-only twin of ``zo_combine_``: no element of ``tensors`` is read or written, only their
    shapes, dtype and device are used. Equal, bit for bit, to the ``sumsq`` of the same combination.

    Args:
        tensors: shapes, dtype (of the arithmetic) and device of the parameters.
        coef, seed, directions, uids, firsts, distribution, rounds, rng_math, mask, backend: as in
            ``zo_combine_``.

    Returns:
        float64 0-dim tensor on the device of ``tensors[0]``; 0 for an empty list.

    Raises:
        ValueError: lists do not fit or a stream argument is out of range.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> zo_norm2([torch.zeros(10)], [2.0], seed=1, distribution="rademacher")
        tensor(40., dtype=torch.float64)
    """
    op = "zo_norm2"
    c = check_coef(op, coef)
    parts = []
    args = [ListArg("tensors", tensors), ListArg("mask", mask, kind="words")]
    whole = check_lists(op, args)
    count, q = len(tensors), len(c)
    stream = check_stream(
        op, count, q, seed, directions, uids, firsts, distribution, rounds, rng_math
    )
    for g in grouped(op, backend, args, ordered=True, whole=whole):
        on_device = numbers_of(c, list(range(q)), opmath_dtype(g.dtype), g.device)
        drawn = stream.on(g.device, g.indices)
        parts.append(g.run(g.lists["tensors"], on_device, *drawn, g.lists["mask"]))
    return _total(parts, torch.zeros((), dtype=torch.float64))


@checked_by_kernel
def zo_gram(
    tensors: Sequence[Tensor],
    num_directions: int,
    *,
    seed: int | Tensor,
    directions: Sequence[int] | Tensor | None = None,
    uids: Sequence[int] | None = None,
    firsts: Sequence[int] | None = None,
    distribution: str = "normal",
    rounds: int = 10,
    rng_math: str = "portable",
    mask: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Gram matrix of random directions: ``G[i, j] = <m * z_i, m * z_j>``.

    Args:
        tensors: shapes and device of the parameters; no element is read.
        num_directions: q, the size of the matrix.
        seed, directions, uids, firsts, distribution, rounds, rng_math, mask, backend: as in
            ``zo_combine_``.

    Returns:
        float64 tensor [q, q], symmetric, on the device of ``tensors[0]``. Rademacher entries are
        exact integers.

    Raises:
        ValueError: lists do not fit or a stream argument is out of range.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> zo_gram([torch.zeros(10)], 1, seed=1, distribution="rademacher")
        tensor([[10.]], dtype=torch.float64)
    """
    op = "zo_gram"
    parts = []
    args = [ListArg("tensors", tensors), ListArg("mask", mask, kind="words")]
    whole = check_lists(op, args)
    q = num_directions
    count = len(tensors)
    stream = check_stream(
        op, count, q, seed, directions, uids, firsts, distribution, rounds, rng_math
    )
    for g in grouped(op, backend, args, ordered=True, whole=whole):
        drawn = stream.on(g.device, g.indices)
        parts.append(g.run(g.lists["tensors"], q, *drawn, g.lists["mask"]))
    return _total(parts, torch.zeros(q, q, dtype=torch.float64))


def _total(parts: list[Tensor], empty: Tensor) -> Tensor:
    total = parts[0] if parts else empty
    for part in parts[1:]:
        total = total + part.to(total.device)
    return total
