"""What becomes of the duals when lam changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._regularizers import (
    ENTRYWISE,
    effective_lam,
    is_nonnegative,
    readout_,
    subgradient,
)

TRANSFERS = ("rescale", "keep", "auto")
_NUDGE = 16.0  # units of rounding that take a dual back to its side of the threshold


def check_transfer(transfer: str) -> None:
    """ValueError unless there is such a transfer."""
    if transfer not in TRANSFERS:
        raise ValueError(f"transfer must be one of {TRANSFERS}, got {transfer!r}")


def transfer_(
    group: dict[str, Any], params: list[Tensor], duals: list[Tensor], old: float, transfer: str,
    backend: str,
) -> None:  # fmt: skip
    """Take duals from lam = ``old`` to the group's lam and read the weights out again.

    Args:
        group: with the new lam; lam_scale is its own.
        params, duals: (mutated).
        old: the lam before, without lam_scale.
        transfer: "rescale", "keep" or "auto".
        backend: of the readout.
    """
    new = float(group["lam"])
    if not params or new == old:
        return
    before = {**group, "lam": old}
    if transfer == "keep" or (transfer == "auto" and new > old):
        readout_(group, params, duals, backend)
        return
    for p, dual in zip(params, duals, strict=True):
        _rescale_(group, before, p, dual, backend)


def _rescale_(
    group: dict[str, Any], before: dict[str, Any], p: Tensor, dual: Tensor, backend: str
) -> None:
    """xi = v - theta / delta becomes xi lam_new / lam_old; the weights stay."""
    delta, old, new = float(group["delta"]), effective_lam(before), effective_lam(group)
    theta = torch.empty_like(dual, memory_format=torch.contiguous_format)
    readout_(before, [theta], [dual], backend)
    if old == 0.0:
        dual.copy_(theta / delta + subgradient(group, theta))
    elif group["reg"] in ENTRYWISE:
        dual.copy_(_rescaled_entries(group, theta / delta, dual * (new / old), new))
    else:
        xi = (dual - theta / delta) * (new / old)
        dual.copy_(theta / delta + xi)
        if group["reg"] != "nuclear":
            _settle_(group, dual, theta, backend)
    readout_(group, [p], [dual], backend)


def _rescaled_entries(group: dict[str, Any], shown: Tensor, scaled: Tensor, lam: float) -> Tensor:
    """Live entries keep what they show, dead ones stay dead: rounding may not cross lam."""
    bound = torch.full_like(shown, lam)
    if is_nonnegative(group):
        dead = torch.minimum(scaled, bound)
    else:
        dead = scaled.clamp(-lam, lam)
    live = shown + bound * shown.sign()
    beyond = torch.nextafter(bound, torch.full_like(bound, torch.inf)) * shown.sign()
    live = torch.where(live.abs() > bound, live, beyond)
    return torch.where(shown != 0, live, dead)


def _settle_(group: dict[str, Any], dual: Tensor, theta: Tensor, backend: str) -> None:
    """What was zero is zero still and the rest is not, whatever rounding made of the norms."""
    nudge = _NUDGE * torch.finfo(dual.dtype).eps
    shown = torch.empty_like(theta)
    for _ in range(64):  # one or two, unless a weight is too small for any readout
        readout_(group, [shown], [dual], backend)
        born, died = (theta == 0) & (shown != 0), (theta != 0) & (shown == 0)
        if not bool((born | died).any()):
            return
        dual.mul_(1.0 - nudge * born.to(dual.dtype) + nudge * died.to(dual.dtype))
