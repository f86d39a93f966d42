"""Which ranks share a probe: losses averaged over replicas, sums over shards."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._support import as_loss

SYNCS = ("auto", "global", "local", "none")


class LossSync:
    """Agreement between ranks; without a process group nothing is communicated.

    Args:
        sync: "global": the losses of all ranks are averaged, and all draw the same directions.
            "local": every rank has its own directions and losses. "none": neither is looked at.
            "auto": global where a process group is initialised.
        replica_group: ranks whose losses are averaged; None: all.
        shard_group: ranks that hold parts of the same parameters; None: each holds them whole.

    Raises:
        ValueError: there is no such mode, or parts of parameters cannot have directions of their
            own.
    """

    def __init__(self, sync: str, replica_group: Any, shard_group: Any) -> None:
        if sync not in SYNCS:
            raise ValueError(f"sync must be one of {SYNCS}, got {sync!r}")
        if sync in ("local", "none") and shard_group is not None:
            raise ValueError(f"sync={sync!r} needs whole parameters on every rank")
        self.sync, self.replica_group, self.shard_group = sync, replica_group, shard_group
        self._shared = False

    def __deepcopy__(self, memo: dict[int, Any]) -> LossSync:
        # process groups are not copied; a copy takes them over as they are
        twin = LossSync(self.sync, self.replica_group, self.shard_group)
        twin._shared = self._shared
        return twin

    @property
    def mode(self) -> str:
        """ "global", "local" or "none": what holds now."""
        if self.sync == "none" or not (dist.is_available() and dist.is_initialized()):
            return "none"
        return "local" if self.sync == "local" else "global"

    @property
    def sharded(self) -> bool:
        return self.shard_group is not None

    @property
    def stream_number(self) -> int:
        """Stream word of the step keys: 1 + rank for directions of one's own, else 0."""
        return 1 + dist.get_rank(self.replica_group) if self.mode == "local" else 0

    def shared_seed(self, seed: Tensor) -> Tensor:
        """The seed of rank 0; communicated before the first probe only."""
        if not self._shared and self.mode != "none":
            if self.sharded and self.replica_group is not None:
                dist.broadcast(seed, group=self.shard_group, group_src=0)
            dist.broadcast(seed, group=self.replica_group, group_src=0)
            self._shared = True
        return seed

    def loss(self, where: str, value: Any, home: torch.device) -> Tensor | None:
        """A closure's value on the device; None, from a rank without data, stays None."""
        if value is None and self.mode == "global":
            return None
        return as_loss(where, value).to(home, non_blocking=True)

    def average(self, values: list[Tensor | None], home: torch.device) -> Tensor:
        """The losses, float32 or float64; averaged over the ranks in float64, in rank order.

        One collective; every rank has to come, also one without data.
        """
        own = [v for v in values if v is not None]
        if self.mode != "global":
            wide = any(v.dtype == torch.float64 for v in own)
            return torch.stack([v.to(torch.float64 if wide else torch.float32) for v in own])
        counts = len(own) == len(values)
        message = torch.zeros(len(values) + 1, dtype=torch.float64, device=home)
        if counts:
            message[:-1] = torch.stack([v.double() for v in own])
            message[-1] = 1.0
        gathered = _gather(message, self.replica_group)
        total, ranks = torch.zeros_like(message[:-1]), torch.zeros_like(message[-1])
        for part in gathered:
            total = total + torch.where(part[-1] > 0, part[:-1], 0.0)
            ranks = ranks + part[-1]
        return total / ranks

    def over_shards(self, value: Tensor) -> Tensor:
        """Sum over the shards, in rank order."""
        if not self.sharded:
            return value
        total = torch.zeros_like(value)
        for part in _gather(value, self.shard_group):
            total = total + part
        return total


def _gather(value: Tensor, group: Any) -> list[Tensor]:
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, value.contiguous(), group=group)
    return parts
