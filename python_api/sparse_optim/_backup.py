"""Where the weights are while they are perturbed: whole copies, or the masked entries packed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import mask_ranks, restore_

from ._bitmask import BitMask
from ._support import same_tensors

Place = tuple[torch.device, torch.dtype]


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

    def of(self, params: Container[Tensor]) -> bool:
        """Whether its tensors are among these."""
        return all(p in params for p in self.params)

    def where(self, wanted: Callable[[Tensor], bool]) -> Moved | None:
        """The part over the wanted parameters; None if there is none."""
        at = [i for i, p in enumerate(self.params) if wanted(p)]
        if len(at) == len(self.params):
            return self

        def part(values: list[Tensor] | None) -> list[Tensor] | None:
            return None if values is None else [values[i] for i in at]

        if not at:
            return None
        backup = self.backup if isinstance(self.backup, Tensor) else part(self.backup)
        assert backup is not None
        return Moved([self.params[i] for i in at], backup, part(self.masks), part(self.ranks))


class WholeBackup:
    """One copy per parameter, allocated once and used in every step."""

    def __init__(self) -> None:
        self._copies: dict[Tensor, Tensor] = {}

    def of(self, params: Sequence[Tensor]) -> list[Tensor]:
        for p in params:
            b = self._copies.get(p)
            if b is None or b.shape != p.shape or b.dtype != p.dtype or b.device != p.device:
                self._copies[p] = torch.empty_like(p, requires_grad=False)
        return [self._copies[p] for p in params]

    def keep(self, params: Sequence[Tensor]) -> None:
        """Give back the memory of all others."""
        self._copies = {p: self._copies[p] for p in params}


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
        self._at = {p: (p.device, p.dtype) for p in params}
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

    def __contains__(self, param: Tensor) -> bool:
        """Whether it has room for a parameter as it is now: one may have been converted since."""
        return self._at.get(param) == (param.device, param.dtype)

    def words(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [self._words[p] for p in params]

    def split(self, params: Sequence[Tensor]) -> Iterator[Moved]:
        """The parameters by device and dtype, each part with its buffer."""
        places: dict[Place, list[Tensor]] = {}
        for p in params:
            places.setdefault((p.device, p.dtype), []).append(p)
        for (device, dtype), own in places.items():
            buffer = self._buffers.get((device, dtype))
            if buffer is None:
                size = self._sizes[device, dtype]
                buffer = torch.empty(size, dtype=dtype, device=device)
                self._buffers[device, dtype] = buffer
            yield Moved(own, buffer, self.words(own), [self._ranks[p] for p in own])


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
        fresh = self._packed is None or any(p not in self._packed for p in local)
        if fresh or self._mask is None or not same_tensors(self._mask.words, mask.words):
            old, self._packed = self._packed, PackedBackup(local, mask)
            self._packed.inherit(old)
            self._mask = mask
        self._whole.keep([])
        assert self._packed is not None
        return list(self._packed.split(local))
