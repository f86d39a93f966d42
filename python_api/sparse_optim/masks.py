"""Mask policies: which entries Sparse SAM perturbs.

A policy ranks the entries; a pattern says which sets of entries are possible (``_patterns.py``).
``MaskPolicy.compute`` is all an optimizer needs; ``SSAM`` and ``ImplicitMask`` use it alike, and
its mask can serve as a weight mask of ``SAM``, ``SSAM`` and ``ZOSAM``.
"""

from __future__ import annotations

from ._bitmask import COUNT_RULES, BitMask, live_count, select_top
from ._dynamic_mask import DynamicMask
from ._fisher import FisherMask
from ._patterns import Pattern, Ranking
from ._policy import MagnitudeMask, MaskPolicy, RandomMask, SmallMagnitudeMask

__all__ = [
    "COUNT_RULES",
    "BitMask",
    "DynamicMask",
    "FisherMask",
    "MagnitudeMask",
    "MaskPolicy",
    "Pattern",
    "RandomMask",
    "Ranking",
    "SmallMagnitudeMask",
    "live_count",
    "select_top",
]
