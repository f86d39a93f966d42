"""topk_histogram, topk_write_, topk_ties_: the passes of an exact global selection.

A program has one chunk of one tensor; the k-th largest key is found digit by digit from histograms,
the keys above it are written, and of those equal to it the first in global order, by the number of
ties in the chunks before. Integer sums only, so the order of atomics is of no account.
Twins: reference/mask_topk.py, csrc/phases/select.h.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._keys import candidates, stream_args
from ._launch import (
    CHUNK_SIZE,
    Plan,
    address_table,
    launch,
    locate,
    make_plan,
    pointer_to,
    storage_type,
)
from ._masks import pack_bits


@triton.jit
def _of_pool(values_ptr, tensor, SINGLE: tl.constexpr):
    return tl.load(values_ptr if SINGLE else values_ptr + tensor)


@triton.jit(do_not_specialize=["shift", "prefix_ptr", "key_ptr"])
def _topk_histogram_kernel(
    scores_ptr, key_ptr, firsts_ptr, among_ptr, rows_ptr, numels_ptr, prefix_ptr, shift, counts_ptr,
    TYPE: tl.constexpr, KIND: tl.constexpr, HAS_AMONG: tl.constexpr, INVERTED: tl.constexpr,
    SINGLE: tl.constexpr, HAS_PREFIX: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    BINS: tl.constexpr = 1 << BITS
    found = tl.zeros((BINS,), tl.int32)
    for block in range(0, count, BLOCK):
        keys, here = candidates(
            scores_ptr, key_ptr, firsts_ptr, among_ptr, tensor, first, block, count,
            TYPE, KIND, HAS_AMONG, INVERTED, BLOCK,
        )  # fmt: skip
        keys = keys >> shift.to(tl.uint32)
        if HAS_PREFIX:
            prefix = _of_pool(prefix_ptr, tensor, SINGLE).to(tl.uint32)
            here = here & ((keys >> BITS) == prefix)
        found += tl.histogram((keys & (BINS - 1)).to(tl.int32), BINS, mask=here)
    if not SINGLE:
        counts_ptr += tensor.to(tl.int64) * BINS
    bins = tl.arange(0, BINS)
    tl.atomic_add(counts_ptr + bins, found.to(tl.int64), mask=found != 0, sem="relaxed")


@triton.jit(do_not_specialize=["threshold_ptr", "key_ptr"])
def _topk_write_kernel(
    scores_ptr, key_ptr, firsts_ptr, among_ptr, rows_ptr, numels_ptr, threshold_ptr, words_ptr,
    ties_ptr,
    TYPE: tl.constexpr, KIND: tl.constexpr, HAS_AMONG: tl.constexpr, INVERTED: tl.constexpr,
    SINGLE: tl.constexpr, ACCUMULATE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    threshold = _of_pool(threshold_ptr, tensor, SINGLE).to(tl.uint32)
    word_ptr = pointer_to(words_ptr, tensor, first // 32, tl.int32)
    words = tl.arange(0, BLOCK // 32)
    ties = tl.zeros((BLOCK,), tl.int32)
    for block in range(0, count, BLOCK):
        keys, here = candidates(
            scores_ptr, key_ptr, firsts_ptr, among_ptr, tensor, first, block, count,
            TYPE, KIND, HAS_AMONG, INVERTED, BLOCK,
        )  # fmt: skip
        ties += (here & (keys == threshold)).to(tl.int32)
        chosen = pack_bits(here & (keys > threshold))
        filled = block + 32 * words < count
        if ACCUMULATE:
            chosen = chosen | tl.load(word_ptr + block // 32 + words, mask=filled, other=0)
        tl.store(word_ptr + block // 32 + words, chosen, mask=filled)
    tl.store(ties_ptr + tl.program_id(0), tl.sum(ties, axis=0).to(tl.int64))


@triton.jit(do_not_specialize=["threshold_ptr", "counts_ptr", "before_ptr", "take_ptr", "key_ptr"])
def _topk_ties_kernel(
    scores_ptr, key_ptr, firsts_ptr, among_ptr, rows_ptr, numels_ptr, threshold_ptr, counts_ptr,
    before_ptr, take_ptr, words_ptr,
    TYPE: tl.constexpr, KIND: tl.constexpr, HAS_AMONG: tl.constexpr, INVERTED: tl.constexpr,
    SINGLE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    threshold = _of_pool(threshold_ptr, tensor, SINGLE).to(tl.uint32)
    take = _of_pool(take_ptr, tensor, SINGLE)
    before = tl.load(before_ptr + tl.program_id(0))
    # most chunks have no tie, or come after the last one that is taken: nothing of them is read
    wanted = (tl.load(counts_ptr + tl.program_id(0)) > 0) & (before < take)
    word_ptr = pointer_to(words_ptr, tensor, first // 32, tl.int32)
    words = tl.arange(0, BLOCK // 32)
    for block in range(0, tl.where(wanted, count, 0), BLOCK):
        keys, here = candidates(
            scores_ptr, key_ptr, firsts_ptr, among_ptr, tensor, first, block, count,
            TYPE, KIND, HAS_AMONG, INVERTED, BLOCK,
        )  # fmt: skip
        ties = (here & (keys == threshold)).to(tl.int32)
        number = before + tl.cumsum(ties, axis=0)  # of a tie within its pool, from 1
        chosen = pack_bits((ties != 0) & (number <= take))
        word = word_ptr + block // 32 + words
        tl.store(word, chosen | tl.load(word, mask=chosen != 0, other=0), mask=chosen != 0)
        before += tl.sum(ties, axis=0)


def _candidate_args(
    plan: Plan,
    scores: list[Tensor],
    kind: str,
    key: Tensor | None,
    firsts: list[int],
    among: list[Tensor],
    inverted: bool,
    pools: Tensor,
) -> tuple[tuple, dict[str, object]]:
    """What all three kernels take first, and the options they share."""
    args = (
        address_table(scores),
        *stream_args(key, firsts, scores[0].device),
        address_table(among),
        plan.rows,
        plan.numels,
    )
    options = {
        "TYPE": storage_type(scores[0].dtype),
        "KIND": kind,
        "HAS_AMONG": bool(among),
        "INVERTED": inverted,
        "SINGLE": pools.numel() == 1,
        "SIZE": CHUNK_SIZE,
    }
    return args, options


def topk_histogram_triton(
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
    """int64 [pools, 2^bits]: how often each digit follows the prefix, one launch for the list."""
    counts = prefix.new_zeros((prefix.numel(), 1 << bits))
    plan = make_plan(scores, CHUNK_SIZE)
    if plan.programs:
        args, options = _candidate_args(plan, scores, kind, key, firsts, among, inverted, prefix)
        launch(
            _topk_histogram_kernel, (plan.programs,), prefix.device, *args, prefix, shift, counts,
            **options, HAS_PREFIX=shift + bits < 32, BITS=bits, BLOCK=4096, num_warps=16,
        )  # fmt: skip
    return counts


def topk_write_triton(
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
    """Write the bits of keys above the threshold; int64 [chunks]: how many are equal to it."""
    plan = make_plan(scores, CHUNK_SIZE)
    ties = torch.empty(plan.programs, dtype=torch.int64, device=threshold.device)
    if plan.programs:
        args, options = _candidate_args(plan, scores, kind, key, firsts, among, inverted, threshold)
        launch(
            _topk_write_kernel, (plan.programs,), threshold.device, *args, threshold,
            address_table(words), ties, **options, ACCUMULATE=accumulate, BLOCK=4096, num_warps=16,
        )  # fmt: skip
    return ties


def topk_ties_triton(
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
    """Add the bits of the first ``take`` keys of a pool that are equal to its threshold."""
    plan = make_plan(scores, CHUNK_SIZE)
    if plan.programs:
        args, options = _candidate_args(plan, scores, kind, key, firsts, among, inverted, threshold)
        launch(
            _topk_ties_kernel, (plan.programs,), threshold.device, *args, threshold, counts, before,
            take, address_table(words), **options, BLOCK=2048, num_warps=16,
            maxnreg=80,
        )  # fmt: skip
