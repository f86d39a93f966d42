"""live_mask_, mask_index_, gather_entries_, scatter_entries_: the entries of a support.

Entries are moved as integers of their size, so that no NaN payload can change on the way. What a
number of an index would move from or to outside of its tensor is left out.
Twins: reference/compaction.py, csrc/functors/compaction.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._backup import load_block
from ._bregman import lower_bound, shrink
from ._launch import (
    TILE,
    address_table,
    f32,
    int64_table,
    is_aligned,
    launch,
    locate,
    make_plan,
    pointer_to,
    quotients,
    storage_type,
    whole_blocks,
)
from ._masks import pack_bits
from .mask_count import _WORDS, _ones

_INTEGERS = {2: tl.int16, 4: tl.int32, 8: tl.int64}
# values of a program that moves entries: most wait for one far away each, so programs are short
# and there are many
_MOVED = 1024


@triton.jit(do_not_specialize=["lower", "lam"])
def _live_mask_kernel(
    duals_ptr, words_ptr, rows_ptr, numels_ptr, lower, lam, TYPE: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    dual_ptr = pointer_to(duals_ptr, tensor, first, TYPE)
    word_ptr = pointer_to(words_ptr, tensor, first // 32, tl.int32)
    words = tl.arange(0, BLOCK // 32)
    done = whole_blocks(count, is_aligned(dual_ptr), BLOCK)
    for block in range(0, done, BLOCK):
        live = shrink(load_block(dual_ptr, block, count, BLOCK, True), lower, lam) != 0.0
        tl.store(word_ptr + block // 32 + words, pack_bits(live))
    for block in range(done, count, BLOCK):  # past the end there are zeros, which are not live
        live = shrink(load_block(dual_ptr, block, count, BLOCK, False), lower, lam) != 0.0
        here = block + 32 * words < count
        tl.store(word_ptr + block // 32 + words, pack_bits(live), mask=here)


@triton.jit
def _within(place, SIZE: tl.constexpr):
    """The nearest of 0 ... SIZE (int32)."""
    return tl.where(place < 0, 0, tl.where(place < SIZE, place, SIZE)).to(tl.int32)


@triton.jit
def _mask_index_kernel(
    words_ptr, ranks_ptr, index_ptr, sizes_ptr, rows_ptr, numels_ptr, WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, WORDS)
    word_ptr = pointer_to(words_ptr, tensor, first, tl.uint32)
    rank_ptr = pointer_to(ranks_ptr, tensor, 0, tl.int64)
    place = tl.load(rank_ptr + first // WORDS) - tl.load(rank_ptr)
    out_ptr = pointer_to(index_ptr, tensor, place, tl.int32)
    # a table that does not belong to this mask must not lead outside of the index
    begin = _within(-place, 32 * WORDS)
    end = _within(tl.load(sizes_ptr + tensor) - place, 32 * WORDS)
    lanes, bits = tl.arange(0, BLOCK), tl.arange(0, 32)
    below = (1 << bits).to(tl.uint32) - 1  # the bits before each
    done = 0
    for block in range(0, count, BLOCK):
        words = tl.load(word_ptr + block + lanes, mask=block + lanes < count, other=0)
        ones = _ones(words).to(tl.int32)
        before = done + tl.cumsum(ones, axis=0) - ones
        places = before[:, None] + _ones(words[:, None] & below[None, :]).to(tl.int32)
        held = ((words[:, None] >> bits[None, :].to(tl.uint32)) & 1) != 0
        held = held & (places >= begin) & (places < end)
        entries = 32 * (first + block + lanes).to(tl.int32)[:, None] + bits[None, :]
        tl.store(out_ptr + places, entries, mask=held)
        done += tl.sum(ones, axis=0)


@triton.jit
def _move_entries_kernel(
    tensors_ptr, index_ptr, values_ptr, runs_ptr, sizes_ptr, rows_ptr, numels_ptr,
    TYPE: tl.constexpr, RUNS: tl.constexpr, SCATTER: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    tensor_ptr = pointer_to(tensors_ptr, tensor, 0, TYPE)
    value_ptr = pointer_to(values_ptr, tensor, first, TYPE)
    size = tl.load(sizes_ptr + tensor)
    offsets = tl.arange(0, SIZE)
    here = offsets < count
    if RUNS:
        run = tl.load(runs_ptr + tensor)
        rest = first % run
        steps = quotients(rest, offsets, run, SIZE)
        entry_ptr = pointer_to(index_ptr, tensor, first // run, tl.int32)
        entry = tl.load(entry_ptr + steps, mask=here, other=-1).to(tl.int64)
        element = (entry - steps) * run + rest + offsets
        here = (entry >= 0) & (entry < size // run)
    else:
        entry_ptr = pointer_to(index_ptr, tensor, first, tl.int32)
        element = tl.load(entry_ptr + offsets, mask=here, other=-1).to(tl.int64)
        here = (element >= 0) & (element < size)
    if SCATTER:
        tl.store(tensor_ptr + element, tl.load(value_ptr + offsets, mask=here), mask=here)
    else:
        tl.store(value_ptr + offsets, tl.load(tensor_ptr + element, mask=here), mask=here)


def live_mask_triton(
    duals: list[Tensor], words: list[Tensor], lam: float, nonnegative: bool
) -> None:
    """Write the bit masks ``words``, one launch for the list."""
    plan = make_plan(duals, TILE)
    if plan.programs:
        launch(
            _live_mask_kernel, (plan.programs,), duals[0].device, address_table(duals),
            address_table(words), plan.rows, plan.numels,
            f32(lower_bound(lam, nonnegative)), f32(lam),
            TYPE=storage_type(duals[0].dtype), SIZE=TILE, BLOCK=2048, num_warps=4,
        )  # fmt: skip


def mask_index_triton(words: list[Tensor], ranks: list[Tensor], index: list[Tensor]) -> None:
    """Write ``index``, one launch for the list."""
    plan = make_plan(words, _WORDS)
    if plan.programs:
        device = words[0].device
        sizes = int64_table(tuple(out.numel() for out in index), device)
        launch(
            _mask_index_kernel, (plan.programs,), device, address_table(words),
            address_table(ranks), address_table(index), sizes, plan.rows, plan.numels,
            WORDS=_WORDS, BLOCK=64, num_warps=4,
        )  # fmt: skip


def _move_entries(
    tensors: list[Tensor], index: list[Tensor], runs: list[int], values: list[Tensor], scatter: bool
) -> None:
    size = tensors[0].element_size()
    if size not in _INTEGERS:
        raise TypeError(f"the Triton kernels move 2, 4 or 8 bytes, got {tensors[0].dtype}")
    plan = make_plan(values, _MOVED)
    if plan.programs:
        device = tensors[0].device
        sizes = int64_table(tuple(t.numel() for t in tensors), device)
        launch(
            _move_entries_kernel, (plan.programs,), device, address_table(tensors),
            address_table(index), address_table(values), int64_table(tuple(runs), device), sizes,
            plan.rows, plan.numels, TYPE=_INTEGERS[size], RUNS=any(run != 1 for run in runs),
            SCATTER=scatter, SIZE=_MOVED, num_warps=4,
        )  # fmt: skip


def gather_entries_triton(
    tensors: list[Tensor], index: list[Tensor], runs: list[int], values: list[Tensor]
) -> None:
    """Write ``values``, one launch for the list."""
    _move_entries(tensors, index, runs, values, False)


def scatter_entries_triton(
    tensors: list[Tensor], index: list[Tensor], runs: list[int], values: list[Tensor]
) -> None:
    """Write the entries of ``tensors`` that ``index`` names, one launch for the list."""
    _move_entries(tensors, index, runs, values, True)
