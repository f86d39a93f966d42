"""Inputs and comparisons shared by the tests of the fused base steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sparse_kernels as sk
from sparse_kernels.testing import copy_of, make_list, make_masks, plant_special_values, ulp_of

#: where the unperturbed parameters are
BACKUPS = ("whole", "masked", "packed")
#: layouts that meet every path of a driver
CASES = ("no-tensors", "chunk-edges", "mixed", "misaligned", "transposed", "strided")
GATES = (
    {"skip": 0.0},
    {"inv_scale": 0.125},
    {"skip": 1.0, "inv_scale": 0.3},
    {"skip": float("nan")},
)


def base_lists(
    case: str, dtype: torch.dtype, device: str, kept: str, special: bool = False
) -> dict[str, Any]:
    """params (perturbed), grads and a backup of the given kind."""
    params = make_list(case, dtype, device, seed=1)
    grads = make_list(case, dtype, device, seed=2)
    saved = make_list(case, dtype, device, seed=3)
    if special:
        plant_special_values(params, stride=3)
        plant_special_values(grads, stride=4)
        plant_special_values(saved, stride=5)
    lists: dict[str, Any] = {"params": params, "grads": grads, "backup": saved}
    if kept == "whole":
        return lists
    keep = make_masks(params, 0.5, seed=4)
    lists["masks"] = sk.pack_mask(keep, backend="reference")
    if kept == "packed":
        lists["ranks"] = sk.mask_ranks(lists["masks"], backend="reference")
        chosen = [b[k] for b, k in zip(saved, keep, strict=True)]
        lists["backup"] = torch.cat(chosen) if chosen else torch.empty(0)
    return lists


def unperturbed(lists: dict[str, Any]) -> list[Tensor]:
    """What ``restore_`` makes of the parameters, as copies."""
    params = copy_of(lists["params"])
    sk.restore_(
        params, lists["backup"], lists.get("masks"), ranks=lists.get("ranks"), backend="reference"
    )
    return params


def within_two_ulps(ours: list[Tensor], theirs: list[Tensor], before: list[Tensor]) -> None:
    """One step: at most 2 units in the last place of the largest value in its last operation.

    That is ``after = before - update``: the update is a few roundings away from the optimizer's,
    in units of its own size, and the result is rounded once more, in units of the result.
    """
    for a, b, w in zip(ours, theirs, before, strict=True):
        values = torch.stack([w.double(), b.double(), w.double() - b.double()])
        unit = ulp_of(values.abs().amax(0), w.dtype)
        assert ((a.double() - b.double()).abs() <= 2 * unit).all()


def relative_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference of all entries over the largest entry of its tensor."""
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max())
        for a, b in zip(ours, theirs, strict=True)
        if b.numel()
    )
