"""Which random numbers an optimizer draws: seed, parameter numbers, distribution and mask."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._bitmask import BitMask
from ._support import check_int, check_number, label
from ._weight_mask import MaskOfParams, Masks, checked_masks

DISTRIBUTIONS = ("normal", "rademacher")
STREAM_VERSION = 1


def name_uid(name: str) -> int:
    """Number of a parameter in the random stream: BLAKE2s-32 of its name, little-endian.

    Example:
        >>> name_uid("layer1.0.conv1.weight")
        284984244
    """
    return int.from_bytes(hashlib.blake2s(name.encode(), digest_size=4).digest(), "little")


class Stream:
    """Names the random numbers of one optimizer and the entries they go to."""

    def __init__(
        self,
        num_directions: int,
        smoothing: float | None,
        distribution: str,
        seed: int | None,
        rounds: int,
        pair_rng: bool,
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
        self.seed = check_int("seed", torch.initial_seed() if seed is None else seed, 0, 2**64)
        if rounds not in (7, 10):
            raise ValueError(f"rng_rounds must be 7 or 10, got {rounds}")
        self.rounds, self.pair_rng, self.backend = rounds, bool(pair_rng), backend
        self.probe_count = 0
        self.uids: dict[Tensor, int] = {}
        self.weights = MaskOfParams()
        self.ties: Tensor | None = None
        self.nonfinite: Tensor | None = None
        self._checked_rounding = False

    # -- which numbers -----------------------------------------------------------------------

    def assign_uids(self, groups: Sequence[dict[str, Any]], given: Sequence[int] | None) -> None:
        """Number the parameters that have no uid yet: as given, by name, or in order."""
        params = [(p, g, i) for g in groups for i, p in enumerate(g["params"])]
        if given is not None and len(given) != len(params):
            raise ValueError(f"uids has {len(given)} entries for {len(params)} parameters")
        uids = dict(self.uids)
        for k, (p, group, i) in enumerate(params):
            if given is not None:
                uids[p] = check_int(f"uids[{k}]", given[k], 0, 2**32)
            elif p not in uids:
                names = group.get("param_names")
                free = next(n for n in itertools.count(k) if n not in set(uids.values()))
                uids[p] = name_uid(names[i]) if names else free
        owners: dict[int, Tensor] = {}
        for p, uid in uids.items():
            if uid in owners:
                raise ValueError(
                    f"uid {uid} belongs to {label(groups, owners[uid])} and to {label(groups, p)}; "
                    "give distinct numbers by uids="
                )
            owners[uid] = p
        self.uids = uids

    def set_mask(self, groups: Sequence[dict[str, Any]], masks: Masks | None) -> None:
        """Take a weight mask over the trainable parameters; None in a list means all ones."""
        if masks is None:
            self.weights.take([], None)
        else:
            self.weights.take(*checked_masks("weight_mask", groups, masks))

    @property
    def mask(self) -> BitMask | None:
        return self.weights.mask

    def words(self, params: Sequence[Tensor]) -> list[Tensor] | None:
        """Packed masks of these parameters; a parameter added after the mask is all ones."""
        return self.weights.words(params)

    def active_counts(self) -> dict[Tensor, int]:
        return self.weights.live_counts()

    def num_active(self, params: Sequence[Tensor]) -> int:
        return self.weights.live(params)

    def stream(self, params: Sequence[Tensor], key: int) -> dict[str, Any]:
        """Keyword arguments that name the random numbers of a call."""
        return {
            "seed": key,
            "uids": [self.uids[p] for p in params],
            "distribution": self.distribution,
            "rounds": self.rounds,
            "mask": self.words(params),
            "backend": self.backend,
        }

    # -- checkpoints -------------------------------------------------------------------------

    def state(self, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        params = [p for g in groups for p in g["params"]]
        return {
            "stream_version": STREAM_VERSION,
            "seed": self.seed,
            "probe_count": self.probe_count,
            "distribution": self.distribution,
            "rounds": self.rounds,
            "uids": [self.uids[p] for p in params],
            "ties": None if self.ties is None else self.ties.clone(),
            "nonfinite": None if self.nonfinite is None else self.nonfinite.clone(),
            **self.weights.state(groups),
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
        masked = MaskOfParams.read(where, groups, state)
        self.uids = dict(zip(params, state["uids"], strict=True))
        self.seed, self.probe_count = state["seed"], state["probe_count"]
        self.distribution, self.rounds = state["distribution"], state["rounds"]
        home = params[0].device
        for name in ("ties", "nonfinite"):
            value = state[name]
            setattr(self, name, None if value is None else value.clone().to(home))
        self.weights.take(*masked)
