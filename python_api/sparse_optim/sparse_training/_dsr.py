"""Dynamic sparse reparameterisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import mask_dropgrow, mask_topk

from .._bitmask import BitMask
from .._support import check_int, check_number
from ._dynamic import DynamicSparseTraining
from ._scheduler import wide
from .distributions import apportion


class DSR(DynamicSparseTraining):
    """Dynamic sparse reparameterisation: one threshold for all layers, counts that move.

    An update drops live weights with ``|w| < H``, at least the largest of each layer staying, and
    grows as many at random, shared among the layers by their survivors; places just emptied do not
    count, and what a full layer cannot take goes to the others. The total stays, the counts per
    layer move. If more than ``1.1 target`` were dropped H is halved, below ``0.9 target`` doubled.
    Grown weights start at +0.0, momentum stays (``grown_state="keep"``).

    Args:
        model, optimizer, sparsity, dense_layers, seed, backend: as in ``SparseTraining``.
        distribution: of the random mask at the start, as in ``SET``.
        first_dense: leave the first layer dense; default: for "uniform". As published, name
            shortcuts and the classifier in ``dense_layers``.
        threshold: H at the start, > 0.
        target: weights to drop per update, >= 1; default a tenth of the live ones (published: 20000
            for WRN-28-2, 400000 for ResNet-50).
        update_every: P, a period in calls of ``step`` or (time, period) pairs; published: 100, 200,
            400, 800 from epochs 0, 25, 80, 140 of 200.
        stop_at: no update from this call on (published: epoch 190); None: never.
        grown_state: "keep" or "zero".

    Note:
        Where fewer places are empty than would be dropped, the smallest of the live weights of all
        layers are dropped, as many as there are places.

    Source: DSR, arXiv 1902.05967.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 10), torch.nn.Linear(10, 10))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> sparse = DSR(model, opt, sparsity=0.8, first_dense=False, update_every=1, threshold=0.1)
        >>> for _ in range(4):
        ...     skip = sparse.step()
        >>> sparse.mask.live, sum(sparse.layer_live.values())
        (36, 36)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        distribution: str = "uniform",
        *,
        threshold: float = 1e-3,
        target: int | None = None,
        update_every: int | Sequence[tuple[int, int]] = 100,
        stop_at: int | None = None,
        first_dense: bool | None = None,
        grown_state: str = "keep",
        **options: Any,
    ) -> None:
        self.threshold = check_number("threshold", threshold, 0.0, strict=True)
        target = None if target is None else check_int("target", target, 1)
        super().__init__(
            model, optimizer, sparsity, distribution=distribution, first_dense=first_dense,
            update_every=update_every, stop_at=stop_at, grown_state=grown_state, **options,
        )  # fmt: skip
        self.target = max(sum(self._live) // 10, 1) if target is None else target

    def _update(self, grads: Sequence[Tensor | None] | None) -> bool:
        live, room = self._live, [n - k for n, k in zip(self._sizes, self._live, strict=True)]
        stay = self._survivors(sum(room))
        dropped = [k - s for k, s in zip(live, stay, strict=True)]
        grown = apportion(sum(dropped), stay, room, list(self.weights))
        words = mask_dropgrow(
            self.mask.words, live, dropped, self._params, self._params,
            grow_kind="random", grow_key=self._grow_key, grow=grown, backend=self.backend,
        )  # fmt: skip
        self._commit(words, [s + g for s, g in zip(stay, grown, strict=True)])
        if 10 * sum(dropped) > 11 * self.target:
            self.threshold /= 2
        elif 10 * sum(dropped) < 9 * self.target:
            self.threshold *= 2
        return False

    def _survivors(self, room: int) -> list[int]:
        """Live weights of every layer that stay; at most ``room`` go in all."""
        masks, home = self.mask.to_bool(), self.mask.words[0].device
        above = [
            (m & (wide(p).abs() >= self.threshold)).sum().to(home)
            for p, m in zip(self._params, masks, strict=True)
        ]
        stay = [
            max(count, min(k, 1))
            for count, k in zip(torch.stack(above).tolist(), self._live, strict=True)
        ]
        if sum(self._live) - sum(stay) <= room:
            return stay
        keep = mask_topk(
            self._params, [min(k, 1) for k in self._live], kind="abs", among=self.mask.words,
            backend=self.backend,
        )  # fmt: skip
        others = [m & ~w for m, w in zip(self.mask.words, keep, strict=True)]
        more = sum(self._live) - room - sum(min(k, 1) for k in self._live)
        mask_topk(self._params, more, kind="abs", among=others, out=keep, backend=self.backend)
        return BitMask(keep, self.mask.shapes).popcount()

    def _extra_state(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "target": self.target}

    def _load_extra_state(self, state_dict: Mapping[str, Any]) -> None:
        self.threshold, self.target = state_dict["threshold"], state_dict["target"]
