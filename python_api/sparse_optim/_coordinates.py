"""Unit vectors as directions: every active entry is one of them, so nothing is left to chance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._backup import Moved
from ._bitmask import BitMask
from ._stream import Stream
from ._sweeps import ExactSweeps


class CoordinateSweeps(ExactSweeps):
    """Direction i is the unit vector of the i-th entry that moves, in (uid, index) order.

    For tests and tiny models: plain tensor operations, one entry after the other.
    """

    MOST = 4096

    def __init__(
        self, stream: Stream, key: Tensor, params: list[Tensor], parts: list[Moved]
    ) -> None:
        super().__init__(stream, key, params, parts)
        self._keep: dict[Tensor, Tensor] = {}
        for part in parts:
            if part.masks is None:
                bools = [
                    torch.ones(t.shape, dtype=torch.bool, device=t.device) for t in part.params
                ]
            else:
                bools = BitMask(part.masks, [t.shape for t in part.params]).to_bool()
            self._keep.update(zip(self._params(part), bools, strict=True))
        self.places: list[tuple[Tensor, int]] = []
        for p in sorted(params, key=lambda p: stream.uids[p]):
            live = self._keep[p].reshape(-1).nonzero().reshape(-1)
            self.places += [(p, n) for n in live.tolist()]

    def _call(self, params: list[Tensor], coef: Tensor, directions: list[int], **more: Any) -> None:
        tensors, factors = more["tensors"], {}
        for name in ("alpha", "gamma"):
            factors[name] = more.get(name) or [1.0] * len(params)
        for i, (p, t) in enumerate(zip(params, tensors, strict=True)):
            if more.get("backup") is not None:
                more["backup"][i].copy_(t)
            source = t if more.get("src") is None else more["src"][i]
            step = torch.zeros(t.shape, dtype=torch.float64, device=t.device)
            for c, d in zip(coef, directions, strict=True):
                owner, n = self.places[d]
                if owner is p:
                    step.view(-1)[n] = c
            value = factors["alpha"][i] * source.double() + factors["gamma"][i] * step
            t.copy_(torch.where(self._keep[p], value.to(t.dtype), t))
