"""Sums of random directions, regenerated from a counter-based stream and never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._check import ListArg, bump_versions, check_lists, grouped, opmath_dtype
from ..reference import philox
from ..reference.philox import derive_key

__all__ = ["derive_key", "zo_combine_", "zo_gram", "zo_norm2"]

_ROUNDS = (7, 10)


@dataclass(slots=True)
class _Stream:
    """The checked arguments that name random numbers, shared by the three ops."""

    seed: int | Tensor
    directions: Sequence[int] | Tensor | None
    uids: list[int]
    distribution: str
    rounds: int

    def on(self, device: torch.device, indices: list[int]) -> tuple:
        """The schema's arguments from ``key`` to ``rounds`` for one group of tensors."""
        key = self.seed
        if not isinstance(key, Tensor):
            signed = key - 2**64 if key >= 2**63 else key  # int64 holds the 64 bits
            key = torch.tensor(signed, dtype=torch.int64, device=device)
        first, table = 0, None
        if isinstance(self.directions, Tensor):
            table = self.directions.to(device=device, dtype=torch.int64).contiguous()
        elif self.directions:
            first = self.directions[0]
            if list(self.directions) != list(range(first, first + len(self.directions))):
                table = torch.tensor(self.directions, dtype=torch.int64, device=device)
        uids = [self.uids[i] for i in indices]
        return key.to(device), table, first, uids, self.distribution, self.rounds


def _check_stream(
    op: str,
    count: int,
    q: int,
    seed: int | Tensor,
    directions: Sequence[int] | Tensor | None,
    uids: Sequence[int] | None,
    distribution: str,
    rounds: int,
) -> _Stream:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"{op}: seed must be an int or an int64 tensor with one element")
    elif not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"{op}: seed must be in [0, 2^64), got {seed!r}")
    if q < 1:
        raise ValueError(f"{op}: at least one direction is needed, got {q}")
    if directions is not None:
        if isinstance(directions, Tensor) and (
            directions.dim() != 1 or directions.dtype not in (torch.int64, torch.int32)
        ):
            raise ValueError(f"{op}: directions must be a 1-D int64 or int32 tensor, or a list")
        given = len(directions)
        if given != q:
            raise ValueError(f"{op}: directions has {given} entries, coef has {q}")
        if not isinstance(directions, Tensor):
            for i, d in enumerate(directions):
                if not 0 <= d < philox.KDF_DIRECTION:
                    raise ValueError(f"{op}: directions[{i}] must be in [0, 2^32 - 1), got {d}")
    if uids is None:
        uids = range(count)
    if len(uids) != count:
        raise ValueError(f"{op}: uids has {len(uids)} entries, tensors has {count}")
    for i, u in enumerate(uids):
        if not 0 <= u < 2**32:
            raise ValueError(f"{op}: uids[{i}] must be in [0, 2^32), got {u}")
    if distribution not in philox.DISTRIBUTIONS:
        names = " or ".join(repr(n) for n in philox.DISTRIBUTIONS)
        raise ValueError(f"{op}: distribution must be {names}, got {distribution!r}")
    if rounds not in _ROUNDS:
        raise ValueError(f"{op}: rounds must be 7 or 10, got {rounds}")
    return _Stream(seed, directions, list(uids), distribution, rounds)


def _coef_tensor(op: str, coef: Sequence[float] | Tensor) -> Tensor:
    c = coef if isinstance(coef, Tensor) else torch.tensor(list(coef), dtype=torch.float64)
    if c.dim() != 1 or not c.dtype.is_floating_point:
        raise ValueError(f"{op}: coef must be a 1-D floating tensor or a list of numbers")
    return c.contiguous()


def _per_tensor(
    op: str, name: str, value: float | Sequence[float] | Tensor | None, count: int
) -> Tensor | None:
    if value is None:
        return None
    t = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    if t.dim() == 0:
        t = t.expand(count)
    if t.shape != (count,):
        raise ValueError(f"{op}: {name} must be a number or have one entry per tensor ({count})")
    return t


def _check_sumsq(op: str, sumsq: Tensor, tensors: Sequence[Tensor]) -> None:
    if sumsq.dtype != torch.float64 or sumsq.numel() != 1:
        raise ValueError(f"{op}: sumsq must be a float64 tensor with one element")
    if len({(t.device, t.dtype) for t in tensors}) > 1:
        raise ValueError(f"{op}: sumsq needs all tensors on one device and of one dtype")
    if tensors and sumsq.device != tensors[0].device:
        raise ValueError(f"{op}: sumsq is on {sumsq.device}, tensors[0] is on {tensors[0].device}")
    if torch.is_grad_enabled() and sumsq.requires_grad:
        raise ValueError(f"{op}: sumsq requires grad; call under torch.no_grad() to modify it")


def zo_combine_(
    tensors: Sequence[Tensor],
    coef: Sequence[float] | Tensor,
    *,
    seed: int | Tensor,
    directions: Sequence[int] | Tensor | None = None,
    uids: Sequence[int] | None = None,
    distribution: str = "normal",
    rounds: int = 10,
    src: Sequence[Tensor] | None = None,
    mask: Sequence[Tensor] | None = None,
    backup: Sequence[Tensor] | None = None,
    sumsq: Tensor | None = None,
    alpha: float | Sequence[float] | Tensor | None = None,
    gamma: float | Sequence[float] | Tensor | None = None,
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
        distribution: "normal" or "rademacher" (+1 or -1).
        rounds: Philox rounds, 10 or 7 (another stream).
        src: tensors like ``tensors`` that the sum is added to; default ``tensors`` themselves.
        mask: int32 bit masks (``pack_mask``); entries with bit 0 keep their bits.
        backup: tensors like ``tensors`` (mutated): their original bits, written in the same pass.
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
    args = [
        ListArg("tensors", tensors, mutated=True),
        ListArg("src", src),
        ListArg("mask", mask, kind="words"),
        ListArg("backup", backup, mutated=True),
    ]
    whole = check_lists(op, args)
    c = _coef_tensor(op, coef)
    stream = _check_stream(
        op, len(tensors), c.numel(), seed, directions, uids, distribution, rounds
    )
    a, g_ = (
        _per_tensor(op, "alpha", alpha, len(tensors)),
        _per_tensor(op, "gamma", gamma, len(tensors)),
    )
    groups = grouped(op, backend, args, ordered=True, whole=whole)
    if sumsq is not None:
        _check_sumsq(op, sumsq, tensors)
        if not tensors:
            sumsq.zero_()
    for g in groups:
        math = opmath_dtype(g.dtype)
        factors = [None if t is None else t[g.indices].to(g.device, math) for t in (a, g_)]
        lists = g.lists
        g.run(
            lists["tensors"], lists["src"], c.to(g.device, math), *stream.on(g.device, g.indices),
            lists["mask"], lists["backup"], *factors, sumsq,
        )  # fmt: skip
    bump_versions([*args, ListArg("sumsq", None if sumsq is None else [sumsq], mutated=True)])


def zo_norm2(
    tensors: Sequence[Tensor],
    coef: Sequence[float] | Tensor,
    *,
    seed: int | Tensor,
    directions: Sequence[int] | Tensor | None = None,
    uids: Sequence[int] | None = None,
    distribution: str = "normal",
    rounds: int = 10,
    mask: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Squared norm of a sum of random directions: ``sum_n (sum_k coef[k] z_k[n])^2``.

    The read-only twin of ``zo_combine_``: no element of ``tensors`` is read or written, only their
    shapes, dtype and device are used. Equal, bit for bit, to the ``sumsq`` of the same combination.

    Args:
        tensors: shapes, dtype (of the arithmetic) and device of the parameters.
        coef, seed, directions, uids, distribution, rounds, mask, backend: as in ``zo_combine_``.

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
    c = _coef_tensor(op, coef)
    parts = []
    args = [ListArg("tensors", tensors), ListArg("mask", mask, kind="words")]
    whole = check_lists(op, args)
    stream = _check_stream(
        op, len(tensors), c.numel(), seed, directions, uids, distribution, rounds
    )
    for g in grouped(op, backend, args, ordered=True, whole=whole):
        on_device = c.to(device=g.device, dtype=opmath_dtype(g.dtype))
        drawn = stream.on(g.device, g.indices)
        parts.append(g.run(g.lists["tensors"], on_device, *drawn, g.lists["mask"]))
    return _total(parts, torch.zeros((), dtype=torch.float64))


def zo_gram(
    tensors: Sequence[Tensor],
    num_directions: int,
    *,
    seed: int | Tensor,
    directions: Sequence[int] | Tensor | None = None,
    uids: Sequence[int] | None = None,
    distribution: str = "normal",
    rounds: int = 10,
    mask: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Gram matrix of random directions: ``G[i, j] = <m * z_i, m * z_j>``.

    Args:
        tensors: shapes and device of the parameters; no element is read.
        num_directions: q, the size of the matrix.
        seed, directions, uids, distribution, rounds, mask, backend: as in ``zo_combine_``.

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
    stream = _check_stream(op, len(tensors), q, seed, directions, uids, distribution, rounds)
    for g in grouped(op, backend, args, ordered=True, whole=whole):
        drawn = stream.on(g.device, g.indices)
        parts.append(g.run(g.lists["tensors"], q, *drawn, g.lists["mask"]))
    return _total(parts, torch.zeros(q, q, dtype=torch.float64))


def _total(parts: list[Tensor], empty: Tensor) -> Tensor:
    total = parts[0] if parts else empty
    for part in parts[1:]:
        total = total + part.to(total.device)
    return total
