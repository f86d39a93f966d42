"""Shrinkage of duals as the group and support kernels need it."""

import math

import triton
import triton.language as tl

from ._launch import f32


def lower_bound(lam: float, nonnegative: bool) -> float:
    """Lower end of what a shrinkage subtracts."""
    return -math.inf if nonnegative else -f32(lam)


@triton.jit
def shrink(dual, lower, lam):
    """Soft threshold; comparisons, unlike minimum and maximum, keep NaN and the sign of zero."""
    return dual - tl.where(dual < lower, lower, tl.where(dual > lam, lam, dual))
