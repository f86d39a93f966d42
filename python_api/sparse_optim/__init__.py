"""Optimizers for sparse training on top of the fused operations of ``sparse_kernels``."""

from ._bregman_parallel import active_hash, check_active, reduce_gradients_
from ._support import Phase
from .bregman import AdaBreg, LinBreg, ProxSGD, bregman_param_groups
from .export import ExportReport, export_model
from .flops import SparseFlops, training_flops_ratio
from .implicit import ImplicitMask
from .masks import (
    BitMask,
    DynamicMask,
    FisherMask,
    MagnitudeMask,
    MaskPolicy,
    Pattern,
    RandomMask,
    SmallMagnitudeMask,
    live_count,
    select_top,
)
from .sam import SAM, SSAM
from .sparse_init import sparse_init_
from .sparse_training import (
    DSR,
    GMP,
    MEST,
    SET,
    SNIP,
    GraSP,
    LotteryTicket,
    RigL,
    SparseTraining,
    class_balanced,
    layer_counts,
)
from .sparsity_control import CubicRamp, FeedbackLambda, QuantileLambda
from .zeroth_order import ZOSAM, MeZO

__all__ = [
    "DSR",
    "GMP",
    "MEST",
    "SAM",
    "SET",
    "SNIP",
    "SSAM",
    "ZOSAM",
    "AdaBreg",
    "BitMask",
    "CubicRamp",
    "DynamicMask",
    "ExportReport",
    "FeedbackLambda",
    "FisherMask",
    "GraSP",
    "ImplicitMask",
    "LinBreg",
    "LotteryTicket",
    "MagnitudeMask",
    "MaskPolicy",
    "MeZO",
    "Pattern",
    "Phase",
    "ProxSGD",
    "QuantileLambda",
    "RandomMask",
    "RigL",
    "SmallMagnitudeMask",
    "SparseFlops",
    "SparseTraining",
    "active_hash",
    "bregman_param_groups",
    "check_active",
    "class_balanced",
    "export_model",
    "layer_counts",
    "live_count",
    "reduce_gradients_",
    "select_top",
    "sparse_init_",
    "training_flops_ratio",
]
