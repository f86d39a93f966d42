"""Parameters of which this process holds a part."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


def is_sharded(param: Tensor) -> bool:
    """Whether a parameter is a DTensor."""
    return hasattr(param, "to_local")


def local_of(param: Tensor) -> Tensor:
    """The memory of this process behind a parameter, without autograd: its shard, or itself."""
    if is_sharded(param):
        with torch.no_grad():
            return param.to_local()  # type: ignore[attr-defined]
    return param


class Locals:
    """The memory of this process behind parameters, as the same tensor objects every time."""

    def __init__(self) -> None:
        self._shards: dict[Tensor, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": {}}

    def of(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Tensors by which backups and masks know the parameters."""
        return [self._of(p) for p in params]

    def _of(self, param: Tensor) -> Tensor:
        own = local_of(param)
        if own is param:
            return param
        kept = self._shards.get(param)  # to_local makes a new tensor over the same memory
        if kept is None or kept.shape != own.shape or kept.data_ptr() != own.data_ptr():
            self._shards[param] = kept = own
        return kept


@contextlib.contextmanager
def gathered_anew(params: Sequence[Tensor]) -> Iterator[None]:
    """Forwards inside and after the block see the shards as they are now.

    ``fully_shard`` keeps what the root gathered until a backward: forwards without one would go on
    at the weights of the first. Nothing happens where no parameter is a DTensor.
    """
    if not any(map(is_sharded, params)):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    seen: dict[nn.Module, None] = {}

    def reshard(module: nn.Module, args: Any) -> None:
        if module in seen:  # reached within another, or once more: it has what it needs
            return
        fresh = [m for m in module.modules() if m not in seen]
        seen.update(dict.fromkeys(fresh))
        for m in fresh:
            if isinstance(m, FSDPModule):
                m.reshard()

    hook = register_module_forward_pre_hook(reshard)
    try:
        yield
    finally:
        hook.remove()
        for m in seen:
            if isinstance(m, FSDPModule):
                m.reshard()


def shard_first(param: Tensor, name: str) -> int:
    """Index of the shard's first element in the row-major order of the whole parameter.

    Raises:
        ValueError: the shard is not contiguous in that order (split along another dimension than
            the first).
    """
    if not is_sharded(param):
        return 0
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = param.placements  # type: ignore[attr-defined]
    for placement in placements:
        if type(placement) is not Replicate and not (
            type(placement) is Shard and placement.dim == 0
        ):
            raise ValueError(
                f"{name} is placed as {placement}; random directions need shards along dimension 0"
            )
    mesh = param.device_mesh  # type: ignore[attr-defined]
    _, offset = compute_local_shape_and_global_offset(param.shape, mesh, placements)
    return offset[0] * math.prod(param.shape[1:]) if param.dim() else 0


def shard_group_of(params: list[Tensor]) -> Any:
    """Process group over which the parameters are split; None if they are not.

    Raises:
        ValueError: they are not all split over one group.
    """
    found: dict[int, Any] = {}
    for p in params:
        own: list[Any] = [None]
        if is_sharded(p):
            from torch.distributed.tensor import Shard

            mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
            split = [i for i, placement in enumerate(placements) if isinstance(placement, Shard)]
            own = [mesh.get_group(i) for i in split] or [None]
        for group in own:
            found[id(group)] = group
    if len(found) > 1:
        raise ValueError("all parameters must be split over one process group, or none of them")
    return next(iter(found.values()), None)
