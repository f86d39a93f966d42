"""n of every m consecutive entries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._check import words_for
from ._ranked import Ranked

AXES = ("in", "out")


def mask_nm(
    scores: Sequence[Tensor],
    n: int,
    m: int,
    axis: str = "in",
    *,
    kind: str = "value",
    key: int | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """Bit masks with exactly n ones in every group of m entries, those of the largest scores.

    A weight is read as a matrix: dim 0 by the product of the others, row-major. ``axis="in"``
    groups consecutive entries of a row (the reduction axis of the forward product), ``"out"``
    consecutive entries of a column (that of the input gradient). What is left at the end of a row
    (column) is a short group of r entries with min(n, r) ones; groups never go across rows.
    Ties, zeros and NaN included, go to the lowest index.

    Args:
        scores: tensors of two dimensions or more; float32, bfloat16, float16 or float64.
        n: ones per group, in [0, m].
        m: entries per group, >= 1.
        axis: "in" or "out".
        kind, key: as for ``mask_topk``.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        int32 bit masks as ``pack_mask`` makes them, in the weights' own index order.

    Raises:
        ValueError: n > m, no such axis, a tensor of fewer dimensions.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> from sparse_kernels import unpack_mask
        >>> words = mask_nm([torch.tensor([[4.0, 1.0, 2.0, 3.0, 9.0]])], 2, 4)
        >>> unpack_mask(words, [(1, 5)])
        [tensor([[ True, False, False,  True,  True]])]
    """
    op = "mask_nm"
    ranked = Ranked(op, scores, kind, key, {}, backend)
    if axis not in AXES:
        raise ValueError(f"{op}: axis must be one of {AXES}, got {axis!r}")
    for name, value in (("n", n), ("m", m)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{op}: {name} must be an integer, got {value!r}")
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"{op}: n must be in [0, m] and m >= 1, got {n}:{m}")
    for i, s in enumerate(ranked.scores):
        if s.dim() < 2:
            raise ValueError(f"{op}: scores[{i}] has {s.dim()} dimensions, n:m needs at least 2")
    words = [s.new_empty(words_for(s.numel()), dtype=torch.int32) for s in ranked.scores]
    for g, first in ranked.groups("mask_nm_"):
        shapes = [ranked.scores[i].shape for i in g.indices]
        rows = [s[0] for s in shapes]
        cols = [math.prod(s[1:]) for s in shapes]
        g.run(*first, rows, cols, n, m, axis == "in", [words[i] for i in g.indices])
    return words
