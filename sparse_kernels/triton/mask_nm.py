"""mask_nm_: the n best of every m consecutive entries of a row, or of a column.

An entry is chosen where fewer than n of its group are better: their key is larger, or equal at a
lower index. Twins: reference/mask_nm.py, csrc/functors/mask_nm.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import philox
from ._keys import ordered_keys, random_keys, stream_args
from ._launch import (
    TILE,
    address_table,
    int64_table,
    launch,
    locate,
    make_plan,
    pointer_to,
    storage_type,
)
from ._masks import pack_bits


@triton.jit
def _keys_at(score_ptr, k0, k1, first, element, inside, KIND: tl.constexpr):
    """Keys of any elements (int64) of a tensor whose first one has the global index ``first``."""
    if KIND == "random":
        return random_keys(first + element, k0, k1)
    return ordered_keys(tl.load(score_ptr + element, mask=inside, other=0.0), KIND)


@triton.jit(do_not_specialize=["n", "m", "key_ptr"])
def _mask_nm_kernel(
    scores_ptr, key_ptr, firsts_ptr, heights_ptr, widths_ptr, words_ptr, rows_ptr, numels_ptr, n, m,
    TYPE: tl.constexpr, KIND: tl.constexpr, ALONG_ROWS: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    score_ptr = pointer_to(scores_ptr, tensor, 0, TYPE)
    word_ptr = pointer_to(words_ptr, tensor, first // 32, tl.int32)
    width = tl.load(widths_ptr + tensor)
    length, stride = width, 1
    if not ALONG_ROWS:
        length, stride = tl.load(heights_ptr + tensor), width
    k0, k1, index = 0, 0, 0
    if KIND == "random":
        k0, k1 = philox.key_words(key_ptr)
        index = tl.load(firsts_ptr + tensor)
    words = tl.arange(0, BLOCK // 32)
    for block in range(0, count, BLOCK):
        offsets = block + tl.arange(0, BLOCK)
        element, inside = first + offsets, offsets < count
        place = element % width if ALONG_ROWS else element // width
        own = place % m
        group = tl.where(m < length - place + own, m, length - place + own)  # the last may be short
        keys = _keys_at(score_ptr, k0, k1, index, element, inside, KIND)
        better = tl.zeros((BLOCK,), tl.int64)
        for j in range(tl.where(m < length, m, length)):
            there = inside & (j < group)
            rival = element + (j - own) * stride
            others = _keys_at(score_ptr, k0, k1, index, rival, there, KIND)
            wins = (others > keys) | ((others == keys) & (j < own))
            better += (there & wins).to(tl.int64)
        chosen = pack_bits(inside & (better < n))
        tl.store(word_ptr + block // 32 + words, chosen, mask=block + 32 * words < count)


def mask_nm_triton(
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
    """Write the bit masks ``words``, one launch for the list."""
    plan = make_plan(scores, TILE)
    if plan.programs == 0:
        return
    device = scores[0].device
    launch(
        _mask_nm_kernel, (plan.programs,), device,
        address_table(scores), *stream_args(key, firsts, device), int64_table(tuple(rows), device),
        int64_table(tuple(cols), device), address_table(words), plan.rows, plan.numels, n, m,
        TYPE=storage_type(scores[0].dtype), KIND=kind, ALONG_ROWS=along_rows, SIZE=TILE,
        BLOCK=512, num_warps=8,
    )  # fmt: skip
