"""Bit masks over a list of parameters, exact counts and exact global selection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import count_ones, mask_topk, pack_mask, unpack_mask

COUNT_RULES = ("round", "trunc", "ceil")


def live_count(numel: int, sparsity: float, rule: str = "round") -> int:
    """Number of ones k(N, s) of a mask: ``N - floor(N s + 1/2)``, in [0, N].

    Args:
        numel: N, number of maskable entries.
        sparsity: s in [0, 1], fraction of zeros.
        rule: "round" (the package's), or for parity with published code "trunc",
            ``int(N (1 - s))``, or "ceil", ``N - ceil(N s)``.

    Returns:
        k.

    Raises:
        ValueError: s outside [0, 1] or no such rule.

    Example:
        >>> live_count(1000, 0.9), live_count(1000, 0.9, "trunc")
        (100, 99)
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    if rule not in COUNT_RULES:
        raise ValueError(f"count_rule must be one of {COUNT_RULES}, got {rule!r}")
    if rule == "trunc":
        k = int(numel * (1 - sparsity))
    elif rule == "ceil":
        k = numel - math.ceil(numel * sparsity)
    else:
        k = numel - math.floor(numel * sparsity + 0.5)
    return min(max(k, 0), numel)


def select_top(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Bool masks of the k largest scores of a list, exactly k of them (``mask_topk``, unpacked).

    Args:
        scores: floating tensors of any shapes.
        k: number of ones, in [0, N].

    Returns:
        One bool tensor per score tensor, in its shape.

    Raises:
        ValueError: k out of range.

    Example:
        >>> select_top([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 2.0])], 2)
        [tensor([False,  True]), tensor([ True, False])]
    """
    return unpack_mask(mask_topk(scores, k), [s.shape for s in scores])


class BitMask:
    """One bit per entry of a list of tensors; 1 means the entry takes part.

    Words are int32, least significant bit first, in the row-major order of the logical shape,
    padding bits 0: N / 8 bytes in all.

    Args:
        words: packed words, one tensor per mask (kept, not copied).
        shapes: shape of each mask.

    Raises:
        ValueError: the words do not fit the shapes.

    Example:
        >>> m = BitMask.from_bool([torch.tensor([True, False]), torch.tensor([[True]])])
        >>> m.live, m.numel, m.sparsity
        (2, 3, 0.33333333333333337)
    """

    def __init__(self, words: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> None:
        self.words = list(words)
        self.shapes = [tuple(s) for s in shapes]
        if len(self.words) != len(self.shapes):
            raise ValueError(f"BitMask: {len(self.words)} word lists, {len(self.shapes)} shapes")
        for i, (w, s) in enumerate(zip(self.words, self.shapes, strict=True)):
            if w.dtype != torch.int32 or w.numel() != -(-math.prod(s) // 32):
                raise ValueError(f"BitMask: words[{i}] do not fit a mask of shape {s}")

    @classmethod
    def full(cls, params: Sequence[Tensor], value: bool = True) -> BitMask:
        """All ones, or all zeros, in the shapes and on the devices of ``params``."""
        words = []
        for p in params:
            word = p.new_full((-(-p.numel() // 32),), -1 if value else 0, dtype=torch.int32)
            if value and p.numel() % 32:
                word[-1] = (1 << p.numel() % 32) - 1  # padding bits are 0
            words.append(word)
        return cls(words, [p.shape for p in params])

    @classmethod
    def from_bool(cls, masks: Sequence[Tensor]) -> BitMask:
        """Pack bool tensors; ValueError names the one that is not bool."""
        return cls(pack_mask(list(masks)), [m.shape for m in masks])

    def to_bool(self) -> list[Tensor]:
        """Bool tensors in the masks' shapes."""
        return unpack_mask(self.words, self.shapes)

    def popcount(self) -> list[int]:
        """Ones per tensor; reads the device once."""
        if not self.words:
            return []
        device = self.words[0].device
        return torch.stack([c.to(device) for c in count_ones(self.words)]).tolist()

    @property
    def live(self) -> int:
        """Number of ones k."""
        return sum(self.popcount())

    @property
    def numel(self) -> int:
        """Number of entries N."""
        return sum(math.prod(s) for s in self.shapes)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.live / self.numel if self.numel else 0.0

    def _combine(self, other: BitMask, op: Any) -> BitMask:
        if self.shapes != other.shapes:
            raise ValueError("BitMask: the two masks have different shapes")
        return BitMask(
            [op(a, b) for a, b in zip(self.words, other.words, strict=True)], self.shapes
        )

    def __and__(self, other: BitMask) -> BitMask:
        return self._combine(other, torch.bitwise_and)

    def __or__(self, other: BitMask) -> BitMask:
        return self._combine(other, torch.bitwise_or)

    def __sub__(self, other: BitMask) -> BitMask:
        """Ones of this mask that are zeros of the other."""
        return self._combine(other, lambda a, b: a & ~b)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BitMask) or self.shapes != other.shapes:
            return False
        return all(torch.equal(a, b) for a, b in zip(self.words, other.words, strict=True))

    __hash__ = None  # type: ignore[assignment]  # mutable words

    def __repr__(self) -> str:
        return f"BitMask({len(self.words)} tensors, {self.numel} entries)"

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"words": [w.clone() for w in self.words], "shapes": [list(s) for s in self.shapes]}

    @classmethod
    def from_state(cls, state: dict[str, Any], devices: Sequence[torch.device]) -> BitMask:
        """The inverse of ``state``, the words on the given devices."""
        words = [w.clone().to(d) for w, d in zip(state["words"], devices, strict=True)]
        return cls(words, state["shapes"])
