"""Packed masks as registers of a program: bit i of word w is element 32 w + i.

Where a block is full and its tensors aligned, entries are moved by 16-byte accesses: those of one
access are loaded and stored together if any of them takes part, the others with the bits they have.
"""

import triton
import triton.language as tl


@triton.jit
def mask_bits(words_ptr, offsets, inside):
    """Bool per element of packed words, for any offsets; those not ``inside`` are False."""
    words = tl.load(words_ptr + (offsets >> 5), mask=inside, other=0)
    return ((words >> (offsets & 31)) & 1) != 0


@triton.jit
def pack_bits(flags):
    """int32 words [n / 32] from bools [n], the inverse of ``spread_bits``."""
    bits = tl.arange(0, 32)
    rows = tl.reshape(flags.to(tl.int32), (flags.shape[0] // 32, 32))
    # the bits of a word do not overlap, so their sum is their union
    return tl.sum(rows << bits[None, :], axis=1)


@triton.jit
def mask_words(words_ptr, block, count, BLOCK: tl.constexpr):
    """The int32 words [BLOCK / 32] of a block; 0 from element ``count`` on."""
    words = block // 32 + tl.arange(0, BLOCK // 32)
    return tl.load(words_ptr + words, mask=32 * words < count, other=0)


@triton.jit
def spread_bits(words):
    """Bools [32 n] from int32 words [n]: a thread loads a word once for all of its elements."""
    bits = (words[:, None] >> tl.arange(0, 32)[None, :]) & 1
    return tl.reshape(bits != 0, (32 * words.shape[0],))


@triton.jit
def near_bits(words, TYPE: tl.constexpr):
    """Bools [32 n]: whether any element of the same 16 bytes of a tensor of TYPE has its bit."""
    GROUP: tl.constexpr = 128 // TYPE.primitive_bitwidth
    groups = tl.arange(0, 32) & (32 - GROUP)
    near = (words[:, None] >> groups[None, :]) & ((1 << GROUP) - 1)
    return tl.max_constancy(tl.reshape(near != 0, (32 * words.shape[0],)), GROUP)


@triton.jit
def load_where(pointers, keep):
    """What is to ``keep``, else 0; everything where that is None."""
    return tl.load(pointers) if keep is None else tl.load(pointers, mask=keep, other=0)
