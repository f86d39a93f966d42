"""Probes along random directions, shared by ZO-SAM and MeZO."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._backup import Backups
from ._coordinates import CoordinateSweeps
from ._lengths import Lengths
from ._loss_sync import LossSync
from ._shards import gathered_anew
from ._support import BufferGuard, is_capturing, rng_state, set_rng_state
from ._sweeps import (
    RESTORES,
    ExactSweeps,
    MasterSweeps,
    ReplaySweeps,
    Sweeps,
)


@dataclass(frozen=True)
class Probe:
    """What the last probe measured; tensors stay on the device.

    Attributes:
        losses: [m, 2], loss at w + delta z_i and at w - delta z_i (forward difference: at w);
            float32 (float64 if given so, or averaged over ranks).
        coef: [m] float64, directional derivatives, 0 where a loss tied or was not finite.
        smoothing: delta.
        key: int64, the bits of the 64-bit stream key K of this probe.
        step: int64, probe counter t that gave the key.
        ascent: [m] float64, coefficients of e on the drawn normals or signs (ZO-SAM; None for
            MeZO).
    """

    losses: Tensor
    coef: Tensor
    smoothing: float
    key: Tensor
    step: Tensor
    ascent: Tensor | None = None


class Directions(Lengths):
    """Applies the directions of one optimizer and measures losses along them.

    Args:
        num_directions, smoothing, distribution, seed, rounds, math, backend: as in ``Stream``.
        pair_rng: give every forward of a probe the random state of the first.
        restore, allow_drift: how the weights come back, see ``ZOSAM``.
        sync: averages losses over ranks, and adds up over shards.
    """

    def __init__(
        self,
        num_directions: int,
        smoothing: float | None,
        distribution: str,
        seed: int | None,
        rounds: int,
        math: str,
        backend: str,
        *,
        pair_rng: bool,
        restore: str,
        allow_drift: bool,
        sync: LossSync,
    ) -> None:
        super().__init__(num_directions, smoothing, distribution, seed, rounds, math, backend)
        self.sync = sync
        if distribution == "coordinate" and smoothing is None:
            raise ValueError("distribution='coordinate' needs a smoothing")
        if restore not in RESTORES:
            raise ValueError(f"restore must be one of {RESTORES}, got {restore!r}")
        if distribution == "coordinate" and (restore != "exact" or sync.sharded):
            raise ValueError("distribution='coordinate' needs restore='exact' and whole parameters")
        self.restore_mode = restore
        self.pair_rng, self.allow_drift = bool(pair_rng), bool(allow_drift)
        self.live: dict[Tensor, Tensor] = {}  #: 16-bit weights by their float32 master
        self.ties: Tensor | None = None
        self.nonfinite: Tensor | None = None
        self._backups = Backups()
        self._checked_rounding = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_backups": Backups()}

    # -- a probe -----------------------------------------------------------------------------

    def begin(self, where: str, params: list[Tensor]) -> Sweeps:
        """Draw the key of a probe and get ready to move the parameters.

        Raises:
            ValueError: the directions, masters or dtypes do not fit the parameters.
        """
        local, count = self.local(params), self.num_active(params)
        self._check_modes(where, params, local, count)
        home = local[0].device
        self.agree(home)
        sweeps = self.sweeps_for(params, self.next_key(home))
        if self.distribution == "sphere":
            self.scale_to_sphere(params, sweeps.key)
        return sweeps

    def agree(self, home: torch.device) -> None:
        """Use the seed of rank 0, and the stream that is this rank's."""
        self.seed_word = self.sync.shared_seed(self.seed_word.to(home))
        self.number = self.sync.stream_number

    def sweeps_for(self, params: list[Tensor], key: Tensor, exact: bool = False) -> Sweeps:
        """Get ready to move the parameters along the directions of a key; ``exact``: by copies."""
        self.forget_lengths()
        local, words, mask = self.local(params), self.words(params), self.masked.over(params)
        if self.live:
            return MasterSweeps(self, key, params, words, self.live)
        if self.restore_mode == "replay" and not exact:
            return ReplaySweeps(self, key, params, words)
        if self.distribution == "coordinate":
            return CoordinateSweeps(self, key, params, self._backups.whole(local, words))
        parts = self._backups.parts(local, mask, self.masked.live(params))
        return ExactSweeps(self, key, params, parts)

    def _check_modes(
        self, where: str, params: list[Tensor], local: list[Tensor], count: int
    ) -> None:
        if self.live and any(p not in self.live for p in params):
            raise ValueError(f"{where}: a trainable parameter has no live 16-bit weights")
        most = CoordinateSweeps.MOST
        if self.distribution == "coordinate" and not self.num_directions == count <= most:
            raise ValueError(
                f"{where}: distribution='coordinate' needs num_directions = active entries <= "
                f"{most}; there are {count}, num_directions is {self.num_directions}"
            )
        if self.restore_mode != "replay" or self.allow_drift:
            return
        for t in local:
            if t.dtype in (torch.bfloat16, torch.float16):
                raise ValueError(
                    f"{where}: restore='replay' makes {t.dtype} weights drift; use 'exact', or "
                    "allow_drift=True"
                )

    # -- losses ------------------------------------------------------------------------------

    def losses(
        self,
        where: str,
        closure: Callable[[], Any],
        sweeps: Sweeps,
        delta: float,
        guard: BufferGuard,
        count: Callable[[], int],
        *,
        training_forward_follows: bool,
        one_sided: bool = False,
        directions: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Losses [m, 2] at w + delta z_i and w - delta z_i, and ||delta z_0||^2 if it came free.

        ``one_sided``: at w + delta z_i and at w. If a training forward follows, guarded buffers and
        random states are left for it; else the first forward counts. Weights are left at the last
        point; whoever calls this restores them. ``count`` gives the number of parameters;
        ``directions`` default to all.
        """
        home, before = sweeps.key.device, count()
        numbers = range(self.num_directions) if directions is None else directions
        points = [(i, sign) for i in numbers for sign in (1.0, -1.0)]
        if one_sided:
            points = [(0, 0.0), *((i, 1.0) for i in numbers)]
        sumsq = self._room_for_norm(sweeps, home)
        if self.pair_rng and is_capturing():
            raise RuntimeError(f"{where}: pair_rng=False is needed while a CUDA graph is captured")
        random = rng_state({p.device for p in sweeps.params}) if self.pair_rng else None
        values: list[Tensor | None] = []
        fresh = True  # the weights stand at w
        guard.save()
        try:
            for i, sign in points:
                if sign != 0.0:
                    # filled on the device: nothing is waited for
                    length = torch.full((1,), sign * delta, dtype=torch.float64, device=home)
                    step = self.on_drawn(length, [i])
                    sweeps.to(step, [i], sumsq=sumsq if fresh else None)
                    if fresh:
                        self._check_rounding(where, sweeps, sumsq)
                    fresh = False
                if values and random is not None:
                    set_rng_state(random)
                with gathered_anew(sweeps.params):
                    values.append(self.sync.loss(where, closure(), home))
                if (now := count()) != before:
                    raise RuntimeError(
                        f"{where}: the loss closure changed the number of parameters "
                        f"from {before} to {now}"
                    )
                if len(values) == 1 and not training_forward_follows:
                    guard.save()  # this forward is the one that counts
                guard.put_back()
        except BaseException:
            if random is not None:
                set_rng_state(random)
            raise
        if random is not None and training_forward_follows:
            set_rng_state(random)
        found = self.sync.average(values, home)
        if one_sided:
            found = torch.stack((found[1:], found[:1].expand(len(found) - 1)), 1)
        return found.reshape(-1, 2), sumsq

    def _swept(self, sweeps: Sweeps) -> list[Tensor]:
        """The tensors that the sweeps write."""
        return [self.live[p] for p in sweeps.params] if self.live else self.local(sweeps.params)

    def _room_for_norm(self, sweeps: Sweeps, home: torch.device) -> Tensor | None:
        alike = len({(t.device, t.dtype) for t in self._swept(sweeps)}) == 1
        if not alike or self.distribution not in ("normal", "rademacher"):
            return None
        return torch.zeros((), dtype=torch.float64, device=home)

    def coefficients(self, losses: Tensor, delta: float, one_sided: bool = False) -> Tensor:
        """float64 [m] directional derivatives; ties and losses that are not finite give 0."""
        up, down = losses.double().unbind(1)
        finite = up.isfinite() & down.isfinite()
        tie = finite & (up == down)
        if self.ties is None or self.nonfinite is None:
            self.ties = torch.zeros((), dtype=torch.int64, device=losses.device)
            self.nonfinite = torch.zeros_like(self.ties)
        self.ties += tie.sum()
        self.nonfinite += (~finite).sum()
        width = delta if one_sided else 2.0 * delta
        return torch.where(finite & ~tie, (up - down) / width, 0.0)

    def _check_rounding(self, where: str, sweeps: Sweeps, sumsq: Tensor | None) -> None:
        """Once: warn if 16-bit weights swallow the probe step."""
        if self._checked_rounding:
            return
        self._checked_rounding = True
        tensors = self._swept(sweeps)
        narrow = tensors[0].dtype in (torch.bfloat16, torch.float16)
        if sumsq is None or not narrow or is_capturing():
            return
        moved = sweeps.squared_move()
        if moved is None:
            return
        ratio = float((moved / sumsq).sqrt()) if float(sumsq) > 0 else 1.0
        if abs(ratio - 1.0) > 0.1:
            warnings.warn(
                f"{where}: rounding to {tensors[0].dtype} changes the length of the probe step by "
                f"a factor of {ratio:.2f}; use float32 weights or a larger smoothing",
                stacklevel=5,
            )

    # -- checkpoints -------------------------------------------------------------------------

    def state(self, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            **super().state(groups),
            "ties": None if self.ties is None else self.ties.clone(),
            "nonfinite": None if self.nonfinite is None else self.nonfinite.clone(),
        }

    def load(self, where: str, groups: Sequence[dict[str, Any]], state: dict[str, Any]) -> None:
        if (state["distribution"] == "coordinate") != (self.distribution == "coordinate"):
            raise ValueError(
                f"{where}: the checkpoint has distribution={state['distribution']!r}, this "
                f"optimizer {self.distribution!r}"
            )
        super().load(where, groups, state)
        home = self.local([p for g in groups for p in g["params"]])[0].device
        for name in ("ties", "nonfinite"):
            value = state[name]
            setattr(self, name, None if value is None else value.clone().to(home))


def default_smoothing(rho: float, active: int) -> float:
    """delta = rho / sqrt(d), so that the probe step is as long as the perturbation."""
    return rho / math.sqrt(max(active, 1))
