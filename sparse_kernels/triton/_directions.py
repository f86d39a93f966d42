"""Kernels of zo_combine_, zo_norm2 and zo_gram; mathematics and source in zo_combine.py."""

import triton
import triton.language as tl

from . import philox
from ._backup import backup_of, places_of
from ._launch import (
    CHUNK,
    ROW,
    is_aligned,
    locate,
    narrow,
    pointer_to,
    tree_sum,
    whole_blocks,
    widen,
)
from ._masks import load_where, mask_words, near_bits, spread_bits

# one compilation serves every seed, direction and number of directions, wherever they lie
_STREAM_ARGUMENTS = ["coef_ptr", "q", "key_ptr", "directions_ptr", "first_direction"]
_STREAM_ARGUMENTS += ["alpha_ptr", "gamma_ptr", "packed"]


@triton.jit
def _direction_word(directions_ptr, first_direction, k):
    if directions_ptr is None:
        word = first_direction + k
    else:
        word = tl.load(directions_ptr + k)
    return word.to(tl.uint32)


@triton.jit
def _index(firsts_ptr, tensor, first):
    """Index in the random stream (int64) of element ``first`` of a tensor."""
    if firsts_ptr is not None:
        first += tl.load(firsts_ptr + tensor)
    return first


@triton.jit
def _direction_sum(
    coef_ptr, q, directions_ptr, first_direction, k0, k1, uid, index,
    BLOCK: tl.constexpr, SIGNS: tl.constexpr, ROUNDS: tl.constexpr, ANYWHERE: tl.constexpr,
):  # fmt: skip
    """s of the BLOCK elements of one tensor from ``index`` (int64) of the stream on.

    ``index`` is a multiple of BLOCK, with ANYWHERE any number.
    """
    if SIGNS:
        s = tl.zeros((BLOCK,), tl.float32)
        for k in range(q):
            word = _direction_word(directions_ptr, first_direction, k)
            words = philox.sign_words_at(index, BLOCK // 128, uid, word, k0, k1, ROUNDS, ANYWHERE)
            # coef * z is exact, so adding it is the fma
            coef = tl.load(coef_ptr + k).to(tl.uint32, bitcast=True)
            s += (philox.sign_bits(words) ^ coef).to(tl.float32, bitcast=True)
    else:
        s0 = tl.zeros((BLOCK // 4,), tl.float32)
        s1, s2, s3 = s0, s0, s0
        for k in range(q):
            word = _direction_word(directions_ptr, first_direction, k)
            coef = tl.load(coef_ptr + k)
            z0, z1, z2, z3 = philox.normals_at(
                index, BLOCK // 4, uid, word, k0, k1, ROUNDS, ANYWHERE
            )
            s0 = tl.fma(z0, coef, s0)
            s1 = tl.fma(z1, coef, s1)
            s2 = tl.fma(z2, coef, s2)
            s3 = tl.fma(z3, coef, s3)
        s = philox.in_order(s0, s1, s2, s3)
    return s


@triton.jit
def _combined(src, s, alpha, gamma, HAS_ALPHA: tl.constexpr, HAS_GAMMA: tl.constexpr):
    x = widen(src)
    if HAS_ALPHA:
        x = alpha * x
    if HAS_GAMMA:
        s = gamma * s
    return x + s


@triton.jit
def _combine_whole(
    dst_ptr, from_ptr, saved_ptr, block, words, s, places, held, alpha, gamma, TYPE: tl.constexpr,
    HAS_SRC: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BACKUP: tl.constexpr, PACKED: tl.constexpr,
    HAS_ALPHA: tl.constexpr, HAS_GAMMA: tl.constexpr,
):  # fmt: skip
    """A full block of 16-byte aligned tensors; with a mask they are their own source."""
    lanes, near = tl.arange(0, s.shape[0]), None
    d16 = tl.multiple_of(dst_ptr + block, 16) + lanes
    if HAS_MASK:
        near = near_bits(words, TYPE)
    # a whole copy holds entries that keep their value too
    x = load_where(
        tl.multiple_of(from_ptr + block, 16) + lanes, None if HAS_BACKUP and not PACKED else near
    )
    if PACKED:
        tl.store(saved_ptr + places, x, mask=held)
    elif HAS_BACKUP:
        s16 = tl.multiple_of(saved_ptr + block, 16) + lanes
        tl.store(s16, tl.load(d16) if HAS_SRC else x)
    combined = narrow(_combined(x, s, alpha, gamma, HAS_ALPHA, HAS_GAMMA), TYPE)
    if HAS_MASK:
        tl.store(d16, tl.where(spread_bits(words), combined, x), mask=near)
    else:
        tl.store(d16, combined)


@triton.jit
def _combine_part(
    dst_ptr, from_ptr, saved_ptr, offsets, keep, places, held, s, alpha, gamma,
    TYPE: tl.constexpr, HAS_BACKUP: tl.constexpr, PACKED: tl.constexpr, HAS_ALPHA: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
):  # fmt: skip
    """Any block: what is to ``keep`` is written.

    What is ``held`` is backed up, at ``places``; without a backup it is a PACKED source that holds
    it there.
    """
    if HAS_BACKUP:
        tl.store(saved_ptr + places, tl.load(dst_ptr + offsets, mask=held, other=0.0), mask=held)
    if PACKED and not HAS_BACKUP:
        x, keep = tl.load(from_ptr + places, mask=held, other=0.0), held
    else:
        x = tl.load(from_ptr + offsets, mask=keep, other=0.0)
    x = narrow(_combined(x, s, alpha, gamma, HAS_ALPHA, HAS_GAMMA), TYPE)
    tl.store(dst_ptr + offsets, x, mask=keep)


@triton.jit(do_not_specialize=_STREAM_ARGUMENTS)
def _zo_combine_kernel(
    tensors_ptr, src_ptr, masks_ptr, backup_ptr, ranks_ptr, packed: tl.int64, rows_ptr, numels_ptr,
    coef_ptr, q, key_ptr, directions_ptr, first_direction, uids_ptr, firsts_ptr,
    alpha_ptr, gamma_ptr, partials_ptr,
    TYPE: tl.constexpr, SRC_TYPE: tl.constexpr, HAS_SRC: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_BACKUP: tl.constexpr, PACKED: tl.constexpr, HAS_ALPHA: tl.constexpr,
    HAS_GAMMA: tl.constexpr, SUMSQ: tl.constexpr, SIGNS: tl.constexpr, ROUNDS: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, SIZE)
    uid = tl.load(uids_ptr + tensor).to(tl.uint32)
    k0, k1 = philox.key_words(key_ptr)
    dst_ptr = pointer_to(tensors_ptr, tensor, first, TYPE)
    from_ptr, saved_ptr, before, left = dst_ptr, dst_ptr, 0, 0
    if HAS_SRC:
        from_ptr, left = backup_of(
            src_ptr, ranks_ptr, packed, tensor, first, SIZE, SRC_TYPE, PACKED and not HAS_BACKUP
        )
    if HAS_BACKUP:
        saved_ptr, left = backup_of(
            backup_ptr, ranks_ptr, packed, tensor, first, SIZE, TYPE, PACKED
        )
    alpha = tl.load(alpha_ptr + tensor) if HAS_ALPHA else 1.0
    gamma = tl.load(gamma_ptr + tensor) if HAS_GAMMA else 1.0
    aligned = is_aligned(dst_ptr) & is_aligned(from_ptr)
    if HAS_BACKUP and not PACKED:
        aligned = aligned & is_aligned(saved_ptr)
    words_ptr = pointer_to(masks_ptr, tensor, first // 32, tl.int32) if HAS_MASK else dst_ptr
    whole = whole_blocks(count, aligned, BLOCK)
    index = _index(firsts_ptr, tensor, first)
    acc = tl.zeros((BLOCK,), tl.float32)
    for block in range(0, count, BLOCK):
        offsets = block + tl.arange(0, BLOCK)
        inside = offsets < count
        keep, words = inside, 0
        if HAS_MASK:
            words = mask_words(words_ptr, block, count, BLOCK)
            keep = inside & spread_bits(words)
        # a whole copy holds entries that keep their value too
        places, held, before = places_of(offsets, keep if PACKED else inside, before, left, PACKED)
        s = _direction_sum(
            coef_ptr, q, directions_ptr, first_direction, k0, k1, uid, index + block,
            BLOCK, SIGNS, ROUNDS, firsts_ptr is not None,
        )  # fmt: skip
        if SUMSQ:
            acc += tl.where(keep, s * s, 0.0)
        if HAS_MASK and HAS_SRC:
            _combine_part(
                dst_ptr, from_ptr, saved_ptr, offsets, keep, places, held, s, alpha, gamma,
                TYPE, HAS_BACKUP, PACKED, HAS_ALPHA, HAS_GAMMA,
            )  # fmt: skip
        elif block < whole:
            _combine_whole(
                dst_ptr, from_ptr, saved_ptr, block, words, s, places, held, alpha, gamma, TYPE,
                HAS_SRC, HAS_MASK, HAS_BACKUP, PACKED, HAS_ALPHA, HAS_GAMMA,
            )  # fmt: skip
        else:
            _combine_part(
                dst_ptr, from_ptr, saved_ptr, offsets, keep, places, held, s, alpha, gamma,
                TYPE, HAS_BACKUP, PACKED, HAS_ALPHA, HAS_GAMMA,
            )  # fmt: skip
    if SUMSQ:
        tl.store(partials_ptr + tl.program_id(0), tree_sum(acc))


@triton.jit(do_not_specialize=_STREAM_ARGUMENTS)
def _zo_norm2_kernel(
    masks_ptr, rows_ptr, numels_ptr,
    coef_ptr, q, key_ptr, directions_ptr, first_direction, uids_ptr, firsts_ptr, partials_ptr,
    HAS_MASK: tl.constexpr, SIGNS: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    tensor, first, count = locate(rows_ptr, numels_ptr, CHUNK)
    uid = tl.load(uids_ptr + tensor).to(tl.uint32)
    k0, k1 = philox.key_words(key_ptr)
    index = _index(firsts_ptr, tensor, first)
    acc = tl.zeros((ROW,), tl.float32)
    for row in range(0, count, ROW):
        offsets = row + tl.arange(0, ROW)
        s = _direction_sum(
            coef_ptr, q, directions_ptr, first_direction, k0, k1, uid, index + row,
            ROW, SIGNS, ROUNDS, firsts_ptr is not None,
        )  # fmt: skip
        keep = offsets < count
        if HAS_MASK:
            words_ptr = pointer_to(masks_ptr, tensor, first // 32, tl.int32)
            keep = keep & spread_bits(mask_words(words_ptr, row, count, ROW))
        acc += tl.where(keep, s * s, 0.0)
    tl.store(partials_ptr + tl.program_id(0), tree_sum(acc))


@triton.jit
def _popcount(x):
    """Bits set in each uint32."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _sign_product(words_ptr, index, count, uid, dj, dk, k0, k1, HAS_MASK, ROUNDS, ANYWHERE):
    """<m z_j, m z_k> of one chunk of signs: live entries less twice those that differ."""
    CALLS: tl.constexpr = CHUNK // 128
    differ = philox.sign_words_at(index, CALLS, uid, dj, k0, k1, ROUNDS, ANYWHERE)
    differ = differ ^ philox.sign_words_at(index, CALLS, uid, dk, k0, k1, ROUNDS, ANYWHERE)
    lanes = tl.arange(0, CHUNK // 32)
    left = count - 32 * lanes
    live = tl.where(left >= 32, -1, (1 << tl.where(left > 0, left & 31, 0)) - 1)
    if HAS_MASK:
        live &= tl.load(words_ptr + lanes, mask=left > 0, other=0)
    live = live.to(tl.uint32, bitcast=True)
    return tl.sum(_popcount(live) - 2 * _popcount(differ & live), axis=0).to(tl.float32)


@triton.jit
def _normal_product(words_ptr, index, count, uid, dj, dk, k0, k1, HAS_MASK, ROUNDS, ANYWHERE):
    """<m z_j, m z_k> of one chunk of normals, in the summation order of a norm."""
    acc = tl.zeros((ROW,), tl.float32)
    for row in range(0, count, ROW):
        here = index + row
        a0, a1, a2, a3 = philox.normals_at(here, ROW // 4, uid, dj, k0, k1, ROUNDS, ANYWHERE)
        b0, b1, b2, b3 = philox.normals_at(here, ROW // 4, uid, dk, k0, k1, ROUNDS, ANYWHERE)
        offsets = row + tl.arange(0, ROW)
        keep = offsets < count
        if HAS_MASK:
            keep = keep & spread_bits(mask_words(words_ptr, row, count, ROW))
        acc += tl.where(keep, philox.in_order(a0 * b0, a1 * b1, a2 * b2, a3 * b3), 0.0)
    return tree_sum(acc)


@triton.jit(do_not_specialize=_STREAM_ARGUMENTS)
def _zo_gram_kernel(
    masks_ptr, rows_ptr, numels_ptr,
    q, key_ptr, directions_ptr, first_direction, uids_ptr, firsts_ptr, partials_ptr,
    HAS_MASK: tl.constexpr, SIGNS: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    j, k = tl.program_id(1), tl.program_id(2)
    if k <= j:
        tensor, first, count = locate(rows_ptr, numels_ptr, CHUNK)
        uid = tl.load(uids_ptr + tensor).to(tl.uint32)
        k0, k1 = philox.key_words(key_ptr)
        dj = _direction_word(directions_ptr, first_direction, j)
        dk = _direction_word(directions_ptr, first_direction, k)
        index = _index(firsts_ptr, tensor, first)
        words_ptr = pointer_to(masks_ptr, tensor, first // 32, tl.int32) if HAS_MASK else masks_ptr
        if SIGNS:
            total = _sign_product(
                words_ptr, index, count, uid, dj, dk, k0, k1, HAS_MASK, ROUNDS,
                firsts_ptr is not None,
            )  # fmt: skip
        else:
            total = _normal_product(
                words_ptr, index, count, uid, dj, dk, k0, k1, HAS_MASK, ROUNDS,
                firsts_ptr is not None,
            )  # fmt: skip
        programs = tl.num_programs(0)  # a row of partials per entry; the matrix is symmetric
        tl.store(partials_ptr + (j * q + k).to(tl.int64) * programs + tl.program_id(0), total)
        tl.store(partials_ptr + (k * q + j).to(tl.int64) * programs + tl.program_id(0), total)
