"""Probes along random directions, shared by ZO-SAM and MeZO."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import derive_key, restore_, zo_combine_, zo_gram, zo_norm2

from ._bitmask import BitMask
from ._stream import Stream
from ._support import BufferGuard, as_loss, rng_state, set_rng_state


@dataclass(frozen=True)
class Probe:
    """What the last probe measured; tensors stay on the device.

    Attributes:
        losses: [m, 2], loss at w + delta z_i and at w - delta z_i; float32 (float64 if given so).
        coef: [m] float64, (l+ - l-) / (2 delta), 0 where a loss tied or was not finite.
        smoothing: delta.
        key: 64-bit stream key K of this probe.
        step: probe counter t that gave the key.
        ascent: [m] float64, coefficients of e (ZO-SAM; None for MeZO).
    """

    losses: Tensor
    coef: Tensor
    smoothing: float
    key: int
    step: int
    ascent: Tensor | None = None


class Directions(Stream):
    """Applies the directions of one optimizer and measures losses along them."""

    def losses(
        self,
        where: str,
        closure: Callable[[], Any],
        params: list[Tensor],
        backups: list[Tensor],
        delta: float,
        guard: BufferGuard,
        training_forward_follows: bool,
    ) -> tuple[Tensor, int, Tensor | None]:
        """Losses [m, 2] at w + delta z_i and w - delta z_i, the key, and ||delta z_0||^2 if free.

        Every sweep after the first starts from the backup, so nothing drifts. If a training forward
        follows, guarded buffers and random states are left for it; else the first forward counts.
        Weights are left at the last probe point; whoever calls this restores them.
        """
        key = derive_key(self.seed, self.probe_count)
        self.probe_count += 1
        named = self.stream(params, key)
        alike = len({(p.device, p.dtype) for p in params}) == 1
        home = params[0].device
        sumsq = torch.zeros((), dtype=torch.float64, device=home) if alike else None
        state = rng_state({p.device for p in params}) if self.pair_rng else None
        values: list[Tensor] = []
        guard.save()
        for i in range(self.num_directions):
            for sign in (1.0, -1.0):
                first = not values
                zo_combine_(
                    params, [sign * delta], directions=[i], src=None if first else backups,
                    backup=backups if first else None, sumsq=sumsq if first else None, **named,
                )  # fmt: skip
                if first:
                    self._check_rounding(where, params, backups, sumsq)
                elif state is not None:
                    set_rng_state(state)
                values.append(as_loss(where, closure()).to(home))
                if first and not training_forward_follows:
                    guard.save()  # this forward is the one that counts
                guard.put_back()
        if state is not None and training_forward_follows:
            set_rng_state(state)
        wide = any(v.dtype == torch.float64 for v in values)
        stacked = torch.stack([v.to(torch.float64 if wide else torch.float32) for v in values])
        return stacked.reshape(-1, 2), key, sumsq

    def coefficients(self, losses: Tensor, delta: float) -> Tensor:
        """float64 [m] directional derivatives; ties and losses that are not finite give 0."""
        up, down = losses.double().unbind(1)
        finite = up.isfinite() & down.isfinite()
        tie = finite & (up == down)
        if self.ties is None or self.nonfinite is None:
            self.ties = torch.zeros((), dtype=torch.int64, device=losses.device)
            self.nonfinite = torch.zeros_like(self.ties)
        self.ties += tie.sum()
        self.nonfinite += (~finite).sum()
        return torch.where(finite & ~tie, (up - down) / (2.0 * delta), 0.0)

    def ascent(
        self,
        coef: Tensor,
        rho: float,
        delta: float,
        params: list[Tensor],
        key: int,
        sumsq: Tensor | None,
    ) -> Tensor:
        """a_i = rho c_i / sqrt(c' G c), 0 where that is 0/0; float64 on the device."""
        # a power of two changes no bit, and keeps the squares of huge and tiny slopes in range
        c = coef * torch.exp2(-torch.frexp(coef.abs().max()).exponent.double())
        if c.numel() > 1:
            gram = zo_gram(params, c.numel(), **self.stream(params, key)).to(c.device)
            square = c @ gram @ c
        elif self.distribution == "rademacher":
            square = c[0].square() * self.num_active(params)
        elif sumsq is not None:
            square = c[0].square() * (sumsq / delta**2)
        else:
            square = c[0].square() * zo_norm2(params, [1.0], **self.stream(params, key)).to(
                c.device
            )
        return torch.where(square > 0.0, c * (rho / square.sqrt()), 0.0)

    def _check_rounding(
        self, where: str, params: list[Tensor], backups: list[Tensor], sumsq: Tensor | None
    ) -> None:
        """Once: warn if 16-bit weights swallow the probe step."""
        if self._checked_rounding:
            return
        self._checked_rounding = True
        if sumsq is None or params[0].dtype not in (torch.bfloat16, torch.float16):
            return
        moved = torch.stack(
            [
                (p.float() - b.float()).double().square().sum()
                for p, b in self._written(params, backups)
            ]
        )
        ratio = float((moved.sum() / sumsq).sqrt()) if float(sumsq) > 0 else 1.0
        if abs(ratio - 1.0) > 0.1:
            warnings.warn(
                f"{where}: rounding to {params[0].dtype} changes the length of the probe step by a "
                f"factor of {ratio:.2f}; use float32 weights or a larger smoothing",
                stacklevel=4,
            )

    def _written(self, params: list[Tensor], backups: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(parameter, original) pairs; entries the mask leaves out are equal in both."""
        if self.mask is None:
            return list(zip(params, backups, strict=True))
        before = [p.clone() for p in params]
        restore_(before, backups, self.words(params), backend=self.backend)
        return list(zip(params, before, strict=True))


class DirectionReport:
    """Read access to the directions of an optimizer."""

    _directions: Directions

    @property
    def num_directions(self) -> int:
        """Directions per probe."""
        return self._directions.num_directions

    @property
    def probe_count(self) -> int:
        """t, probes drawn so far."""
        return self._directions.probe_count

    @property
    def weight_mask(self) -> BitMask | None:
        """The weight mask in force, over the trainable parameters in group order."""
        return self._directions.mask

    @property
    def ties(self) -> Tensor | None:
        """Directions dropped because both losses were equal; int64 on the device."""
        return self._directions.ties

    @property
    def nonfinite(self) -> Tensor | None:
        """Directions dropped because a loss was not finite; int64 on the device."""
        return self._directions.nonfinite

    def active_counts(self) -> dict[Tensor, int]:
        """Ones of every parameter under the weight mask; empty without one."""
        return self._directions.active_counts()


def default_smoothing(rho: float, active: int) -> float:
    """delta = rho / sqrt(d), so that the probe step is as long as the perturbation."""
    return rho / math.sqrt(max(active, 1))
