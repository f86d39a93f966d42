"""How weights get from one point of a probe to the next: exactly, from masters, or by replay.

A sweep is one pass over the weights. ``to`` leaves them at ``alpha w + gamma sum_k coef[k] z_k``,
wherever they stood; w itself is in a backup, in float32 masters, or nowhere.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import restore_, zo_combine_

from ._backup import Moved
from ._stream import Stream

#: by parameter; None: 1. Tensors are 0-dim float64, for numbers that only the device knows
Factors = Mapping[Tensor, float | Tensor] | None
RESTORES = ("exact", "master", "replay")


def _factors(of: Factors, params: Sequence[Tensor]) -> list[float] | Tensor | None:
    values = [] if of is None else [of[p] for p in params]
    known = next((v for v in values if isinstance(v, Tensor)), None)
    if known is not None:
        return torch.stack([v if isinstance(v, Tensor) else known.new_full((), v) for v in values])
    numbers = [float(v) for v in values]
    return None if set(numbers) <= {1.0} else numbers


@dataclass(frozen=True)
class Sweep:
    """Arguments of ``Sweeps.to``; ``params`` are those that move."""

    coef: Tensor
    directions: list[int]
    sumsq: Tensor | None
    alphas: Factors
    gammas: Factors
    params: list[Tensor]


class Sweeps(abc.ABC):
    """The weights of one probe.

    Args:
        stream: names the random numbers.
        key: of this probe.
        params: parameters, as the stream knows them.
    """

    def __init__(self, stream: Stream, key: Tensor, params: list[Tensor]) -> None:
        self.stream, self.key, self.params = stream, key, params

    def to(
        self,
        coef: Tensor,
        directions: list[int],
        *,
        sumsq: Tensor | None = None,
        alphas: Factors = None,
        gammas: Factors = None,
        only: list[Tensor] | None = None,
    ) -> None:
        """Move to ``alpha w + gamma sum_k coef[k] z_k``.

        Args:
            coef: [q] float64, on the device.
            directions: q direction numbers.
            sumsq: takes the squared norm of the sum, where the weights can give it.
            alphas, gammas: factors by parameter.
            only: move these parameters alone.
        """
        params = self.params if only is None else only
        self._take(Sweep(coef, directions, sumsq, alphas, gammas, params))

    @abc.abstractmethod
    def _take(self, sweep: Sweep) -> None:
        """Make one sweep."""

    @abc.abstractmethod
    def restore(self, only: list[Tensor] | None = None) -> None:
        """Back to w."""

    @abc.abstractmethod
    def moved(self) -> list[Any]:
        """What a base optimizer's step has to restore: parts with ``params`` and ``restore``."""

    def squared_move(self) -> Tensor | None:
        """Squared length of the present move after rounding, float64; None where w is not kept."""
        return None

    def _call(self, params: list[Tensor], coef: Tensor, directions: list[int], **more: Any) -> None:
        """One sweep over some of the parameters."""
        named = self.stream.named(params, self.key)
        tensors = more.pop("tensors", None) or self.stream.local(params)
        zo_combine_(tensors, coef, directions=directions, **named, **more)


class ExactSweeps(Sweeps):
    """Every sweep starts from the bits of w, which the first one copies: nothing drifts."""

    def __init__(
        self, stream: Stream, key: Tensor, params: list[Tensor], parts: list[Moved]
    ) -> None:
        super().__init__(stream, key, params)
        self._parts = parts
        self._saved = [False] * len(parts)
        self._owner = dict(zip(map(id, stream.local(params)), params, strict=True))

    def _params(self, part: Moved) -> list[Tensor]:
        return [self._owner[id(t)] for t in part.params]

    def _where(self, part: Moved, params: list[Tensor] | None) -> Moved | None:
        if params is None or params is self.params:
            return part
        wanted = set(map(id, params))
        at = [i for i, t in enumerate(part.params) if id(self._owner[id(t)]) in wanted]
        return part.at(at) if at else None

    def _take(self, sweep: Sweep) -> None:
        for i, whole in enumerate(self._parts):
            part = self._where(whole, sweep.params)
            if part is None:
                continue
            params = self._params(part)
            self._call(
                params, sweep.coef, sweep.directions, tensors=part.params,
                **{"src" if self._saved[i] else "backup": part.backup},
                mask=part.masks, ranks=part.ranks, sumsq=sweep.sumsq,
                alpha=_factors(sweep.alphas, params), gamma=_factors(sweep.gammas, params),
            )  # fmt: skip
            self._saved[i] = True

    def restore(self, only: list[Tensor] | None = None) -> None:
        for whole, saved in zip(self._parts, self._saved, strict=True):
            part = self._where(whole, only) if saved else None
            if part is not None:
                part.restore(self.stream.backend)

    def moved(self) -> list[Moved]:
        return [part for part, saved in zip(self._parts, self._saved, strict=True) if saved]

    def squared_move(self) -> Tensor | None:
        total = self.key.new_zeros((), dtype=torch.float64)
        for part in self.moved():
            before = [t.clone() for t in part.params]
            restore_(before, part.backup, part.masks, ranks=part.ranks, backend=self.stream.backend)
            total += _squared_distance(part.params, before).to(total.device)
        return total


def _squared_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    squares = [(x.float() - y.float()).double().square().sum() for x, y in zip(a, b, strict=True)]
    return torch.stack(squares).sum()


class _Copied:
    """16-bit weights to be rounded from their masters again."""

    def __init__(self, params: list[Tensor], masters: list[Tensor]) -> None:
        self.params, self.masters = params, masters

    def restore(self, backend: str) -> None:
        torch._foreach_copy_(self.params, self.masters)


class MasterSweeps(Sweeps):
    """16-bit weights are rounded anew from float32 masters, which do not move."""

    def __init__(
        self, stream: Stream, key: Tensor, params: list[Tensor], words: list[Tensor] | None,
        live: dict[Tensor, Tensor],
    ) -> None:  # fmt: skip
        super().__init__(stream, key, params)
        self._live = live
        self._words = None if words is None else dict(zip(params, words, strict=True))
        self._touched = False

    def _mask(self, params: list[Tensor]) -> list[Tensor] | None:
        return None if self._words is None else [self._words[p] for p in params]

    def _take(self, sweep: Sweep) -> None:
        params = sweep.params
        self._touched = True
        self._call(
            params, sweep.coef, sweep.directions, tensors=[self._live[p] for p in params],
            src=self.stream.local(params), mask=self._mask(params), sumsq=sweep.sumsq,
            alpha=_factors(sweep.alphas, params), gamma=_factors(sweep.gammas, params),
        )  # fmt: skip

    def update(
        self, coef: Tensor, directions: list[int], alphas: Factors, gammas: Factors,
        only: list[Tensor],
    ) -> None:  # fmt: skip
        """Move the masters; the 16-bit weights follow with ``restore``."""
        self._call(
            only, coef, directions, mask=self._mask(only),
            alpha=_factors(alphas, only), gamma=_factors(gammas, only),
        )  # fmt: skip

    def restore(self, only: list[Tensor] | None = None) -> None:
        params = self.params if only is None else only
        if self._touched:
            torch._foreach_copy_([self._live[p] for p in params], self.stream.local(params))

    def squared_move(self) -> Tensor | None:
        masters = self.stream.local(self.params)
        return _squared_distance([self._live[p] for p in self.params], masters)

    def moved(self) -> list[_Copied]:
        if not self._touched:
            return []
        return [_Copied([self._live[p] for p in self.params], self.stream.local(self.params))]


class ReplaySweeps(Sweeps):
    """No copy: the move before is drawn again and taken back. Rounding makes the weights drift."""

    def __init__(
        self, stream: Stream, key: Tensor, params: list[Tensor], words: list[Tensor] | None
    ) -> None:
        super().__init__(stream, key, params)
        self._words = None if words is None else dict(zip(params, words, strict=True))
        # direction -> coef; parameters with one and the same table move in one call
        at: dict[int, Tensor] = {}
        self._at = dict.fromkeys(params, at)

    def _take(self, sweep: Sweep) -> None:
        alike: dict[tuple, list[Tensor]] = {}
        for p in sweep.params:
            factors = (1.0 if f is None else f[p] for f in (sweep.alphas, sweep.gammas))
            alike.setdefault((id(self._at[p]), *factors), []).append(p)
        for (_, alpha, gamma), own in alike.items():
            old = self._at[own[0]]
            new = dict(zip(sweep.directions, (gamma * sweep.coef).unbind(), strict=True))
            zero = self.key.new_zeros((), dtype=torch.float64)
            words = list(dict.fromkeys([*old, *new]))
            if not words:
                continue
            steps = [new.get(d, zero) - alpha * old.get(d, zero) for d in words]
            self._call(
                own, torch.stack(steps), words, sumsq=sweep.sumsq,
                mask=None if self._words is None else [self._words[p] for p in own],
                alpha=alpha if isinstance(alpha, Tensor) or alpha != 1.0 else None,
            )  # fmt: skip
            self._at.update(dict.fromkeys(own, new))

    def restore(self, only: list[Tensor] | None = None) -> None:
        self.to(self.key.new_zeros(0, dtype=torch.float64), [], only=only)

    def moved(self) -> list[Any]:
        return [_Replayed(self)]


class _Replayed:
    """Parameters that a sweep takes back."""

    def __init__(self, sweeps: ReplaySweeps) -> None:
        self.params, self._sweeps = sweeps.params, sweeps

    def restore(self, backend: str) -> None:
        self._sweeps.restore()
