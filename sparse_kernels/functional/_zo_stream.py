"""Arguments that name random numbers, and the numbers that multiply them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import philox
from ._scalars import Numbers, device_numbers, key_word

ROUNDS = (7, 10)
MATHS = ("portable", "fast")


def check_coef(op: str, coef: Numbers) -> Numbers:
    """The coefficients as a tensor, if they are one, or as a list."""
    if not isinstance(coef, Tensor):
        return [float(c) for c in coef]
    if coef.dim() != 1 or not coef.dtype.is_floating_point:
        raise ValueError(f"{op}: coef must be a 1-D floating tensor or a list of numbers")
    return coef


def check_per_tensor(
    op: str, name: str, value: float | Numbers | None, count: int
) -> Numbers | None:
    """One factor per tensor; a single number is that of all."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        value = value.expand(count) if value.dim() == 0 else value
        shape = tuple(value.shape)
    else:
        value = [float(value)] * count if isinstance(value, (int, float)) else list(value)
        shape = (len(value),)
    if shape != (count,):
        raise ValueError(f"{op}: {name} must be a number or have one entry per tensor ({count})")
    return value


@dataclass(slots=True)
class Stream:
    """The checked arguments that name random numbers, shared by the ops that draw them."""

    seed: int | Tensor
    directions: Sequence[int] | Tensor | None
    uids: list[int]
    firsts: list[int]
    distribution: str
    rounds: int
    math: str

    def on(self, device: torch.device, indices: list[int]) -> tuple:
        """The schema's arguments from ``key`` to ``math`` for one group of tensors."""
        key = self.seed
        if not isinstance(key, Tensor):
            key = key_word(key, device)
        first, table = 0, None
        if isinstance(self.directions, Tensor):
            table = self.directions.to(device=device, dtype=torch.int64).contiguous()
        elif self.directions:
            first = self.directions[0]
            if list(self.directions) != list(range(first, first + len(self.directions))):
                table = device_numbers(self.directions, torch.int64, device)
        uids = [self.uids[i] for i in indices]
        firsts = [self.firsts[i] for i in indices] if any(self.firsts) else []
        return (
            key.to(device), table, first, uids, firsts, self.distribution, self.rounds, self.math
        )  # fmt: skip


def _check_per_tensor_ints(
    op: str, name: str, values: Sequence[int], count: int, bits: int
) -> list[int]:
    if len(values) != count:
        raise ValueError(f"{op}: {name} has {len(values)} entries, tensors has {count}")
    if count > 0 and not (min(values) >= 0 and max(values) < 2**bits):
        i, value = next((i, v) for i, v in enumerate(values) if not 0 <= v < 2**bits)
        raise ValueError(f"{op}: {name}[{i}] must be in [0, 2^{bits}), got {value}")
    return list(values)


def check_seed(op: str, seed: int | Tensor) -> None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"{op}: seed must be an int or an int64 tensor with one element")
    elif not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"{op}: seed must be in [0, 2^64), got {seed!r}")


def check_stream(
    op: str,
    count: int,
    q: int,
    seed: int | Tensor,
    directions: Sequence[int] | Tensor | None,
    uids: Sequence[int] | None,
    firsts: Sequence[int] | None,
    distribution: str,
    rounds: int,
    math: str,
) -> Stream:
    """The arguments of an op over ``count`` tensors and ``q`` directions.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    check_seed(op, seed)
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
    numbers = _check_per_tensor_ints(op, "uids", range(count) if uids is None else uids, count, 32)
    starts = _check_per_tensor_ints(
        op, "firsts", [0] * count if firsts is None else firsts, count, 62
    )
    if distribution not in philox.DISTRIBUTIONS:
        names = " or ".join(repr(n) for n in philox.DISTRIBUTIONS)
        raise ValueError(f"{op}: distribution must be {names}, got {distribution!r}")
    if rounds not in ROUNDS:
        raise ValueError(f"{op}: rounds must be 7 or 10, got {rounds}")
    if math not in MATHS:
        raise ValueError(f"{op}: rng_math must be 'portable' or 'fast', got {math!r}")
    return Stream(seed, directions, numbers, starts, distribution, rounds, math)
