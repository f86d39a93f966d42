"""Where the weights are while they are perturbed: whole copies, or the masked entries packed."""

from __future__ import annotations

import operator
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import mask_ranks, restore_

from ._bitmask import BitMask
from ._support import same_tensors

Place = tuple[torch.device, torch.dtype]
_kind = operator.attrgetter("shape", "dtype", "device")
_place = operator.attrgetter("device", "dtype")


@dataclass(frozen=True)
class Moved:
    """Parameters moved by one call, and what restores them.

    Attributes:
        params: the parameters.
        backup: a copy of each, or one packed tensor.
        masks: packed words of what was moved; None: everything.
        ranks: of a packed backup.
    """

    params: list[Tensor]
    backup: list[Tensor] | Tensor
    masks: list[Tensor] | None = None
    ranks: list[Tensor] | None = None

    def restore(self, backend: str) -> None:
        """Copy the bits back."""
        restore_(self.params, self.backup, self.masks, ranks=self.ranks, backend=backend)

    def arguments(self) -> dict[str, Any]:
        """backup, masks and ranks by name."""
        return {"backup": self.backup, "masks": self.masks, "ranks": self.ranks}

    def of(self, ids: Container[int]) -> bool:
        """Whether the ``id`` of every tensor of it is among these."""
        return all(id(p) in ids for p in self.params)

    def at(self, indices: Sequence[int]) -> Moved:
        """The part over some of the parameters, by their places."""
        if len(indices) == len(self.params):
            return self

        def part(values: list[Tensor] | None) -> list[Tensor] | None:
            return None if values is None else [values[i] for i in indices]

        backup = self.backup if isinstance(self.backup, Tensor) else part(self.backup)
        assert backup is not None
        return Moved([self.params[i] for i in indices], backup, part(self.masks), part(self.ranks))


class WholeBackup:
    """One copy per parameter, allocated once and used in every step."""

    def __init__(self) -> None:
        self._copies: dict[Tensor, Tensor] = {}
        self._last: tuple[list[Tensor], list[tuple], list[Tensor]] = ([], [], [])

    def of(self, params: Sequence[Tensor]) -> list[Tensor]:
        kinds = list(map(_kind, params))
        if same_tensors(params, self._last[0]) and kinds == self._last[1]:
            return self._last[2]
        for p, kind in zip(params, kinds, strict=True):
            if p not in self._copies or _kind(self._copies[p]) != kind:
                self._copies[p] = torch.empty_like(p, requires_grad=False)
        self._last = list(params), kinds, [self._copies[p] for p in params]
        return self._last[2]

    def keep(self, params: Sequence[Tensor]) -> None:
        """Give back the memory of all others."""
        self._copies = {p: self._copies[p] for p in params}
        if not same_tensors(params, self._last[0]):
            self._last = [], [], []


class PackedBackup:
    """The entries of a mask in one flat tensor per device and dtype: itemsize bytes per entry.

    Args:
        params: parameters of the mask.
        mask: what is perturbed. Its ones are counted here, which reads the device once.
    """

    def __init__(self, params: Sequence[Tensor], mask: BitMask) -> None:
        counts = mask.popcount()
        self.live = sum(counts)
        self._words = dict(zip(params, mask.words, strict=True))
        self._at = {p: _place(p) for p in params}
        self._last: tuple[list[Tensor], list[Place], list[Moved]] = ([], [], [])
        self._ranks: dict[Tensor, Tensor] = {}
        self._sizes: dict[Place, int] = {}
        self._buffers: dict[Place, Tensor] = {}
        places: dict[Place, list[int]] = {}
        for i, p in enumerate(params):
            places.setdefault((p.device, p.dtype), []).append(i)
        for place, at in places.items():
            ranks = mask_ranks([mask.words[i] for i in at])
            self._ranks.update(zip((params[i] for i in at), ranks, strict=True))
            self._sizes[place] = sum(counts[i] for i in at)

    def inherit(self, old: PackedBackup | None) -> None:
        """Use the buffers of the mask before where they have the right size."""
        if old is not None:
            self._buffers = {
                place: b for place, b in old._buffers.items() if b.numel() == self._sizes.get(place)
            }

    def fits(self, params: Sequence[Tensor]) -> bool:
        """Whether it has room for parameters as they are now: one may have been converted since."""
        return self._same(params) or all(self._at.get(p) == _place(p) for p in params)

    def _same(self, params: Sequence[Tensor]) -> bool:
        """Whether these are what was split last."""
        known, places, _ = self._last
        return same_tensors(params, known) and list(map(_place, params)) == places

    def words(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [self._words[p] for p in params]

    def split(self, params: Sequence[Tensor]) -> list[Moved]:
        """The parameters by device and dtype, each part with its buffer."""
        if self._same(params):
            return list(self._last[2])
        places: dict[Place, list[Tensor]] = {}
        for p in params:
            places.setdefault(_place(p), []).append(p)
        parts = []
        for (device, dtype), own in places.items():
            buffer = self._buffers.get((device, dtype))
            if buffer is None:
                size = self._sizes[device, dtype]
                buffer = torch.empty(size, dtype=dtype, device=device)
                self._buffers[device, dtype] = buffer
            parts.append(Moved(own, buffer, self.words(own), [self._ranks[p] for p in own]))
        self._last = list(params), list(map(_place, params)), parts
        return list(parts)


class Backups:
    """Memory of the exact mode, reused from probe to probe.

    Packed (itemsize bytes per entry that moves) where fewer than half of the entries move, else
    whole copies.
    """

    def __init__(self) -> None:
        self._whole = WholeBackup()
        self._packed: PackedBackup | None = None
        self._mask: BitMask | None = None

    def parts(self, local: list[Tensor], mask: BitMask | None, live: int) -> list[Moved]:
        """The tensors with room for their bits; ``live`` of their entries move."""
        if mask is not None and 2 * live < mask.numel:
            return self._pack(local, mask)
        return self.whole(local, None if mask is None else list(mask.words))

    def whole(self, local: list[Tensor], words: list[Tensor] | None) -> list[Moved]:
        """The tensors by device and dtype, with a copy of each."""
        self._packed = None
        places: dict[Place, list[int]] = {}
        for i, t in enumerate(local):
            places.setdefault((t.device, t.dtype), []).append(i)
        copies = self._whole.of(local)
        self._whole.keep(local)
        return [
            Moved(
                [local[i] for i in at],
                [copies[i] for i in at],
                None if words is None else [words[i] for i in at],
            )
            for at in places.values()
        ]

    def _pack(self, local: list[Tensor], mask: BitMask) -> list[Moved]:
        fresh = self._packed is None or not self._packed.fits(local)
        if fresh or self._mask is None or not same_tensors(self._mask.words, mask.words):
            old, self._packed = self._packed, PackedBackup(local, mask)
            self._packed.inherit(old)
            self._mask = mask
        self._whole.keep([])
        assert self._packed is not None
        return self._packed.split(local)
