"""Optimizers for sparse training on top of the fused operations of ``sparse_kernels``."""

from ._support import Phase
from .bregman import AdaBreg, LinBreg, bregman_param_groups
from .flops import SparseFlops, bregman_cost_ratio
from .implicit import ImplicitMask
from .masks import (
    BitMask,
    DynamicMask,
    FisherMask,
    MagnitudeMask,
    MaskPolicy,
    Pattern,
    RandomMask,
    live_count,
    select_top,
)
from .sam import SAM, SSAM
from .sparse_init import sparse_init_
from .zeroth_order import ZOSAM, MeZO

__all__ = [
    "SAM",
    "SSAM",
    "ZOSAM",
    "AdaBreg",
    "BitMask",
    "DynamicMask",
    "FisherMask",
    "ImplicitMask",
    "LinBreg",
    "MagnitudeMask",
    "MaskPolicy",
    "MeZO",
    "Pattern",
    "Phase",
    "RandomMask",
    "SparseFlops",
    "bregman_cost_ratio",
    "bregman_param_groups",
    "live_count",
    "select_top",
    "sparse_init_",
]
