"""Helpers shared by the references: math dtypes, mask bits and the one summation order."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_SIZE = 65536  # elements per chunk: the unit of threading and of partial sums
LANES = 2048  # partial sums per chunk; lane = element index mod LANES
RANK_TILE = 8192  # elements per entry of a table of ranks (mask_count_)


def chunks_of(numel: int) -> int:
    """Chunks of a tensor; an empty one has none."""
    return -(-numel // CHUNK_SIZE)


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the arithmetic: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounded(value: float, dtype: torch.dtype) -> float:
    """A host scalar rounded to the math dtype, for a decision the kernels take after rounding."""
    return torch.tensor(value, dtype=dtype).item()


def to_opmath(tensor: Tensor) -> Tensor:
    """Flat copy-free (where possible) view of ``tensor`` in its math dtype."""
    return tensor.reshape(-1).to(opmath_dtype(tensor.dtype))


def keep_bits(words: Tensor, numel: int) -> Tensor:
    """Bool tensor [numel] from int32 mask words; bit i of word w is element 32 w + i."""
    shifts = torch.arange(32, device=words.device, dtype=torch.int32)
    return ((words.reshape(-1, 1) >> shifts) & 1).bool().reshape(-1)[:numel]


def store(dst: Tensor, value: Tensor, keep: Tensor | None = None) -> None:
    """Write ``value`` with one rounding into ``dst``, where ``keep`` is True if it is given."""
    value = value.reshape(dst.shape).to(dst.dtype)
    dst.copy_(value if keep is None else torch.where(keep.reshape(dst.shape), value, dst))


def chunk_sums(x: Tensor) -> Tensor:
    """Sum of each chunk of a flat tensor, in the order every backend uses, as float64.

    Within a chunk each of the 2,048 lanes adds its 32 values in index order, then a binary tree
    joins lane i with lane i + width. All of it in the dtype of ``x``; padding adds +0.0.
    """
    chunks = chunks_of(x.numel())
    padded = torch.nn.functional.pad(x, (0, chunks * CHUNK_SIZE - x.numel()))
    values = padded.reshape(chunks, CHUNK_SIZE // LANES, LANES)
    lanes = torch.zeros_like(values[:, 0])
    for row in values.unbind(1):
        lanes = lanes + row
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
    return lanes.reshape(chunks).double()


def sequential_sum(partials: list[Tensor], device: torch.device) -> Tensor:
    """float64 0-dim sum of the chunk partials, added one after the other in list order."""
    filled = [p for p in partials if p.numel()]
    if not filled:
        return torch.zeros((), dtype=torch.float64, device=device)
    # cumsum, unlike sum, adds in index order; a clone, or the result would be a view of all of them
    return torch.cat(filled).cumsum(0)[-1].clone()
