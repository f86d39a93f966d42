"""The random stream, version 1: Philox-4x32 words, normals and signs (docs/random-stream.md).

Counter words: (low32(block), high32(block), uid, direction); key words: (low32(K), high32(K)).
Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC11).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57  # round multipliers of words 0 and 2
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85  # key increments per round
KDF_DIRECTION = 0xFFFFFFFF  # direction word reserved for step keys
MASK32 = 0xFFFFFFFF
ELEMENTS_PER_NORMAL_BLOCK = 4
ELEMENTS_PER_SIGN_BLOCK = 128


def philox4x32(counter: tuple, key: tuple, rounds: int = 10) -> tuple:
    """Four 32-bit words from a counter and a key, each an int or an int64 tensor in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # int64 products wrap modulo 2^64; the masks undo the arithmetic shift's sign extension
        p0, p1 = c0 * PHILOX_M0, c2 * PHILOX_M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK32) ^ c1 ^ k0,
            p1 & MASK32,
            ((p0 >> 32) & MASK32) ^ c3 ^ k1,
            p0 & MASK32,
        )
        k0, k1 = (k0 + PHILOX_W0) & MASK32, (k1 + PHILOX_W1) & MASK32
    return c0, c1, c2, c3


def derive_key(seed: int, step: int, stream: int = 0) -> int:
    """64-bit step key K(S, t, stream): words 0 and 1 of Philox-10 under the key S.

    Args:
        seed: 64-bit base seed S (0 <= seed < 2^64).
        step: probe counter t (0 <= step < 2^64).
        stream: 0 for the global stream, 1 + rank for local probes, from 0x80000000 on other users.

    Returns:
        K as an unsigned Python int, word 0 in the low half.
    """
    counter = (step & MASK32, (step >> 32) & MASK32, stream, KDF_DIRECTION)
    words = philox4x32(counter, (seed & MASK32, (seed >> 32) & MASK32))
    return words[0] | words[1] << 32


def words(key: Tensor, uid: int, direction: int | Tensor, blocks: Tensor, rounds: int) -> Tensor:
    """Words [len(blocks), 4] as int64 of the given 64-bit block numbers (int64 tensor)."""
    key = key.reshape(())
    counter = (blocks & MASK32, (blocks >> 32) & MASK32, uid, direction)
    out = philox4x32(counter, (key & MASK32, (key >> 32) & MASK32), rounds)
    return torch.stack(torch.broadcast_tensors(*out), dim=-1)


def box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The reference value: two fp32 normals per pair of words, computed in fp64, rounded once."""
    u = (a.float().double() * 2.0**-32 + 2.0**-33).float()  # exact product, so one rounding
    radius = (-2.0 * u.double().log()).sqrt()
    # quadrant and residual in integers: an exact angle, also next to the axes
    quadrant = ((b + 2**29) & MASK32) >> 30
    residual = (b << 2) & MASK32
    residual = torch.where(residual >= 2**31, residual - 2**32, residual).double()
    angle = residual * (math.pi / 4 * 2.0**-31)
    sin, cos = angle.sin(), angle.cos()
    swap = (quadrant & 1).bool()
    even = torch.where(swap, sin, cos)
    odd = torch.where(swap, cos, sin)
    even = torch.where((quadrant == 1) | (quadrant == 2), -even, even)
    odd = torch.where(quadrant >= 2, -odd, odd)
    return (radius * even).float(), (radius * odd).float()


def normal(
    key: Tensor, uid: int, direction: int | Tensor, first: int, count: int, rounds: int = 10
) -> Tensor:
    """fp32 normals z[first : first + count] of one parameter and direction."""
    start, stop = first // 4, -(-(first + count) // 4)
    blocks = torch.arange(start, stop, device=key.device)
    x = words(key, uid, direction, blocks, rounds)
    lanes = (*box_muller(x[:, 0], x[:, 1]), *box_muller(x[:, 2], x[:, 3]))
    return torch.stack(lanes, dim=-1).reshape(-1)[first - 4 * start :][:count]


def sign_bits(
    key: Tensor, uid: int, direction: int | Tensor, first: int, count: int, rounds: int = 10
) -> Tensor:
    """Bool tensor [count]: True where the Rademacher value is -1."""
    start, stop = first // 128, -(-(first + count) // 128)
    blocks = torch.arange(start, stop, device=key.device)
    x = words(key, uid, direction, blocks, rounds)
    bits = (x.unsqueeze(-1) >> torch.arange(32, device=key.device)) & 1
    return bits.bool().reshape(-1)[first - 128 * start :][:count]


def rademacher(
    key: Tensor, uid: int, direction: int | Tensor, first: int, count: int, rounds: int = 10
) -> Tensor:
    """fp32 signs +1 or -1; bit 1 means -1."""
    bits = sign_bits(key, uid, direction, first, count, rounds)
    return 1.0 - 2.0 * bits.float()


DISTRIBUTIONS = {"normal": normal, "rademacher": rademacher}
