"""Numbers of a call as the kernels read them: tensors on the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._check import check_scalar, check_scalar_tensor

Numbers = Sequence[float] | Tensor
Scalar = float | Tensor  # a tensor: one element, whose value only its device has to know


def check_hyper(op: str, name: str, value: Scalar, low: float, *, strict: bool = False) -> None:
    """ValueError for a number out of range, or a tensor without exactly one floating element."""
    if not isinstance(value, Tensor):
        check_scalar(op, name, value, low, strict=strict)
        return
    check_scalar_tensor(op, name, value)
    if not value.dtype.is_floating_point:
        raise ValueError(f"{op}: {name} must be a number or a floating tensor, got {value.dtype}")


def wide(value: Scalar, device: torch.device) -> Tensor:
    """0-dim float64 on the device; a number is filled in there."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(device, torch.float64)
    return torch.full((), value, dtype=torch.float64, device=device)


def device_scalars(
    values: Sequence[Scalar], dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """1-D tensor of float64 numbers rounded once to ``dtype``; None if the host has them all.

    What is combined of tensors by ``wide`` has the bits of the same float64 numbers on the host.
    """
    if not any(isinstance(v, Tensor) for v in values):
        return None
    return torch.stack([wide(v, device) for v in values]).to(dtype)


def host_number(value: Scalar) -> float:
    """What stands in a schema's number: 0 where the device has its own."""
    return 0.0 if isinstance(value, Tensor) else value


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
