"""mask_nm_: the n best of every m entries."""

from __future__ import annotations

import torch
from torch import Tensor

from ._keys import ordered_keys
from .mask_pack import mask_pack_ref

_SIGN64 = torch.iinfo(torch.int64).min


def mask_nm_ref(
    scores: list[Tensor],
    kind: str,
    key: Tensor | None,
    firsts: list[int],
    rows: list[int],
    cols: list[int],
    n: int,
    m: int,
    along_rows: bool,
    words: list[Tensor],
) -> None:
    for t, score in enumerate(scores):
        keys = ordered_keys(score, kind, key, firsts[t] if firsts else 0) ^ _SIGN64  # to signed
        grid = keys.reshape(rows[t], cols[t])
        lines = grid if along_rows else grid.t()  # groups are consecutive entries of a line
        chosen = torch.zeros_like(lines, dtype=torch.bool)
        for start in range(0, lines.shape[1], m):
            group = lines[:, start : start + m]  # the last one may be short
            best = group.argsort(dim=1, descending=True, stable=True)[:, :n]
            chosen[:, start : start + m].scatter_(1, best, True)
        mask_pack_ref([chosen if along_rows else chosen.t().contiguous()], [words[t]])
