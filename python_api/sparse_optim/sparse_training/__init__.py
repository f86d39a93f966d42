"""Sparse training methods: a weight mask around any optimizer."""

from ._scheduler import SparseTraining
from .distributions import DISTRIBUTIONS, layer_counts
from .dynamic import DSR, GMP, MEST, SET, RigL
from .static import SNIP, GraSP, LotteryTicket, class_balanced

__all__ = [
    "DISTRIBUTIONS",
    "DSR",
    "GMP",
    "MEST",
    "SET",
    "SNIP",
    "GraSP",
    "LotteryTicket",
    "RigL",
    "SparseTraining",
    "class_balanced",
    "layer_counts",
]
