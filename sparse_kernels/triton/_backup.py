"""Where a program finds the unperturbed bits of its tile: a whole copy, or a packed backup.

Packed: one flat tensor holds the entries with mask bit 1 of all tensors; those of a tile stand in
order from ``ranks[tensor][tile]`` on. Twin: reference/_backup.py. Bits are moved as integers of the
element's size, so that no NaN payload can change on the way.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import TILE, narrow, pointer_to, storage_type, widen
from ._masks import load_where, mask_bits, mask_words, near_bits, spread_bits

_RANK_TILE: tl.constexpr = tl.constexpr(TILE)


def bits_type(dtype: torch.dtype) -> tl.dtype:
    """The integer of a parameter's size."""
    return tl.int32 if storage_type(dtype) == tl.float32 else tl.int16


def packed_size(backup: list[Tensor], ranks: list[Tensor]) -> int:
    """Entries of a packed backup; 0 where it is whole or absent."""
    return backup[0].numel() if ranks else 0


@triton.jit
def backup_of(
    backup_ptr, ranks_ptr, packed, tensor, first, SIZE: tl.constexpr, TYPE: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """Pointer to the backup of SIZE elements, a tile or several, and how many stand there (int32).

    The entries of a tensor's tiles follow each other, so the rank of the first tile is enough.
    """
    if PACKED:
        rank = tl.load(pointer_to(ranks_ptr, tensor, first // _RANK_TILE, tl.int64))
        # a table that does not belong to this backup must not lead outside of it
        left = tl.where((rank >= 0) & (rank < packed), packed - rank, 0)
        here, left = pointer_to(backup_ptr, 0, rank, TYPE), tl.where(left < SIZE, left, SIZE)
        return here, left.to(tl.int32)
    return pointer_to(backup_ptr, tensor, first, TYPE), SIZE


@triton.jit
def places_of(offsets, held, before, left, PACKED: tl.constexpr):
    """Where the entries of a block stand in the backup, which of them do, ones of the tile so far.

    ``held``: the backup holds this entry; ``before``: the ones of the tile before this block.
    """
    if PACKED:
        # the ones of a word stand side by side: a long scan would go through shared memory
        ones = tl.reshape(held.to(tl.int32), (held.shape[0] // 32, 32))
        words = tl.sum(ones, axis=1)
        starts = before + tl.cumsum(words, axis=0) - words
        places = tl.cumsum(ones, axis=1) - ones + starts[:, None]
        places = tl.reshape(places, (held.shape[0],))
        return places, held & (places < left), before + tl.sum(words, axis=0)
    return offsets, held, before


@triton.jit
def load_block(pointer, block, count, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """A block of a tile: by 16-byte accesses where it is WHOLE and aligned, else what is there."""
    lanes = tl.arange(0, BLOCK)
    if WHOLE:
        return tl.load(tl.multiple_of(pointer + block, 16) + lanes)
    return tl.load(pointer + block + lanes, mask=block + lanes < count, other=0)


@triton.jit
def store_block(pointer, value, block, count, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    if WHOLE:
        tl.store(tl.multiple_of(pointer + block, 16) + lanes, value)
    else:
        tl.store(pointer + block + lanes, value, mask=block + lanes < count)


@triton.jit
def original_bits(
    param_ptr, saved_ptr, words_ptr, block, count, before, left,
    HAS_MASK: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Bits of a block before the perturbation, and the ones of the tile up to its end."""
    if HAS_MASK:
        lanes = tl.arange(0, BLOCK)
        if WHOLE:
            words = mask_words(words_ptr, block, count, BLOCK)
            held = spread_bits(words)
        else:
            held = mask_bits(words_ptr, block + lanes, block + lanes < count)
        places, held, before = places_of(block + lanes, held, before, left, PACKED)
        bits = load_block(param_ptr, block, count, BLOCK, WHOLE)
        if WHOLE and not PACKED:
            near = near_bits(words, param_ptr.dtype.element_ty)
            saved = load_where(tl.multiple_of(saved_ptr + block, 16) + lanes, near)
        else:
            saved = load_where(saved_ptr + places, held)
        return tl.where(held, saved, bits), before
    return load_block(saved_ptr, block, count, BLOCK, WHOLE), before


@triton.jit
def floats_of(bits, TYPE: tl.constexpr):
    """float32 values of the bits of a parameter dtype."""
    return widen(bits.to(TYPE, bitcast=True))


@triton.jit
def bits_from(x, BITS: tl.constexpr, TYPE: tl.constexpr):
    """float32 to the bits of a parameter dtype, rounded to nearest even."""
    return narrow(x, TYPE).to(BITS, bitcast=True)


@triton.jit
def direction(grad_ptr, scale_ptr, sign, block, count, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """float32 gradients, unscaled and turned to descend."""
    g = widen(load_block(grad_ptr, block, count, BLOCK, WHOLE))
    if scale_ptr is not None:
        g = g * tl.load(scale_ptr)
    return sign * g
