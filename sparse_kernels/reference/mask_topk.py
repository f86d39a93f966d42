"""topk_histogram, topk_write_, topk_ties_: the passes of an exact global selection.

A pool is the whole list (one prefix, threshold, ...) or each tensor of its own (one per tensor).
The threshold of a pool, its k-th largest key, is found digit by digit from histograms; then the
keys above it are written, and of the keys equal to it the first in global order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._common import CHUNK_SIZE, chunks_of, keep_bits
from ._keys import digit, greater, key_bits, ordered_keys
from .mask_pack import mask_pack_ref


def _candidates(
    scores: list[Tensor],
    kind: str,
    key: Tensor | None,
    firsts: list[int],
    among: list[Tensor],
    inverted: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys of each tensor, and which of its entries may be selected."""
    for t, score in enumerate(scores):
        keys = ordered_keys(score, kind, key, firsts[t] if firsts else 0)
        if among:
            yield keys, keep_bits(among[t], keys.numel()) ^ inverted
        else:
            yield keys, torch.ones_like(keys, dtype=torch.bool)


def _of_pool(values: Tensor, t: int) -> Tensor:
    return values[0 if values.numel() == 1 else t]


def topk_histogram_ref(
    scores: list[Tensor],
    kind: str,
    key: Tensor | None,
    firsts: list[int],
    among: list[Tensor],
    inverted: bool,
    prefix: Tensor,
    shift: int,
    bits: int,
) -> Tensor:
    counts = prefix.new_zeros((prefix.numel(), 1 << bits))
    width = key_bits(scores[0].dtype, kind)
    for t, (keys, here) in enumerate(_candidates(scores, kind, key, firsts, among, inverted)):
        above = shift + bits
        if above < width:
            here = here & (digit(keys, above, width - above) == _of_pool(prefix, t))
        pool = 0 if prefix.numel() == 1 else t
        counts[pool] += torch.bincount(digit(keys, shift, bits)[here], minlength=1 << bits)
    return counts


def topk_write_ref(
    scores: list[Tensor],
    kind: str,
    key: Tensor | None,
    firsts: list[int],
    among: list[Tensor],
    inverted: bool,
    threshold: Tensor,
    words: list[Tensor],
    accumulate: bool,
) -> Tensor:
    counts = []
    for t, (keys, here) in enumerate(_candidates(scores, kind, key, firsts, among, inverted)):
        chosen = greater(keys, _of_pool(threshold, t)) & here
        ties = (keys == _of_pool(threshold, t)) & here
        padding = chunks_of(keys.numel()) * CHUNK_SIZE - keys.numel()
        counts.append(torch.nn.functional.pad(ties, (0, padding)).reshape(-1, CHUNK_SIZE).sum(1))
        _write(chosen, words[t], accumulate)
    return torch.cat(counts)


def topk_ties_ref(
    scores: list[Tensor],
    kind: str,
    key: Tensor | None,
    firsts: list[int],
    among: list[Tensor],
    inverted: bool,
    threshold: Tensor,
    counts: Tensor,
    before: Tensor,
    take: Tensor,
    words: list[Tensor],
) -> None:
    chunk = 0
    for t, (keys, here) in enumerate(_candidates(scores, kind, key, firsts, among, inverted)):
        ties = (keys == _of_pool(threshold, t)) & here
        number = ties.cumsum(0)  # of a tie within its tensor, from 1
        if keys.numel():
            number = number + before[chunk]
        _write(ties & (number <= _of_pool(take, t)), words[t], True)
        chunk += chunks_of(keys.numel())


def _write(chosen: Tensor, words: Tensor, accumulate: bool) -> None:
    new = torch.empty_like(words)
    mask_pack_ref([chosen], [new])
    words.copy_(words | new if accumulate else new)
