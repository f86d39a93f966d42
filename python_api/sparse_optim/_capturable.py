"""Options that change in training and live on the device, where captured graphs read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._support import check_number

ON_DEVICE = ("lr", "lam")  # of the Bregman optimizers, where a group is capturable
#: regularisers whose thresholds a step kernel reads itself
OF_ENTRIES = ("none", "l1", "l1_pos")


def check_rate(group: dict[str, Any], name: str) -> None:
    """ValueError unless an option is a number >= 0; on the device, one floating number."""
    value = group[name]
    if not (group.get("capturable") and isinstance(value, Tensor)):
        check_number(name, value, 0.0)
    elif value.numel() != 1 or not value.is_floating_point():
        raise ValueError(f"{name} must be one number, got {value.dtype} of {tuple(value.shape)}")


def keep_on_device(group: dict[str, Any], names: Sequence[str]) -> None:
    """Make options of a capturable group float64 tensors on its device, those that are not yet."""
    if not group["capturable"] or not group["params"]:
        return
    device = group["params"][0].device
    for name in names:
        value = group[name]
        if not isinstance(value, Tensor):
            group[name] = torch.full((), float(value), dtype=torch.float64, device=device)
        elif value.device != device or value.dtype != torch.float64 or value.dim():
            group[name] = value.detach().reshape(()).to(device, torch.float64)


def set_number(group: dict[str, Any], name: str, value: float) -> None:
    """Change an option; a tensor keeps its memory, which captured graphs read."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


def number_on(value: Any, device: torch.device) -> float | Tensor:
    """A float; a tensor on the device that reads it stays one, so that nobody waits for it."""
    here = isinstance(value, Tensor) and value.device == device
    return value if here else float(value)


def check_capturable(group: dict[str, Any]) -> None:
    """ValueError for a capturable group of a Bregman optimizer whose readout the host prepares."""
    if group["capturable"] and group["reg"] not in OF_ENTRIES:
        raise ValueError(
            f"capturable=True needs reg in {OF_ENTRIES}: the thresholds of reg {group['reg']!r} "
            "are made on the host"
        )


def check_capture(where: str, groups: Sequence[dict[str, Any]], lam_from_host: bool) -> None:
    """RuntimeError while a CUDA graph is captured that would not do in replays what steps do."""
    if not all(group["capturable"] for group in groups):
        raise RuntimeError(
            f"{where}: a CUDA graph would keep today's lr, lam and step number; capture needs "
            "capturable=True"
        )
    if groups[0]["coarse_steps"] != 0:
        raise RuntimeError(
            f"{where}: coarse and full steps alternate by a count on the host, which replays of a "
            "CUDA graph do not advance; capture needs coarse_steps=0"
        )
    if lam_from_host:
        raise RuntimeError(
            f"{where}: a QuantileLambda chooses lam on the host; remove() it before the capture"
        )


def longest(lr_of: dict[Tensor, Any]) -> tuple[Any, dict[Tensor, Any]]:
    """The largest learning rate, and the share of it that each parameter takes."""
    rates = {id(rate): rate for rate in lr_of.values()}
    if not any(isinstance(rate, Tensor) for rate in rates.values()):
        lr = max(rates.values())
        return lr, {p: rate / lr for p, rate in lr_of.items()}
    if len(rates) == 1:
        return next(iter(rates.values())), dict.fromkeys(lr_of, 1.0)
    lr = torch.stack([rate.to(next(iter(rates.values())).device) for rate in rates.values()]).max()
    shares = {key: torch.where(lr > 0, rate.to(lr.device) / lr, 0.0) for key, rate in rates.items()}
    return lr, {p: shares[id(rate)] for p, rate in lr_of.items()}
