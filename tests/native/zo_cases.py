"""Calls of zo_combine_ on the host harness, and what the reference makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from native_lists import Lists, assert_same, clones, ranks_of, run_of

from sparse_kernels import reference
from sparse_kernels.reference._common import keep_bits

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DISTRIBUTIONS = ["normal", "rademacher"]
KEY = 0x6E98CDE3B83FA088


class Stream:
    """The scalars of one call, in the memory that the kernel reads them from."""

    def __init__(
        self, core, q: int, distribution: str, rounds: int, listed: bool, fast: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(q)
        self.key = torch.tensor(KEY)
        self.coef = torch.randn(q, generator=generator)
        self.words = torch.randperm(1000, generator=generator)[:q] if listed else None
        self.first, self.distribution, self.rounds, self.q = 5, distribution, rounds, q
        self.directions = core.Directions(
            key=self.key.data_ptr(),
            coef=self.coef.data_ptr(),
            directions=0 if self.words is None else self.words.data_ptr(),
            first_direction=self.first,
            q=q,
            rounds=rounds,
            signs=distribution == "rademacher",
            fast=fast,
        )

    def arguments(self, uids: list[int], firsts: list[int] | None = None) -> tuple:
        """What the schema has between the coefficients and the masks."""
        named = (self.key, self.words, self.first, uids, firsts or [])
        return (*named, self.distribution, self.rounds, "portable")


def uids_of(sizes) -> list[int]:
    return [(7 + 1_000_003 * i) % 2**32 for i in range(len(sizes))]


@dataclass
class Call:
    """One combination of options.

    ``source``: "list" (the tensors themselves, or others like them), "wide" (float32 tensors),
    "saved" (the tensors, into a packed backup), "entries" (a packed backup).
    q crosses the number of directions whose signs are drawn together, 8 or 16.
    """

    q: int
    rounds: int
    masked: bool = False
    source: str = ""
    saved: bool = False  # a whole backup
    factors: bool = False
    sumsq: bool = False
    fast: bool = False


def check_zo_combine(
    core, lists: Lists, kind: str, distribution: str, call: Call, firsts: list[int] | None = None
) -> int:
    """One call on the harness against the reference; returns the number of launches."""
    dtype = DTYPE[kind]
    uids = uids_of(lists.sizes)
    stream = Stream(core, call.q, distribution, call.rounds, listed=call.q == 3, fast=call.fast)
    tensors = lists.normal(dtype)
    packed = call.source in ("saved", "entries")
    masks = lists.masks() if call.masked or packed else []
    src: list = []
    if call.source in ("list", "wide"):
        src = lists.normal(torch.float32 if call.source == "wide" else dtype)
    backup = lists.normal(dtype) if call.saved else []
    ranks: list = []
    if packed:
        ranks, ones = ranks_of(masks, lists.sizes)
        entries = lists.place(torch.randn(ones, generator=lists.generator).to(dtype))
        src, backup = ([], [entries]) if call.source == "saved" else ([entries], [])
    generator = torch.Generator().manual_seed(1)
    factors = [torch.randn(len(uids), generator=generator) for _ in range(2)]
    alpha, gamma = factors if call.factors else (None, None)
    total = torch.zeros((), dtype=torch.float64) if call.sumsq else None
    before = clones(tensors)
    wanted, wanted_backup = clones(tensors), clones(backup)
    reference.zo_combine_ref(
        wanted,
        src,
        stream.coef,
        *stream.arguments(uids, firsts),
        masks,
        wanted_backup,
        ranks,
        alpha,
        gamma,
        total,
    )
    run = run_of(
        core,
        lists.sizes,
        [tensors] if packed else [tensors, src or tensors],
        masks=masks,
        backup=src if call.source == "entries" else backup,
        ranks=ranks,
        uids=uids,
        firsts=firsts or (),
    )
    pointers = [0 if t is None else t.data_ptr() for t in (alpha, gamma)]
    ours = core.zo_combine(
        run, kind, call.source or "list", stream.directions, *pointers, call.sumsq
    )
    assert_same(tensors, wanted, f"{call}: tensors")
    assert_same(backup, wanted_backup, f"{call}: backup")
    for t, b, m, n in zip(tensors, before, masks, lists.sizes, strict=bool(masks)):
        dead = ~keep_bits(m, n)
        assert_same([t[dead]], [b[dead]], f"{call}: entries with mask bit 0")
    if total is not None:
        assert ours.total == total.item()
    lists.check_guards()
    return ours.report.launches
