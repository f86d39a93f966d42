"""Tensor lists for the host harness: placed in guarded storage, described to the harness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_kernels.reference._common import keep_bits

CHUNK = 65536
GUARD = 64  # elements before and after a tensor that nothing may touch

#: name -> element counts; "tiny" overflows the table of every op (capacity 470 to 1,600 tensors)
SIZES = {
    "none": [],
    "empty": [0],
    "one": [1],
    "seven": [7],
    "chunks": [CHUNK - 1, CHUNK, CHUNK + 1],
    "mixed": [0, 1, 7, 2 * CHUNK + 9, 0, 2048, 33],
    "tiny": [n % 9 for n in range(1700)],
}


class Lists:
    """Random lists of one shape, each tensor in storage of its own with guards around it.

    Args:
        sizes: element counts.
        shift: elements by which every tensor is moved off its 16-byte boundary.
        seed: of the values.
    """

    def __init__(self, sizes: Sequence[int], shift: int = 0, seed: int = 0) -> None:
        self.sizes = list(sizes)
        self.shift = shift
        self.generator = torch.Generator().manual_seed(seed)
        self._guarded: list[tuple[Tensor, Tensor]] = []

    def place(self, values: Tensor) -> Tensor:
        """A copy of ``values`` inside guarded storage."""
        n = values.numel()
        base = torch.zeros(GUARD + self.shift + n + GUARD, dtype=values.dtype)
        base.view(torch.uint8).fill_(0xA5)
        view = base[GUARD + self.shift : GUARD + self.shift + n]
        view.copy_(values)
        self._guarded.append((base, view))
        return view

    def normal(self, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
        return [
            self.place((torch.randn(n, generator=self.generator) * scale).to(dtype))
            for n in self.sizes
        ]

    def integers(self, low: int, high: int) -> list[Tensor]:
        return [
            self.place(torch.randint(low, high, (n,), generator=self.generator, dtype=torch.int32))
            for n in self.sizes
        ]

    def bools(self, share: float = 0.5) -> list[Tensor]:
        """Every second tensor has runs of 64 equal entries, so that whole groups are masked out."""
        out = []
        for i, n in enumerate(self.sizes):
            if i % 2:
                runs = torch.rand(-(-n // 64), generator=self.generator) < share
                out.append(self.place(runs.repeat_interleave(64)[:n]))
            else:
                out.append(self.place(torch.rand(n, generator=self.generator) < share))
        return out

    def masks(self, share: float = 0.5) -> list[Tensor]:
        """Bit masks; words are 4-byte aligned wherever the tensors themselves stand."""
        return [pack(b) for b in self.bools(share)]

    def check_guards(self) -> None:
        """Nothing outside the tensors was written."""
        for base, view in self._guarded:
            raw = base.view(torch.uint8)
            size = base.element_size()
            first = (GUARD + self.shift) * size
            outside = torch.cat([raw[:first], raw[first + view.numel() * size :]])
            assert bool((outside == 0xA5).all()), "a guard around a tensor was written"


def pack(mask: Tensor) -> Tensor:
    """int32 words of a bool tensor: bit i of word w is element 32 w + i."""
    words = -(-mask.numel() // 32)
    bits = torch.nn.functional.pad(mask.long(), (0, 32 * words - mask.numel()))
    return (bits.reshape(-1, 32) << torch.arange(32)).sum(1).to(torch.int32)


def clones(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone() for t in tensors]


def ranks_of(masks: Sequence[Tensor], sizes: Sequence[int]) -> tuple[list[Tensor], int]:
    """Ranks of the tiles of 8,192 entries of every mask, and the number of ones of all."""
    ranks, before = [], 0
    for words, n in zip(masks, sizes, strict=True):
        ones = keep_bits(words, n).long()
        tiles = torch.nn.functional.pad(ones, (0, -n % 8192)).reshape(-1, 8192).sum(1)
        ranks.append(before + tiles.cumsum(0) - tiles)
        before += int(ones.sum())
    return ranks, before


def run_of(core, sizes, lists, *, masks=(), backup=(), ranks=(), uids=(), firsts=(), **run):
    """A harness run over parallel lists of tensors; with ranks, backup is the packed tensor."""
    segments = [
        core.Segment(
            n,
            [tensors[i].data_ptr() for tensors in lists],
            mask=masks[i].data_ptr() if masks else 0,
            backup=backup[0 if ranks else i].data_ptr() if backup else 0,
            ranks=ranks[i].data_ptr() if ranks else 0,
            capacity=backup[0].numel() if ranks else 0,
            uid=uids[i] if uids else 0,
            first=firsts[i] if firsts else 0,
        )
        for i, n in enumerate(sizes)
    ]
    return core.Run(segments, **run)


def chunks_of(sizes: Sequence[int]) -> int:
    return sum(-(-n // CHUNK) for n in sizes)


def assert_same(ours: list[Tensor], wanted: list[Tensor], what: str) -> None:
    """Equal bits (any NaN equals any NaN); names the first entry that differs."""
    for i, (a, b) in enumerate(zip(ours, wanted, strict=True)):
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}[a.element_size()]
        differs = a.contiguous().view(kind) != b.contiguous().view(kind)
        if a.is_floating_point():
            differs &= ~(a.isnan() & b.isnan())
        if bool(differs.any()):
            at = int(differs.nonzero()[0])
            raise AssertionError(
                f"{what}[{i}][{at}]: {a[at].item()!r} instead of {b[at].item()!r}, "
                f"{int(differs.sum())} of {a.numel()} differ"
            )
