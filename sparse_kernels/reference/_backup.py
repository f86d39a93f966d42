"""Where the unperturbed bits of a list of parameters are kept.

Whole: ``backup[i]`` is a copy of parameter i. Packed: ``backup`` is one flat tensor that holds the
entries with mask bit 1 alone; entry e of parameter i stands at
``ranks[i][e // RANK_TILE] + (ones of mask i between the tile's first entry and e)``.
"""

from __future__ import annotations

from torch import Tensor

from ._common import RANK_TILE, keep_bits, store


def _places(keep: Tensor, ranks: Tensor) -> Tensor:
    """Index into the packed tensor of every entry with bit 1, in order."""
    entries = keep.nonzero().reshape(-1)
    tile = entries // RANK_TILE
    before = keep.cumsum(0) - keep.long()  # ones of the tensor before each entry
    return ranks[tile] + before[entries] - before[tile * RANK_TILE]


def save(
    param: Tensor, i: int, masks: list[Tensor], backup: list[Tensor], ranks: list[Tensor]
) -> None:
    """Copy the bits of parameter i into its backup, if there is one."""
    if not backup:
        return
    if not ranks:
        backup[i].copy_(param)
        return
    keep = keep_bits(masks[i], param.numel())
    backup[0][_places(keep, ranks[i])] = param.reshape(-1)[keep]


def unperturbed(
    param: Tensor, i: int, masks: list[Tensor], backup: list[Tensor], ranks: list[Tensor]
) -> Tensor:
    """The bits of parameter i before the perturbation, a new tensor of its shape."""
    if not masks:
        return backup[i].reshape(param.shape).clone()
    keep = keep_bits(masks[i], param.numel())
    original = param.clone()
    if ranks:
        original.reshape(-1)[keep] = backup[0][_places(keep, ranks[i])]
    else:
        store(original, backup[i], keep)
    return original
