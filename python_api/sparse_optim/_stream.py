"""Which random numbers an optimizer draws: seed, parameter numbers, distribution and mask."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import pack_mask

from ._bitmask import BitMask
from ._support import check_int, check_number, label, trainable

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
        self.mask: BitMask | None = None
        self._words: dict[Tensor, Tensor] = {}
        self._active: dict[Tensor, int] = {}
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

    def set_mask(
        self, groups: Sequence[dict[str, Any]], masks: Sequence[Tensor | None] | BitMask | None
    ) -> None:
        """Take a weight mask over the trainable parameters; None in a list means all ones."""
        if masks is None:
            self.mask, self._words, self._active = None, {}, {}
            return
        params = trainable(groups)
        given: list[Tensor | None]
        given = list(masks.to_bool()) if isinstance(masks, BitMask) else list(masks)
        if len(given) != len(params):
            raise ValueError(
                f"weight_mask: {len(given)} masks for {len(params)} trainable parameters"
            )
        filled = []
        for m, p in zip(given, params, strict=True):
            if m is None:
                m = torch.ones(p.shape, dtype=torch.bool, device=p.device)
            if not isinstance(m, Tensor) or m.dtype != torch.bool:
                raise ValueError(
                    f"weight_mask: the mask of {label(groups, p)} is not a bool tensor"
                )
            if m.shape != p.shape or m.device != p.device:
                raise ValueError(
                    f"weight_mask: the mask of {label(groups, p)} has shape {tuple(m.shape)} on "
                    f"{m.device}, expected {tuple(p.shape)} on {p.device}"
                )
            filled.append(m)
        self.take_mask(params, BitMask.from_bool(filled))

    def take_mask(self, params: list[Tensor], mask: BitMask) -> None:
        self.mask = mask
        self._words = dict(zip(params, mask.words, strict=True))
        # counted once per mask, so that no probe has to ask the device
        self._active = dict(zip(params, mask.popcount(), strict=True))

    def words(self, params: Sequence[Tensor]) -> list[Tensor] | None:
        """Packed masks of these parameters; a parameter added after the mask is all ones."""
        if self.mask is None:
            return None
        for p in params:
            if p not in self._words:
                self._words[p] = pack_mask(
                    [torch.ones(p.shape, dtype=torch.bool, device=p.device)]
                )[0]
                self._active[p] = p.numel()
        return [self._words[p] for p in params]

    def active_counts(self) -> dict[Tensor, int]:
        return dict(self._active) if self.mask is not None else {}

    def num_active(self, params: Sequence[Tensor]) -> int:
        self.words(params)
        return sum(p.numel() if self.mask is None else self._active[p] for p in params)

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
        index = {p: i for i, p in enumerate(params)}
        masked = [p for p in params if p in self._words]
        words = [self._words[p] for p in masked]
        mask = None if self.mask is None else BitMask(words, [p.shape for p in masked]).state()
        return {
            "stream_version": STREAM_VERSION,
            "seed": self.seed,
            "probe_count": self.probe_count,
            "distribution": self.distribution,
            "rounds": self.rounds,
            "uids": [self.uids[p] for p in params],
            "ties": None if self.ties is None else self.ties.clone(),
            "nonfinite": None if self.nonfinite is None else self.nonfinite.clone(),
            "mask": mask,
            "mask_params": [index[p] for p in masked],
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
        masked = [params[i] for i in state["mask_params"]]
        mask = None
        if state["mask"] is not None:
            mask = BitMask.from_state(state["mask"], [p.device for p in masked])
            for p, shape in zip(masked, mask.shapes, strict=True):
                if tuple(p.shape) != shape:
                    raise ValueError(f"{where}: the mask of {label(groups, p)} has shape {shape}")
        self.uids = dict(zip(params, state["uids"], strict=True))
        self.seed, self.probe_count = state["seed"], state["probe_count"]
        self.distribution, self.rounds = state["distribution"], state["rounds"]
        home = params[0].device
        for name in ("ties", "nonfinite"):
            value = state[name]
            setattr(self, name, None if value is None else value.clone().to(home))
        if mask is None:
            self.set_mask(groups, None)
        else:
            self.take_mask(masked, mask)
