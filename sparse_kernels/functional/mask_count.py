"""Ones of bit masks, and where they stand when they are packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._check import ListArg, check_lists, check_tensor_list, grouped, tiles_for


def _check_masks(op: str, masks: Sequence[Tensor]) -> list[int]:
    """Tiles of every mask."""
    check_tensor_list(op, "masks", masks)
    for i, m in enumerate(masks):
        if m.dtype != torch.int32:
            raise ValueError(f"{op}: masks[{i}] is {m.dtype}, expected int32 words")
    return [tiles_for(32 * m.numel()) for m in masks]


def _count(op: str, masks: Sequence[Tensor], counts: Sequence[Tensor], backend: str | None) -> None:
    args = [ListArg("masks", masks), ListArg("counts", counts, kind="counts")]
    whole = check_lists(op, args, floating=False)
    for g in grouped("mask_count_", backend, args, ordered=True, whole=whole):
        g.run(g.lists["masks"], g.lists["counts"])


def count_ones(masks: Sequence[Tensor], *, backend: str | None = None) -> list[Tensor]:
    """Count the ones of every bit mask.

    Args:
        masks: int32 bit masks (``pack_mask``), padding bits 0.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        One int64 0-dim tensor per mask, on its device.

    Raises:
        ValueError: not a list of int32 tensors.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> count_ones(pack_mask([torch.tensor([True, False, True])]))
        [tensor(2)]
    """
    op = "count_ones"
    tiles = _check_masks(op, masks)
    counts = [m.new_empty(n, dtype=torch.int64) for m, n in zip(masks, tiles, strict=True)]
    _count(op, masks, counts, backend)
    return [c.sum() for c in counts]


def mask_ranks(masks: Sequence[Tensor], *, backend: str | None = None) -> list[Tensor]:
    """Tell where the entries with bit 1 stand when those of all masks are packed into one tensor.

    Args:
        masks: int32 bit masks (``pack_mask``) of one device, padding bits 0, in the order in which
            they are packed.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        One int64 tensor per mask: for every tile of 8,192 entries the number of ones before it, in
        its own mask and in those before. 1/1024 byte per entry.

    Raises:
        ValueError: not a list of int32 tensors, or several devices.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> masks = pack_mask([torch.tensor([True, False, True]), torch.tensor([True])])
        >>> mask_ranks(masks)
        [tensor([0]), tensor([2])]
    """
    return _ranks_and_total("mask_ranks", masks, backend)[0]


def _ranks_and_total(
    op: str, masks: Sequence[Tensor], backend: str | None
) -> tuple[list[Tensor], Tensor]:
    """What ``mask_ranks`` returns, and the number of all ones."""
    tiles = _check_masks(op, masks)
    if not masks:
        return [], torch.zeros((), dtype=torch.int64)
    if any(m.device != masks[0].device for m in masks):
        raise ValueError(f"{op}: the masks are on several devices")
    flat = masks[0].new_empty(1 + sum(tiles), dtype=torch.int64)
    flat[0] = 0
    _count(op, masks, flat[1:].split(tiles), backend)
    before = flat.cumsum(0)
    return list(before[:-1].split(tiles)), before[-1]
