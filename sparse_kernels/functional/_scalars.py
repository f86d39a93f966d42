"""Numbers of a call as the kernels read them: tensors on the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = Sequence[float] | Tensor


def key_word(key: int, device: torch.device) -> Tensor:
    """0-dim int64 with the bits of a 64-bit key."""
    signed = key - 2**64 if key >= 2**63 else key
    return torch.full((), signed, dtype=torch.int64, device=device)  # a fill, not a copy


def device_numbers(
    values: Sequence[float] | Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """1-D tensor of host numbers, without waiting for the device."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def numbers_of(
    values: Numbers | None, indices: list[int], dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """The numbers of one group of tensors, one per tensor; None stays None."""
    if values is None:
        return None
    if isinstance(values, Tensor):
        own = values if len(indices) == values.numel() else values[indices]
        return own.to(device, dtype).contiguous()
    return device_numbers([float(values[i]) for i in indices], dtype, device)
