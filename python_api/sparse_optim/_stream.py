"""Which random numbers an optimizer draws: seed, parameter numbers, distribution and mask."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import zo_key_

from ._shards import Locals, shard_first
from ._support import check_int, check_number, label
from ._weight_mask import MaskOfParams

DISTRIBUTIONS = ("normal", "rademacher", "sphere", "coordinate")
MATHS = ("portable", "fast")
STREAM_VERSION = 1


def name_uid(name: str) -> int:
    """Number of a parameter in the random stream: BLAKE2s-32 of its name, little-endian.

    Example:
        >>> name_uid("layer1.0.conv1.weight")
        284984244
    """
    return int.from_bytes(hashlib.blake2s(name.encode(), digest_size=4).digest(), "little")


def signed(value: int) -> int:
    """The int64 with the bits of a 64-bit number."""
    return value - 2**64 if value >= 2**63 else value


class Stream:
    """Names the random numbers of one optimizer and the entries they go to.

    Seed, counter and keys are int64 tensors on the parameters' device, so that a captured graph
    draws new directions in every replay.
    """

    def __init__(
        self,
        num_directions: int,
        smoothing: float | None,
        distribution: str,
        seed: int | None,
        rounds: int,
        math: str,
        backend: str,
    ) -> None:
        self.num_directions = check_int("num_directions", num_directions, 1)
        if smoothing is not None:
            check_number("smoothing", smoothing, 0.0, strict=True)
        self.smoothing = smoothing
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {DISTRIBUTIONS}, got {distribution!r}")
        self.distribution = distribution
        # initial_seed is read, never advanced
        start = check_int("seed", torch.initial_seed() if seed is None else seed, 0, 2**64)
        self.seed_word = torch.tensor(signed(start))
        self.counter = torch.tensor(0)
        if rounds not in (7, 10):
            raise ValueError(f"rng_rounds must be 7 or 10, got {rounds}")
        if math not in MATHS:
            raise ValueError(f"rng_math must be one of {MATHS}, got {math!r}")
        self.rounds, self.math, self.backend = rounds, math, backend
        self.number = 0  #: stream word of the step keys
        self.uids: dict[Tensor, int] = {}
        self.firsts: dict[Tensor, int] = {}
        self._locals = Locals()
        self.masked = MaskOfParams()  #: the entries that directions act on

    @property
    def seed(self) -> int:
        return int(self.seed_word) % 2**64

    @property
    def probe_count(self) -> int:
        return int(self.counter)

    def next_key(self, home: torch.device) -> Tensor:
        """The key of the next step, and one more step counted; nothing comes to the host."""
        if self.counter.device != home:
            self.counter, self.seed_word = self.counter.to(home), self.seed_word.to(home)
        key = torch.empty_like(self.counter)
        zo_key_(key, self.counter, self.seed_word, stream=self.number, backend=self.backend)
        return key

    # -- which numbers -----------------------------------------------------------------------

    def assign_uids(
        self,
        groups: Sequence[dict[str, Any]],
        given: Sequence[int] | None,
        firsts: Sequence[int] | None = None,
    ) -> None:
        """Number the parameters that have no uid yet: as given, by name, or in order."""
        params = [(p, g, i) for g in groups for i, p in enumerate(g["params"])]
        for name, values in (("uids", given), ("firsts", firsts)):
            if values is not None and len(values) != len(params):
                raise ValueError(f"{name} has {len(values)} entries for {len(params)} parameters")
        uids, starts = dict(self.uids), dict(self.firsts)
        for k, (p, group, i) in enumerate(params):
            if given is not None:
                uids[p] = check_int(f"uids[{k}]", given[k], 0, 2**32)
            elif p not in uids:
                names = group.get("param_names")
                free = next(n for n in itertools.count(k) if n not in set(uids.values()))
                uids[p] = name_uid(names[i]) if names else free
            if firsts is not None:
                starts[p] = check_int(f"firsts[{k}]", firsts[k], 0, 2**62)
            elif p not in starts:
                starts[p] = shard_first(p, label(groups, p))
        owners: dict[int, Tensor] = {}
        for p, uid in uids.items():
            if uid in owners:
                raise ValueError(
                    f"uid {uid} belongs to {label(groups, owners[uid])} and to {label(groups, p)}; "
                    "give distinct numbers by uids="
                )
            owners[uid] = p
        self.uids, self.firsts = uids, starts

    def named(self, params: Sequence[Tensor], key: Tensor) -> dict[str, Any]:
        """Keyword arguments that name the random numbers of a call, all but the mask."""
        firsts = [self.firsts[p] for p in params]
        return {
            "seed": key,
            "uids": [self.uids[p] for p in params],
            "firsts": firsts if any(firsts) else None,
            "distribution": "rademacher" if self.distribution == "rademacher" else "normal",
            "rounds": self.rounds,
            "rng_math": self.math,
            "backend": self.backend,
        }

    def local(self, params: Sequence[Tensor]) -> list[Tensor]:
        """What this process holds of the parameters."""
        return self._locals.of(params)

    # -- checkpoints -------------------------------------------------------------------------

    def state(self, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        params = [p for g in groups for p in g["params"]]
        return {
            "stream_version": STREAM_VERSION,
            "seed": self.seed,
            "probe_count": self.probe_count,
            "distribution": self.distribution,
            "rounds": self.rounds,
            "math": self.math,
            "uids": [self.uids[p] for p in params],
        }

    def load(self, where: str, groups: Sequence[dict[str, Any]], state: dict[str, Any]) -> None:
        """Take a checkpoint's stream, to draw the directions it would have drawn."""
        if state["stream_version"] != STREAM_VERSION:
            raise ValueError(
                f"{where}: random stream version {state['stream_version']}, "
                f"this release draws version {STREAM_VERSION}"
            )
        params = [p for g in groups for p in g["params"]]
        if len(state["uids"]) != len(params):
            raise ValueError(f"{where}: {len(state['uids'])} uids for {len(params)} parameters")
        math = state.get("math", "portable")
        if math != self.math:
            warnings.warn(
                f"{where}: the checkpoint drew its normals with rng_math={math!r}, this optimizer "
                f"draws with {self.math!r}; the last digits differ",
                stacklevel=4,
            )
        self.uids = dict(zip(params, state["uids"], strict=True))
        self.seed_word.fill_(signed(state["seed"]))
        self.counter.fill_(state["probe_count"])
        self.distribution, self.rounds = state["distribution"], state["rounds"]
