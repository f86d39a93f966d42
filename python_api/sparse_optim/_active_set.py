"""The active set of a multilevel cycle: which units step in a coarse phase, and their state.

A unit is an entry or, with a group regulariser, a group. In a coarse phase the active units' duals,
moments and weights are copied into contiguous memory, and the steps work there: their cost follows
the number of active entries. Where units are no runs of entries, or too many are active, the steps
walk the whole tensors under a bit mask instead. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import (
    Tiling,
    count_ones,
    gather_entries,
    live_mask,
    mask_apply_,
    mask_index,
    pack_mask,
    scatter_entries_,
    unpack_mask,
)

from ._regularizers import (
    ENTRYWISE,
    entries_per_unit,
    is_nonnegative,
    lam_parts,
    readout_,
    spread_units,
    unit_count,
)

#: active share up to which a step on copies moves fewer bytes than one under a mask
COMPACT_BELOW = 0.5
State = dict[Tensor, dict[str, Any]]


@dataclass
class Work:
    """What one kernel call of a step works on; lists of one length.

    Attributes:
        owners: the parameters.
        params, grads, duals, buffers: their tensors, or copies of the active entries; buffers by
            the names of the state.
        active: bit masks of the entries that step, None for all.
        tilings: of copies of active groups.
    """

    owners: list[Tensor]
    params: list[Tensor]
    grads: list[Tensor]
    duals: list[Tensor] | None
    buffers: dict[str, list[Tensor]] = field(default_factory=dict)
    active: list[Tensor] | None = None
    tilings: list[Tiling] | None = None


class ActiveSet:
    """The active units of every parameter that has a coarse phase.

    Args:
        backend: of the operations.
        compact: copy the active entries, where that pays.
    """

    def __init__(self, backend: str, compact: bool) -> None:
        self.backend, self.compact = backend, compact
        self.write_through = True  # weights reach their parameter in every coarse step
        self.counts: dict[Tensor, Tensor | int] = {}  # active entries
        self._index: dict[Tensor, Tensor] = {}
        self._runs: dict[Tensor, int] = {}
        self._words: dict[Tensor, Tensor] = {}  # per entry
        self._copies: dict[Tensor, dict[str, Tensor]] = {}
        self._given: dict[Tensor, Tensor] = {}  # gradients of the active entries

    def forget(self) -> None:
        """Drop everything that can be made anew from the state."""
        self.counts.clear()
        self._index.clear()
        self._runs.clear()
        self._words.clear()
        self._copies.clear()
        self._given.clear()

    # -- which units -------------------------------------------------------------------------

    def refresh(self, group: dict[str, Any], params: list[Tensor], state: State) -> None:
        """A := the units that are not zero now; everything else becomes +0.0."""
        duals = [state[p]["dual"] for p in params]
        if group["reg"] in ENTRYWISE:
            lam = lam_parts(group)[0]
            words = live_mask(duals, lam, nonnegative=is_nonnegative(group), backend=self.backend)
            # they are zero, unless lam or a parameter was edited since the readout
            mask_apply_(params, words, backend=self.backend)
        else:
            alive = [p.new_empty(unit_count(group, p), dtype=torch.uint8) for p in params]
            readout_(group, params, duals, self.backend, alive=alive)
            words = pack_mask([a.bool() for a in alive], backend=self.backend)
        for p, w in zip(params, words, strict=True):
            state[p]["active"] = w
            for made in (
                self.counts, self._index, self._runs, self._words, self._copies, self._given,
            ):  # fmt: skip
                made.pop(p, None)

    def locate(self, group: dict[str, Any], params: Iterable[Tensor], state: State) -> None:
        """Find the active entries of parameters that are not known here yet."""
        new = [p for p in params if p not in self.counts]
        if not new:
            return
        runs = {p: entries_per_unit(group, p) for p in new}
        # sizes come to the host, which a graph under capture cannot wait for
        indexed = [p for p in new if self.compact and runs[p] is not None and _may_wait(p)]
        found = mask_index([state[p]["active"] for p in indexed], backend=self.backend)
        for p, index in zip(indexed, found, strict=True):
            run = runs[p]
            assert run is not None
            self.counts[p] = index.numel() * run
            self._index[p], self._runs[p] = index, run
        for p in new:
            if p not in self.counts:
                words = [self._entry_words(group, p, state)]
                self.counts[p] = count_ones(words, backend=self.backend)[0]

    def _entry_words(self, group: dict[str, Any], p: Tensor, state: State) -> Tensor:
        words = state[p]["active"]
        if group["reg"] in ENTRYWISE:
            return words
        if p not in self._words:
            units = unpack_mask([words], [(unit_count(group, p),)], backend=self.backend)[0]
            spread = spread_units(units, group, p).contiguous()
            self._words[p] = pack_mask([spread], backend=self.backend)[0]
        return self._words[p]

    def compacts(self, p: Tensor) -> bool:
        """Whether the coarse steps of a parameter work on copies of its active entries."""
        return p in self._index and int(self.counts[p]) <= COMPACT_BELOW * p.numel()

    def index(self, p: Tensor) -> tuple[Tensor, int]:
        """Numbers of the active units, int32, and the entries of one unit."""
        return self._index[p], self._runs[p]

    # -- their state -------------------------------------------------------------------------

    def copy(self, p: Tensor, state: State) -> dict[str, Tensor]:
        """The copies of one parameter: "param", "dual" and its other state by name."""
        self._gather([p], state)
        return self._copies[p]

    def _gather(self, params: Sequence[Tensor], state: State) -> None:
        """Copy what is not copied yet: state may have been made since."""
        lacking: dict[str, list[Tensor]] = {}
        for p in params:
            own = self._copies.setdefault(p, {})
            for name in ("param", *_moving(state[p])):
                if name not in own:
                    lacking.setdefault(name, []).append(p)
        for name, has in lacking.items():
            found = gather_entries(
                [p if name == "param" else state[p][name] for p in has],
                [self._index[p] for p in has], [self._runs[p] for p in has], backend=self.backend,
            )  # fmt: skip
            for p, values in zip(has, found, strict=True):
                self._copies[p][name] = values

    def give_gradient(self, p: Tensor, values: Tensor, state: State) -> None:
        """Take the gradient of the active entries, in the order of ``index``."""
        like = self.copy(p, state)["param"]
        self._given[p] = values.detach().reshape(-1).to(like)

    def drop_gradients(self) -> None:
        """Forget the gradients that were given."""
        self._given.clear()

    @torch.no_grad()
    def mask_gradient_(self, group: dict[str, Any], p: Tensor, state: State) -> None:
        """``p.grad`` as a coarse step takes it: +0.0 off A, on A what was given, if it was."""
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        mask_apply_([p.grad], [self._entry_words(group, p, state)], backend=self.backend)
        if p in self._given:
            self._scatter([p], [p.grad], [self._given.pop(p)])

    def has_gradient(self, p: Tensor) -> bool:
        """Whether the next coarse step has a gradient for a parameter."""
        return p in self._given or p.grad is not None

    def take_gradients(self, params: Sequence[Tensor], state: State) -> list[Tensor]:
        """The gradients of the active entries: what was given, else copies."""
        self._gather(params, state)
        dense = [p for p in params if p not in self._given]
        for p in dense:
            if "grad" not in self._copies[p]:
                self._copies[p]["grad"] = torch.empty_like(self._copies[p]["param"])
        gather_entries(
            [p.grad for p in dense],  # type: ignore[misc]
            [self._index[p] for p in dense], [self._runs[p] for p in dense],
            out=[self._copies[p]["grad"] for p in dense], backend=self.backend,
        )  # fmt: skip
        return [self._given[p] if p in self._given else self._copies[p]["grad"] for p in params]

    def work(self, params: list[Tensor], state: State, names: Iterable[str]) -> Work:
        """Copies for one kernel call of a coarse step, gradients included."""
        grads = self.take_gradients(params, state)
        copies = [self._copies[p] for p in params]
        return Work(
            params, [c["param"] for c in copies], grads, [c["dual"] for c in copies],
            {n: [c[n] for c in copies] for n in names if n in copies[0]},
            tilings=[Tiling(self._runs[p], 1, self._runs[p]) for p in params],
        )  # fmt: skip

    def masked(self, group: dict[str, Any], params: list[Tensor], state: State) -> list[Tensor]:
        """Bit masks of the entries for a step on whole tensors."""
        return [self._entry_words(group, p, state) for p in params]

    def show(self, params: list[Tensor]) -> None:
        """Write what a step made of the active weights into their parameters."""
        for p in params:
            self._given.pop(p, None)
        if self.write_through:
            self._scatter(params, params, [self._copies[p]["param"] for p in params])

    def _scatter(self, params: list[Tensor], into: list[Tensor], values: list[Tensor]) -> None:
        scatter_entries_(
            into, [self._index[p] for p in params], values, [self._runs[p] for p in params],
            backend=self.backend,
        )  # fmt: skip

    @torch.no_grad()
    def write_back(self, state: State) -> None:
        """Put the copies where they came from, and drop them; gradients not yet used stay."""
        params = list(self._copies)
        for name in dict.fromkeys(n for c in self._copies.values() for n in c if n != "grad"):
            own = [p for p in params if name in self._copies[p]]
            values = [self._copies[p][name] for p in own]
            if name != "param":
                self._scatter(own, [state[p][name] for p in own], values)
            elif not self.write_through:
                self._scatter(own, own, values)
        self._copies.clear()


def _may_wait(p: Tensor) -> bool:
    return not (p.is_cuda and torch.cuda.is_current_stream_capturing())


def _moving(state: dict[str, Any]) -> list[str]:
    """Names of the state that a step of a coordinate changes."""
    return [n for n, value in state.items() if isinstance(value, Tensor) and n != "active"]
