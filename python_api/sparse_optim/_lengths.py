"""How long sums of directions are: counts, squared lengths and Gram matrices over all shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import zo_gram, zo_norm2

from ._loss_sync import LossSync
from ._stream import Stream
from ._support import same_tensors
from ._sweeps import Sweeps


class Lengths(Stream):
    """Random directions with their lengths."""

    sync: LossSync  #: sums over shards
    _scale: Tensor | None = None  # of each direction of the present probe, on the sphere
    _gram: Tensor | None = None
    _active: tuple[list[Tensor], int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gram": None, "_scale": None}

    def forget_lengths(self) -> None:
        """Another key follows."""
        self._gram = self._scale = None

    def words(self, params: Sequence[Tensor]) -> list[Tensor] | None:
        """Packed masks of these parameters; one added after the mask is all ones."""
        return self.masked.words(params)

    def num_active(self, params: Sequence[Tensor]) -> int:
        """d, entries that move, over all shards."""
        if not self.sync.sharded:
            return self.masked.live(params)
        words = self.words(params)
        known = [*params, *([] if words is None else words)]  # kept: an address may be used again
        if self._active is None or not same_tensors(self._active[0], known):
            held = sum(t.numel() for t in self.local(params))
            count = torch.tensor(float(held if words is None else self.masked.live(params)))
            total = self.sync.over_shards(count.to(self.local(params)[0].device, torch.float64))
            self._active = (known, int(total))
        return self._active[1]

    def scale_to_sphere(self, params: list[Tensor], key: Tensor) -> None:
        """Give every direction of a key the length sqrt(d)."""
        self._scale = (self.num_active(params) / self._squares(params, key)).sqrt()

    def on_drawn(self, coef: Tensor, directions: list[int]) -> Tensor:
        """Coefficients of the drawn normals or signs, from those of the directions."""
        if self._scale is None:
            return coef
        return coef * torch.stack([self._scale[i] for i in directions])

    def _drawn(self, params: list[Tensor], key: Tensor) -> dict[str, Any]:
        return {"mask": self.words(params), **self.named(params, key)}

    def _gram_matrix(self, params: list[Tensor], key: Tensor) -> Tensor:
        if self._gram is None:
            own = zo_gram(self.local(params), self.num_directions, **self._drawn(params, key))
            self._gram = self.sync.over_shards(own.to(key.device))
        return self._gram

    def _squares(self, params: list[Tensor], key: Tensor) -> Tensor:
        """Squared lengths [m] of the drawn directions."""
        if self.num_directions > 1:
            return self._gram_matrix(params, key).diagonal()
        own = zo_norm2(self.local(params), [1.0], **self._drawn(params, key))
        return self.sync.over_shards(own.to(key.device)).reshape(1)

    def ascent(
        self, coef: Tensor, rho: float, delta: float, sweeps: Sweeps, sumsq: Tensor | None
    ) -> Tensor:
        """a_i = rho c_i / sqrt(c' G c), 0 where that is 0/0; float64 on the device.

        On the drawn normals or signs: the scale of sphere directions is part of it.
        """
        params, key = sweeps.params, sweeps.key
        # a power of two changes no bit, and keeps the squares of huge and tiny slopes in range
        c = coef * torch.exp2(-torch.frexp(coef.abs().max()).exponent.double().clamp(min=-1000))
        c = self.on_drawn(c, list(range(self.num_directions)))
        if self.distribution == "coordinate":
            square = c.square().sum()
        elif c.numel() > 1:
            square = c @ self._gram_matrix(params, key) @ c
        elif self.distribution == "rademacher":
            square = c[0].square() * self.num_active(params)
        elif sumsq is not None:
            square = c[0].square() * (self.sync.over_shards(sumsq) / delta**2)
        else:
            square = c[0].square() * self._squares(params, key)[0]
        return torch.where(square > 0.0, c * (rho / square.sqrt()), 0.0)
