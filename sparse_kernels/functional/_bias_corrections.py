"""Bias corrections of Adam by step number, with the same bits on the host and on a device."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ._scalars import Scalar


def _bias_corrections(
    beta1: float, beta2: float, rows: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """float64 tables [rows] of 1 - beta1^n and sqrt(1 - beta2^n) for n = 0 ... rows - 1."""
    n = range(rows)
    bias1 = torch.tensor([1.0 - beta1**k for k in n], dtype=torch.float64)
    bias2 = torch.tensor([math.sqrt(1.0 - beta2**k) for k in n], dtype=torch.float64)
    bias1[0] = bias2[0] = 1.0  # row 0 is never read: a count is at least 1 when used
    return bias1.to(device), bias2.to(device)


_cached_bias_corrections = functools.lru_cache(maxsize=16)(_bias_corrections)


#: kept for good: a captured graph reads them again in every replay
_lasting_bias_corrections = functools.cache(_bias_corrections)

#: of a table for a step number that only the device knows: 64 MB
MOST_ROWS = 1 << 22


def table_rows(step: int | None, betas: tuple[float, float]) -> int:
    """Rows until both corrections round to 1 in float64, or enough for ``step`` (doubling)."""
    slowest = max(betas)
    saturated = math.ceil(-54 * math.log(2) / math.log(slowest)) + 2 if slowest > 0 else 2
    return saturated if step is None else min(saturated, 1 << (step + 1).bit_length())


def corrections_at(
    step: int | Tensor, betas: tuple[float, float], device: torch.device
) -> tuple[Scalar, Scalar]:
    """1 - beta1^n and sqrt(1 - beta2^n) of a number, or on the device, with the same bits."""
    if not isinstance(step, Tensor):
        return 1.0 - betas[0] ** step, math.sqrt(1.0 - betas[1] ** step)
    bias1, bias2 = tables(None, betas, device)
    row = step.detach().reshape(1).to(device, torch.int64).clamp(0, len(bias1) - 1)
    return bias1.index_select(0, row).squeeze(0), bias2.index_select(0, row).squeeze(0)


def tables(
    step: int | None, betas: tuple[float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    # a graph under construction must not leave its fake tensors in the cache
    make = _cached_bias_corrections if step is not None else _lasting_bias_corrections
    if torch.compiler.is_compiling():
        make = _bias_corrections  # type: ignore[assignment]
    return make(*betas, table_rows(step, betas), device)
