"""The random stream, version 1, as jit functions: Philox-4x32 words, portable normals, signs.

Counter words (low32(block), high32(block), uid, direction), key words (low32(K), high32(K)); one
call serves four consecutive normals or 128 consecutive signs. Philox: Salmon, Moraes, Dror, Shaw,
"Parallel random numbers: as easy as 1, 2, 3" (SC11). Twins: reference/philox.py (float64 formula),
csrc/core/philox.h and csrc/core/normal.h, whose order of operations is repeated here: the same
bits as theirs on a device, where ``tl.fma`` rounds once.
"""

import triton
import triton.language as tl

from ..reference import philox as _reference

M0: tl.constexpr = tl.constexpr(_reference.PHILOX_M0)
M1: tl.constexpr = tl.constexpr(_reference.PHILOX_M1)
W0: tl.constexpr = tl.constexpr(_reference.PHILOX_W0)
W1: tl.constexpr = tl.constexpr(_reference.PHILOX_W1)
PER_NORMAL: tl.constexpr = tl.constexpr(_reference.ELEMENTS_PER_NORMAL_BLOCK)
PER_SIGN: tl.constexpr = tl.constexpr(_reference.ELEMENTS_PER_SIGN_BLOCK)


def _floats(*values: str) -> tuple[tl.constexpr, ...]:
    return tuple(tl.constexpr(float.fromhex(v)) for v in values)


# log1p on [-1/3, 1/3], sine and cosine of (pi/4) x on [-1, 1]; the fits are csrc/core/normal.h's
L3, L4, L5, L6 = _floats("0x1.555506p-2", "-0x1.fffefp-3", "0x1.99d028p-3", "-0x1.559dccp-3")
L7, L8, L9, L10 = _floats("0x1.1ed716p-3", "-0x1.f3114p-4", "0x1.1e66bep-3", "-0x1.080586p-3")
S3, S5, S7, S9 = _floats("-0x1.4abbcep-4", "0x1.466bbcp-9", "-0x1.32cb0ep-15", "0x1.4be09ep-22")
C2, C4, C6, C8 = _floats("-0x1.3bd3ccp-2", "0x1.03c1fp-6", "-0x1.55d3bcp-12", "0x1.e1e85cp-19")
(C10,) = _floats("-0x1.a10852p-26")
LN2_HIGH, LN2_LOW = _floats("0x1.63p-1", "-0x1.bd0106p-13")
PI4_HIGH, PI4_LOW = _floats("0x1.921fb6p-1", "-0x1.777a5cp-26")
HALF_STEP, STEP, TURN = _floats("0x1p-33", "0x1p-32", "0x1p-31")


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1, ROUNDS: tl.constexpr):
    """Four uint32 words from a uint32 counter and key."""
    for _ in tl.static_range(ROUNDS):
        # a 64-bit product, so that the compiler emits one wide multiply for both halves
        p0 = c0.to(tl.uint64) * M0
        p1 = c2.to(tl.uint64) * M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 += W0
        k1 += W1
    return c0, c1, c2, c3


@triton.jit
def log_unit(u):
    """ln u for u in [2^-33, 1]: u = 2^e m with m in [2/3, 4/3), ln u = e ln 2 + log1p(m - 1)."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) >> 23  # 0x3f2aaaab is 2/3
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    w = f * f
    q = tl.fma(f, L10, L9)
    q = tl.fma(f, q, L8)
    q = tl.fma(f, q, L7)
    q = tl.fma(f, q, L6)
    q = tl.fma(f, q, L5)
    q = tl.fma(f, q, L4)
    q = tl.fma(f, q, L3)
    e = exponent.to(tl.float32)
    y = tl.fma(f * w, q, e * LN2_LOW)
    y = tl.fma(w, -0.5, y)
    return tl.fma(e, LN2_HIGH, f + y)


@triton.jit
def box_muller(a, b):
    """Two float32 normals from two uint32 words; Box-Muller with the quadrant taken in integers."""
    u = tl.fma(a.to(tl.float32), STEP, HALF_STEP)
    radius = tl.math.sqrt_rn(log_unit(u) * -2.0)
    turned = b + 0x20000000
    x = (b << 2).to(tl.int32, bitcast=True).to(tl.float32) * TURN
    t = x * x
    s = tl.fma(t, S9, S7)
    s = tl.fma(t, s, S5)
    s = tl.fma(t, s, S3)
    sine = tl.fma(x, PI4_HIGH, x * tl.fma(t, s, PI4_LOW))
    c = tl.fma(t, C10, C8)
    c = tl.fma(t, c, C6)
    c = tl.fma(t, c, C4)
    c = tl.fma(t, c, C2)
    cosine = tl.fma(t, c, 1.0)
    # the top bits of ``turned`` are the quadrant: odd swaps; 1 and 2 negate the cosine, 2 and 3
    # the sine; the sign goes onto the radius by its bit
    swap = (turned & 0x40000000) != 0
    size = radius.to(tl.uint32, bitcast=True)
    even = (size ^ ((turned + 0x40000000) & 0x80000000)).to(tl.float32, bitcast=True)
    odd = (size ^ (turned & 0x80000000)).to(tl.float32, bitcast=True)
    return even * tl.where(swap, sine, cosine), odd * tl.where(swap, cosine, sine)


@triton.jit
def in_order(x0, x1, x2, x3):
    """[4 n] from four [n]: x0[0], x1[0], x2[0], x3[0], x0[1], ..."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (4 * x0.shape[0],))


@triton.jit
def words_at(
    first, PER: tl.constexpr, CALLS: tl.constexpr, uid, direction, k0, k1, ROUNDS,
    ANYWHERE: tl.constexpr = False,
):  # fmt: skip
    """Words of the CALLS counter blocks from that of element ``first`` (int64) on; PER each.

    ``first`` is a multiple of CALLS * PER, a power of two, so the low word takes the lane without
    a carry and the high word is one scalar; with ANYWHERE it is any number.
    """
    block = first // PER
    if ANYWHERE:
        blocks = block + tl.arange(0, CALLS).to(tl.int64)
        low, high = blocks.to(tl.uint32), (blocks >> 32).to(tl.uint32)
    else:
        low = block.to(tl.uint32) + tl.arange(0, CALLS).to(tl.uint32)
        high = (block >> 32).to(tl.uint32)
    return philox4x32(low, high, uid, direction, k0, k1, ROUNDS)


@triton.jit
def _normals_across(first, CALLS: tl.constexpr, uid, direction, k0, k1, ROUNDS: tl.constexpr):
    """``normals_at`` for any ``first``: four elements may belong to two counter blocks."""
    x0, x1, x2, x3 = words_at(first, PER_NORMAL, CALLS, uid, direction, k0, k1, ROUNDS, True)
    skip = first % PER_NORMAL
    if skip == 0:
        z0, z1 = box_muller(x0, x1)
        z2, z3 = box_muller(x2, x3)
    else:
        y0, y1, y2, y3 = words_at(
            first + PER_NORMAL, PER_NORMAL, CALLS, uid, direction, k0, k1, ROUNDS, True
        )
        # three pairs of words, from the one with element ``first`` on: two normals each
        second = skip >= 2
        z0, z1 = box_muller(tl.where(second, x2, x0), tl.where(second, x3, x1))
        z2, z3 = box_muller(tl.where(second, y0, x2), tl.where(second, y1, x3))
        z4, _ = box_muller(tl.where(second, y2, y0), tl.where(second, y3, y1))
        odd = (skip & 1) != 0
        z0, z1 = tl.where(odd, z1, z0), tl.where(odd, z2, z1)
        z2, z3 = tl.where(odd, z3, z2), tl.where(odd, z4, z3)
    return z0, z1, z2, z3


@triton.jit
def normals_at(
    first, CALLS: tl.constexpr, uid, direction, k0, k1, ROUNDS: tl.constexpr,
    ANYWHERE: tl.constexpr = False,
):  # fmt: skip
    """float32 normals of 4 CALLS elements from ``first`` on: four [CALLS], by place mod 4."""
    if ANYWHERE:
        z0, z1, z2, z3 = _normals_across(first, CALLS, uid, direction, k0, k1, ROUNDS)
    else:
        x0, x1, x2, x3 = words_at(first, PER_NORMAL, CALLS, uid, direction, k0, k1, ROUNDS)
        z0, z1 = box_muller(x0, x1)
        z2, z3 = box_muller(x2, x3)
    return z0, z1, z2, z3


@triton.jit
def _sign_words_across(first, CALLS: tl.constexpr, uid, direction, k0, k1, ROUNDS: tl.constexpr):
    """Words of 128 signs each from any ``first`` on, which belong to two counter blocks: four."""
    x0, x1, x2, x3 = words_at(first, PER_SIGN, CALLS, uid, direction, k0, k1, ROUNDS, True)
    skip = (first % PER_SIGN).to(tl.uint32)
    if skip != 0:
        x4, x5, x6, x7 = words_at(
            first + PER_SIGN, PER_SIGN, CALLS, uid, direction, k0, k1, ROUNDS, True
        )
        # on by two words, by one, and by the bits that are left
        two, one, bits = (skip & 64) != 0, (skip & 32) != 0, skip & 31
        x0, x1, x2 = tl.where(two, x2, x0), tl.where(two, x3, x1), tl.where(two, x4, x2)
        x3, x4, x5 = tl.where(two, x5, x3), tl.where(two, x6, x4), tl.where(two, x7, x5)
        x0, x1, x2 = tl.where(one, x1, x0), tl.where(one, x2, x1), tl.where(one, x3, x2)
        x3, x4 = tl.where(one, x4, x3), tl.where(one, x5, x4)
        # by one bit first: a shift by 32 is not defined
        x0 = (x0 >> bits) | ((x1 << 1) << (31 - bits))
        x1 = (x1 >> bits) | ((x2 << 1) << (31 - bits))
        x2 = (x2 >> bits) | ((x3 << 1) << (31 - bits))
        x3 = (x3 >> bits) | ((x4 << 1) << (31 - bits))
    return x0, x1, x2, x3


@triton.jit
def sign_words_at(
    first, CALLS: tl.constexpr, uid, direction, k0, k1, ROUNDS: tl.constexpr,
    ANYWHERE: tl.constexpr = False,
):  # fmt: skip
    """uint32 [4 CALLS]: bit j of word w is the sign of element ``first`` + 32 w + j."""
    if ANYWHERE:
        x0, x1, x2, x3 = _sign_words_across(first, CALLS, uid, direction, k0, k1, ROUNDS)
    else:
        x0, x1, x2, x3 = words_at(first, PER_SIGN, CALLS, uid, direction, k0, k1, ROUNDS)
    return in_order(x0, x1, x2, x3)


@triton.jit
def sign_bits(words):
    """uint32 [32 n] from [n] words: 0x80000000 where the sign is -1, else 0."""
    lanes = tl.arange(0, 32).to(tl.uint32)
    bits = (words[:, None] << (31 - lanes)[None, :]) & 0x80000000
    return tl.reshape(bits, (32 * words.shape[0],))


@triton.jit
def key_words(key_ptr):
    """The two words of the 64-bit stream key, low word first."""
    key = tl.load(key_ptr)
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)
