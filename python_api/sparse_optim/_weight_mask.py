"""Which weights exist: the mask M of a sparse training method, as the optimizers keep it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import mask_apply_

from ._bitmask import BitMask
from ._support import label, trainable

Masks = Sequence[Tensor | None] | BitMask


def checked_masks(
    where: str, groups: Sequence[dict[str, Any]], masks: Masks
) -> tuple[list[Tensor], BitMask]:
    """Trainable parameters in group order, and their masks packed; None means all ones.

    Raises:
        ValueError: number, shape, dtype or device of a mask does not fit, naming the parameter.
    """
    params = trainable(groups)
    given = list(masks.words) if isinstance(masks, BitMask) else list(masks)
    if len(given) != len(params):
        raise ValueError(f"{where}: {len(given)} masks for {len(params)} trainable parameters")
    words = []
    for i, (m, p) in enumerate(zip(given, params, strict=True)):
        what = f"{where}: the mask of {label(groups, p)}"
        if isinstance(masks, BitMask):
            check_fits(what, tuple(masks.shapes[i]), masks.words[i].device, p.shape, p.device)
            words.append(masks.words[i])
        elif m is None:
            words += BitMask.full([p]).words
        else:
            check_bool_mask(what, m, p.shape, p.device)
            words += BitMask.from_bool([m]).words
    return params, BitMask(words, [p.shape for p in params])


def check_bool_mask(what: str, mask: Any, shape: Sequence[int], device: torch.device) -> None:
    """ValueError, beginning with ``what``, unless it is a bool tensor of a shape on a device."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise ValueError(f"{what} is not a bool tensor")
    check_fits(what, mask.shape, mask.device, shape, device)


def check_fits(
    what: str, found: Sequence[int], where: torch.device, shape: Sequence[int],
    device: torch.device,
) -> None:  # fmt: skip
    """ValueError, beginning with ``what``, unless shape and device are those expected."""
    if tuple(found) != tuple(shape) or where != device:
        raise ValueError(
            f"{what} has shape {tuple(found)} on {where}, expected {tuple(shape)} on {device}"
        )


class MaskOfParams:
    """A packed mask over some parameters, by parameter; one added later is all ones."""

    def __init__(self) -> None:
        self.mask: BitMask | None = None
        self._words: dict[Tensor, Tensor] = {}
        self._live: dict[Tensor, int] = {}

    def take(self, params: Sequence[Tensor], mask: BitMask | None) -> None:
        """Use ``mask`` over ``params``; counted here once, so that no step asks the device."""
        self.mask = mask
        words, live = ([], []) if mask is None else (mask.words, mask.popcount())
        self._words = dict(zip(params, words, strict=False))
        self._live = dict(zip(params, live, strict=False))

    def __contains__(self, param: Tensor) -> bool:
        return param in self._words

    def words(self, params: Iterable[Tensor]) -> list[Tensor] | None:
        """Packed words of these parameters; None without a mask."""
        if self.mask is None:
            return None
        out = []
        for p in params:
            if p not in self._words:
                self._words[p] = BitMask.full([p]).words[0]
                self._live[p] = p.numel()
            out.append(self._words[p])
        return out

    def over(self, params: Sequence[Tensor]) -> BitMask | None:
        """The mask of these parameters; None without a mask."""
        words = self.words(params)
        return None if words is None else BitMask(words, [p.shape for p in params])

    def live(self, params: Sequence[Tensor]) -> int:
        """Entries of these parameters that exist."""
        self.words(params)
        return sum(p.numel() if self.mask is None else self._live[p] for p in params)

    def live_counts(self) -> dict[Tensor, int]:
        return dict(self._live) if self.mask is not None else {}

    @torch.no_grad()
    def clear(self, tensors: Sequence[Tensor], params: Sequence[Tensor], backend: str) -> None:
        """Write +0.0 where no weight exists; ``tensors`` go with ``params`` index by index."""
        words = self.words(params)
        if words:
            mask_apply_(tensors, words, backend=backend)

    def state(self, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Plain values for a checkpoint; parameters by their number."""
        index = {p: i for i, p in enumerate(p for g in groups for p in g["params"])}
        masked = [p for p in index if p in self._words]
        mask = self.over(masked)
        return {
            "mask": None if mask is None else mask.state(),
            "mask_params": [index[p] for p in masked],
        }

    @staticmethod
    def read(
        where: str, groups: Sequence[dict[str, Any]], state: dict[str, Any]
    ) -> tuple[list[Tensor], BitMask | None]:
        """What ``state`` wrote, for ``take``; ValueError if a shape does not fit."""
        if state.get("mask") is None:
            return [], None
        params = [p for g in groups for p in g["params"]]
        masked = [params[i] for i in state["mask_params"]]
        mask = BitMask.from_state(state["mask"], [p.device for p in masked])
        for p, shape in zip(masked, mask.shapes, strict=True):
            if tuple(p.shape) != shape:
                raise ValueError(f"{where}: the mask of {label(groups, p)} has shape {shape}")
        return masked, mask
