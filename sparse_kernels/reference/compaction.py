"""live_mask_, mask_index_, gather_entries_, scatter_entries_: the entries of a support."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import RANK_TILE, keep_bits, to_opmath
from .bregman_step import shrink
from .mask_pack import mask_pack_ref


def live_mask_ref(duals: list[Tensor], words: list[Tensor], lam: float, nonnegative: bool) -> None:
    mask_pack_ref([shrink(to_opmath(dual), lam, nonnegative) != 0 for dual in duals], words)


def mask_index_ref(words: list[Tensor], ranks: list[Tensor], index: list[Tensor]) -> None:
    for word, rank, out in zip(words, ranks, index, strict=True):
        bits = keep_bits(word, 32 * word.numel())
        ones = bits.nonzero().reshape(-1)
        # where the ranks say, so that a table that does not belong to the mask shows
        first = rank[ones // RANK_TILE] - (rank[0] if rank.numel() else 0)
        within = torch.arange(ones.numel(), device=ones.device)
        tile_first = torch.searchsorted(ones, ones // RANK_TILE * RANK_TILE)
        places = first + within - tile_first
        inside = (places >= 0) & (places < out.numel())
        out[places[inside]] = ones[inside].to(out.dtype)


def _positions(index: Tensor, run: int) -> Tensor:
    """Entries of the runs that ``index`` numbers."""
    within = torch.arange(run, device=index.device)
    return (index.long().reshape(-1, 1) * run + within).reshape(-1)


def gather_entries_ref(
    tensors: list[Tensor], index: list[Tensor], runs: list[int], values: list[Tensor]
) -> None:
    for tensor, where, run, out in zip(tensors, index, runs, values, strict=True):
        out.copy_(tensor.reshape(-1)[_positions(where, run)].reshape(out.shape))


def scatter_entries_ref(
    tensors: list[Tensor], index: list[Tensor], runs: list[int], values: list[Tensor]
) -> None:
    for tensor, where, run, value in zip(tensors, index, runs, values, strict=True):
        tensor.view(-1)[_positions(where, run)] = value.reshape(-1)
