"""Exact global selection of the k best entries of a list, without a sort and without indices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .._check import bump_versions, words_for
from ..reference._common import chunks_of
from ..reference._keys import value_of_key
from ._ranked import Ranked
from ._scalars import device_numbers

DIGIT = 11  # bits of the key per histogram


class _Pools:
    """Per-pool numbers on the home device, and how the groups' pools and chunks map to them."""

    def __init__(self, ranked: Ranked, ks: list[int], home: torch.device) -> None:
        self.single = len(ks) == 1
        self.home = home
        self.left = device_numbers(ks, torch.int64, home)
        self.prefix = torch.zeros_like(self.left)
        self.chunks = [chunks_of(s.numel()) for s in ranked.scores]

    def part(self, values: Tensor, indices: list[int], device: torch.device) -> Tensor:
        """The pools of some tensors, on their device."""
        if not self.single and len(indices) != values.numel():
            values = values[device_numbers(indices, torch.int64, values.device)]
        return values.to(device).contiguous()

    def pick(self, histogram: Tensor, bits: int) -> None:
        """Append to each prefix the digit in which its k-th largest key lies.

        ``left`` becomes the number still to be taken among the keys with that prefix.
        """
        below = histogram.cumsum(1)  # keys with this digit or a smaller one
        total = below[:, -1:]
        # the first digit that leaves fewer than k keys above it; the last one for k = 0, and the
        # first where there are fewer candidates than k: all of them
        digit = torch.searchsorted(below, total - self.left.unsqueeze(1), right=True)
        digit = digit.clamp(max=below.shape[1] - 1)
        self.left = self.left - (total - below.gather(1, digit)).squeeze(1)
        digit = digit.squeeze(1)
        self.prefix = (self.prefix << bits) | digit

    def ties_before(self, counts: Tensor) -> Tensor:
        """Ties in earlier chunks of the pool, per chunk, from ties per chunk."""
        before = counts.cumsum(0) - counts
        if self.single:
            return before
        starts = [0, *itertools.accumulate(self.chunks)]
        own = [at for at, n in zip(starts, self.chunks, strict=False) for _ in range(n)]
        return before - before[device_numbers(own, torch.int64, self.home)]

    def part_of_chunks(self, values: Tensor, indices: list[int], device: torch.device) -> Tensor:
        """The chunks of some tensors, on their device."""
        if len(indices) != len(self.chunks):
            parts = values.split(self.chunks)
            values = torch.cat([parts[i] for i in indices])
        return values.to(device)


def mask_topk(
    scores: Sequence[Tensor],
    k: int | Sequence[int],
    *,
    kind: str = "value",
    key: int | None = None,
    among: Sequence[Tensor] | None = None,
    inverted: bool = False,
    out: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """Bit masks of the k largest scores of a list, exactly k of them.

    Order: score descending, then global index (tensors in list order, each flattened row-major)
    ascending; NaN ranks below -inf, -0.0 equals +0.0. A radix select: three histogram passes over
    the scores (six for float64) and one that writes; ties are counted per chunk of 65,536 entries.
    Memory beyond scores and bits: 16 bytes per chunk and 16 KiB per selection. No value comes to
    the host.

    Args:
        scores: tensors of any shapes; float32, bfloat16, float16 or float64. Not modified.
        k: number of ones over the whole list, or one number per tensor (selected separately).
            Where there are fewer candidates, all of them.
        kind: "value": rank by the score; "abs": by its magnitude; "random": by 32-bit numbers of
            the counter-based stream, of the scores only the shapes are used.
        key: of the stream, in [0, 2^64), for kind "random"; the same key gives the same mask on
            every device.
        among: int32 bit masks; only entries with bit 1 are candidates.
        inverted: candidates are the entries with bit 0 instead.
        out: int32 bit masks that take the result by OR (mutated); default new ones.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        int32 bit masks as ``pack_mask`` makes them, one per tensor, on its device (``out`` if
        given).

    Raises:
        ValueError: lists do not fit, k or the key is out of range.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> mask_topk([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 2.0])], 2)
        [tensor([2], dtype=torch.int32), tensor([1], dtype=torch.int32)]
    """
    op = "mask_topk"
    ranked = Ranked(op, scores, kind, key, {"among": among, "out": out}, backend)
    ks = _checked_counts(op, ranked, k)
    words = list(out) if out is not None else _empty_words(ranked)
    if not ranked.scores:
        return words
    pools = _threshold(ranked, ks, inverted)
    parts: list[Tensor] = [pools.left] * len(words)
    counts = None
    for g, first in ranked.groups("topk_write_"):
        own = g.lists["out"] or [words[i] for i in g.indices]
        threshold = pools.part(pools.prefix, g.indices, g.device)
        ties = g.run(*first, g.lists["among"], inverted, threshold, own, out is not None)
        counts = ties.to(pools.home)
        if len(g.indices) < len(words):
            split = counts.split([pools.chunks[i] for i in g.indices])
            for i, part in zip(g.indices, split, strict=True):
                parts[i] = part
            counts = None
    counts = torch.cat(parts) if counts is None else counts
    before = pools.ties_before(counts)
    for g, first in ranked.groups("topk_ties_"):
        per_pool = [pools.part(v, g.indices, g.device) for v in (pools.prefix, pools.left)]
        per_chunk = [pools.part_of_chunks(v, g.indices, g.device) for v in (counts, before)]
        g.run(
            *first, g.lists["among"], inverted, per_pool[0], *per_chunk, per_pool[1],
            g.lists["out"] or [words[i] for i in g.indices],
        )  # fmt: skip
    if out is not None:
        bump_versions(ranked.args)
    return words


def _threshold(ranked: Ranked, ks: list[int], inverted: bool) -> _Pools:
    """Find the key of the k-th largest candidate, from the most significant digit on."""
    pools = _Pools(ranked, ks, ranked.scores[0].device)
    shift = ranked.key_bits
    while shift > 0:
        bits = min(DIGIT, shift)
        shift -= bits
        total = None
        for g, first in ranked.groups("topk_histogram"):
            prefix = pools.part(pools.prefix, g.indices, g.device)
            part = g.run(*first, g.lists["among"], inverted, prefix, shift, bits).to(pools.home)
            if pools.single:
                total = part if total is None else total + part
            elif len(g.indices) == len(ks):
                total = part
            else:
                if total is None:
                    total = part.new_zeros((len(ks), 1 << bits))
                total[device_numbers(g.indices, torch.int64, pools.home)] = part
        assert total is not None
        pools.pick(total, bits)
    return pools


def kth_largest(
    scores: Sequence[Tensor], k: int, *, kind: str = "value", backend: str | None = None
) -> Tensor:
    """The k-th largest of all scores of a list.

    The radix select of ``mask_topk`` without the pass that writes: three reads of the scores (six
    for float64), 16 KiB of memory, no value to the host.

    Args:
        scores: tensors of any shapes; float32, bfloat16, float16 or float64. Not modified.
        k: in [1, number of entries].
        kind: "value" or "abs": of the scores or of their magnitudes.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor on the first score's device, float64 if any score is, else float32. NaN if the
        k-th is one: they rank below -inf.

    Raises:
        ValueError: lists do not fit, k is out of range, or another kind.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> kth_largest([torch.tensor([1.0, -3.0]), torch.tensor([2.0])], 2, kind="abs")
        tensor(2.)
    """
    op = "kth_largest"
    if kind not in ("value", "abs"):
        raise ValueError(f"{op}: kind must be 'value' or 'abs', got {kind!r}")
    ranked = Ranked(op, scores, kind, None, {"among": None}, backend)
    ks = _checked_counts(op, ranked, k)
    if len(ks) != 1 or ks[0] < 1:
        raise ValueError(f"{op}: k must be at least 1, got {k}")
    return value_of_key(_threshold(ranked, ks, False).prefix[0], ranked.key_bits)


def _checked_counts(op: str, ranked: Ranked, k: int | Sequence[int]) -> list[int]:
    sizes = [s.numel() for s in ranked.scores]
    ks = [k] if isinstance(k, int) else list(k)
    limits = [sum(sizes)] if isinstance(k, int) else sizes
    if len(ks) != len(limits):
        raise ValueError(f"{op}: {len(ks)} counts for {len(limits)} tensors")
    for value, limit in zip(ks, limits, strict=True):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise ValueError(f"{op}: k must be in [0, {limit}], got {value}")
    return ks


def _empty_words(ranked: Ranked) -> list[Tensor]:
    return [s.new_empty(words_for(s.numel()), dtype=torch.int32) for s in ranked.scores]
