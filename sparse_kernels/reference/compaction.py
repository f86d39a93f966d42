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


def _existing(op: str, tensors: list[Tensor], index: list[Tensor], runs: list[int]) -> list[Tensor]:
    """Which entries of every index lead to a run of its tensor; on the CPU all have to."""
    out = []
    for i, (tensor, where, run) in enumerate(zip(tensors, index, runs, strict=True)):
        count = tensor.numel() // run
        inside = (where >= 0) & (where < count)
        if where.device.type == "cpu" and not bool(inside.all()):
            unsigned = int((where.long() & 0xFFFFFFFF).max())  # as which a negative one is large
            worst = unsigned - 2**32 if unsigned >= 2**31 else unsigned
            raise RuntimeError(f"{op}: index[{i}] holds {worst}, outside of [0, {count})")
        out.append(inside)
    return out


def gather_entries_ref(
    tensors: list[Tensor], index: list[Tensor], runs: list[int], values: list[Tensor]
) -> None:
    existing = _existing("gather_entries_", tensors, index, runs)
    for tensor, where, run, out, inside in zip(tensors, index, runs, values, existing, strict=True):
        out.view(-1, run)[inside] = tensor.reshape(-1, run)[where[inside].long()]


def scatter_entries_ref(
    tensors: list[Tensor], index: list[Tensor], runs: list[int], values: list[Tensor]
) -> None:
    existing = _existing("scatter_entries_", tensors, index, runs)
    for tensor, where, run, value, inside in zip(
        tensors, index, runs, values, existing, strict=True
    ):
        tensor.view(-1, run)[where[inside].long()] = value.reshape(-1, run)[inside]
