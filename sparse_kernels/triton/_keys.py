"""What a selection ranks by: a uint32 per entry, larger is better; see reference/_keys.py.

Everything after the conversion to float32 is integer arithmetic, so no mode of a device (flushed
denormals) can change an order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import philox
from ._launch import int64_table, is_aligned, pointer_to, whole_blocks, widen
from ._masks import load_where, mask_words, near_bits, spread_bits


def stream_args(
    key: Tensor | None, firsts: list[int], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Kernel arguments that name the random numbers: key and global indices of first entries."""
    return (None, None) if key is None else (key, int64_table(tuple(firsts), device))


@triton.jit
def ordered_keys(scores, KIND: tl.constexpr):
    """Keys of float scores in their order ("value"), or in that of their magnitudes ("abs")."""
    bits = widen(scores).to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    keys = magnitude | 0x80000000
    if KIND == "value":  # -0.0, the smallest negative number here, is left with +0.0
        keys = tl.where(bits > 0x80000000, 0x7FFFFFFF - magnitude, keys)
    return tl.where(magnitude > 0x7F800000, 0, keys)


@triton.jit
def _words_of(block, k0, k1):
    """The four words of Philox blocks (int64) under counter words 2 and 3 of 0."""
    zero = tl.zeros((), tl.uint32)
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    return philox.philox4x32(low, high, zero, zero, k0, k1, 10)


@triton.jit
def random_keys(index, k0, k1):
    """Word g mod 4 of Philox block g // 4, for any global indices g (int64)."""
    x0, x1, x2, x3 = _words_of(index >> 2, k0, k1)
    odd = (index & 1) != 0
    return tl.where((index & 2) != 0, tl.where(odd, x3, x2), tl.where(odd, x1, x0))


@triton.jit
def random_keys_from(first, k0, k1, BLOCK: tl.constexpr):
    """Keys of BLOCK consecutive global indices; one Philox call serves four where it can."""
    if first % 4 == 0:
        x0, x1, x2, x3 = _words_of(first // 4 + tl.arange(0, BLOCK // 4), k0, k1)
        keys = philox.in_order(x0, x1, x2, x3)
    else:
        keys = random_keys(first + tl.arange(0, BLOCK), k0, k1)
    return keys


@triton.jit
def candidates(
    scores_ptr, key_ptr, firsts_ptr, among_ptr, tensor, first, block, count,
    TYPE: tl.constexpr, KIND: tl.constexpr, HAS_AMONG: tl.constexpr, INVERTED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys of a block of the chunk from element ``first`` on, and which of it may be selected."""
    lanes = tl.arange(0, BLOCK)
    offsets = block + lanes
    here, near = offsets < count, None
    if HAS_AMONG:
        words_ptr = pointer_to(among_ptr, tensor, first // 32, tl.int32)
        words = mask_words(words_ptr, block, count, BLOCK)
        words = ~words if INVERTED else words
        here, near = here & spread_bits(words), near_bits(words, TYPE)
    if KIND == "random":
        k0, k1 = philox.key_words(key_ptr)
        keys = random_keys_from(tl.load(firsts_ptr + tensor) + first + block, k0, k1, BLOCK)
    else:
        score_ptr = pointer_to(scores_ptr, tensor, first, TYPE)
        if block < whole_blocks(count, is_aligned(score_ptr), BLOCK):
            scores = load_where(tl.multiple_of(score_ptr + block, 16) + lanes, near)
        else:
            scores = tl.load(score_ptr + offsets, mask=here, other=0.0)
        keys = ordered_keys(scores, KIND)
    return keys, here
