"""zo_combine_ and its read-only twins: sums of regenerated random directions.

``math`` lets a backend approximate; the reference never does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox
from ._backup import save, unperturbed
from ._common import chunk_sums, keep_bits, opmath_dtype, sequential_sum, store, to_opmath


def direction_words(directions: Tensor | None, first_direction: int, q: int) -> list:
    """The q direction words: consecutive ints, or 0-dim int64 tensors read from the device."""
    if directions is None:
        return [first_direction + k for k in range(q)]
    return list(directions.unbind(0))


def _fma(c: Tensor, z: Tensor, s: Tensor) -> Tensor:
    # the float64 product of two float32 is exact; float64 itself has no wider type to round from
    return (c.double() * z.double() + s.double()).to(s.dtype)


def direction_sum(
    numel: int,
    dtype: torch.dtype,
    coef: Tensor,
    key: Tensor,
    directions: list,
    uid: int,
    first: int,
    distribution: str,
    rounds: int,
) -> Tensor:
    """s = sum_k coef[k] z_k over one flat tensor, in the math dtype, k ascending.

    Element 0 has index ``first`` in the stream.
    """
    draw = philox.DISTRIBUTIONS[distribution]
    s = torch.zeros(numel, dtype=opmath_dtype(dtype), device=key.device)
    for k, direction in enumerate(directions):
        s = _fma(coef[k], draw(key, uid, direction, first, numel, rounds), s)
    return s


def zo_combine_ref(
    tensors: list[Tensor],
    src: list[Tensor],
    coef: Tensor,
    key: Tensor,
    directions: Tensor | None,
    first_direction: int,
    uids: list[int],
    firsts: list[int],
    distribution: str,
    rounds: int,
    math: str,
    masks: list[Tensor],
    backup: list[Tensor],
    ranks: list[Tensor],
    alpha: Tensor | None,
    gamma: Tensor | None,
    sumsq: Tensor | None,
) -> None:
    words = direction_words(directions, first_direction, coef.numel())
    firsts = firsts or [0] * len(tensors)
    partials = []
    for i, dst in enumerate(tensors):
        s = direction_sum(
            dst.numel(), dst.dtype, coef, key, words, uids[i], firsts[i], distribution, rounds
        )
        keep = keep_bits(masks[i], dst.numel()) if masks else None
        if sumsq is not None:
            square = s * s
            partials.append(
                chunk_sums(square if keep is None else square.where(keep, s.new_zeros(())))
            )
        save(dst, i, masks, backup, ranks)
        if src and ranks and not backup:  # packed: one tensor for all
            source = to_opmath(unperturbed(dst, i, masks, src, ranks))
        else:
            source = to_opmath(src[i] if src else dst)
        if alpha is not None:
            source = alpha[i] * source
        if gamma is not None:
            s = gamma[i] * s
        store(dst, source + s, keep)
    if sumsq is not None:
        sumsq.copy_(sequential_sum(partials, sumsq.device))


def zo_norm2_ref(
    tensors: list[Tensor],
    coef: Tensor,
    key: Tensor,
    directions: Tensor | None,
    first_direction: int,
    uids: list[int],
    firsts: list[int],
    distribution: str,
    rounds: int,
    math: str,
    masks: list[Tensor],
) -> Tensor:
    words = direction_words(directions, first_direction, coef.numel())
    firsts = firsts or [0] * len(tensors)
    partials = []
    for i, t in enumerate(tensors):
        s = direction_sum(
            t.numel(), t.dtype, coef, key, words, uids[i], firsts[i], distribution, rounds
        )
        square = s * s
        if masks:
            square = square.where(keep_bits(masks[i], t.numel()), s.new_zeros(()))
        partials.append(chunk_sums(square))
    return sequential_sum(partials, tensors[0].device)


def zo_gram_ref(
    tensors: list[Tensor],
    q: int,
    key: Tensor,
    directions: Tensor | None,
    first_direction: int,
    uids: list[int],
    firsts: list[int],
    distribution: str,
    rounds: int,
    math: str,
    masks: list[Tensor],
) -> Tensor:
    words = direction_words(directions, first_direction, q)
    draw = philox.DISTRIBUTIONS[distribution]
    device = tensors[0].device
    firsts = firsts or [0] * len(tensors)
    partials: list[list[Tensor]] = [[] for _ in range(q * q)]
    for i, t in enumerate(tensors):
        n = t.numel()
        z = [draw(key, uids[i], d, firsts[i], n, rounds) for d in words]
        if masks:
            keep = keep_bits(masks[i], n)
            z = [row.where(keep, row.new_zeros(())) for row in z]
        for j in range(q):
            for k in range(j + 1):
                partials[j * q + k].append(chunk_sums(z[j] * z[k]))
    gram = torch.zeros(q, q, dtype=torch.float64, device=device)
    for j in range(q):
        for k in range(j + 1):
            gram[j, k] = gram[k, j] = sequential_sum(partials[j * q + k], device)
    return gram
