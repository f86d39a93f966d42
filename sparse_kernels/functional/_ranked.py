"""What a selection ranks by, as arguments: scores, their magnitudes, or random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._check import ListArg, check_lists, grouped
from .._group import Group
from ._scalars import key_word

KINDS = ("value", "abs", "random")


class Ranked:
    """A checked list of scores.

    Args:
        op: name for messages.
        scores: list of tensors.
        kind: "value", "abs" or "random".
        key: 64-bit int of the random stream, for kind "random".
        words: lists of mask words that go with the scores, by name (None: absent); the op writes
            the one named "out".
        backend: as everywhere.

    Raises:
        ValueError: lists do not fit, no such kind, or a key is missing or not wanted.
    """

    def __init__(
        self,
        op: str,
        scores: Sequence[Tensor],
        kind: str,
        key: int | None,
        words: dict[str, Sequence[Tensor] | None],
        backend: str | None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"{op}: kind must be one of {KINDS}, got {kind!r}")
        if (key is None) != (kind != "random"):
            raise ValueError(f"{op}: key goes with kind='random' and only with it")
        if key is not None and (isinstance(key, bool) or not 0 <= key < 2**64):
            raise ValueError(f"{op}: key must be in [0, 2^64), got {key}")
        self.kind, self.key, self.backend = kind, key, backend
        lists = [ListArg(n, w, mutated=n == "out", kind="words") for n, w in words.items()]
        self.args = [ListArg("scores", scores), *lists]
        self.whole = check_lists(op, self.args)
        self.scores = list(scores)
        if kind != "random" and len({s.dtype == torch.float64 for s in scores}) > 1:
            # one order for all: the keys of float64 are wider
            self.scores = [s.to(torch.float64) for s in scores]
            self.args[0] = ListArg("scores", self.scores)
            self.whole = None
        self.firsts = [0]
        for s in self.scores[:-1]:
            self.firsts.append(self.firsts[-1] + s.numel())

    @property
    def key_bits(self) -> int:
        """Bits of a key (``reference/_keys.py``)."""
        wide = self.kind != "random" and any(s.dtype == torch.float64 for s in self.scores)
        return 64 if wide else 32

    def groups(self, op: str) -> Iterator[tuple[Group, tuple]]:
        """Every (device, dtype) group, and the first arguments of a ranking op."""
        for g in grouped(op, self.backend, self.args, ordered=True, whole=self.whole):
            key = None if self.key is None else key_word(self.key, g.device)
            firsts = [self.firsts[i] for i in g.indices]
            yield g, (g.lists["scores"], self.kind, key, firsts)
