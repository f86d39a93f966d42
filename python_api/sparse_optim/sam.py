"""Sharpness-aware minimisation: ``SAM`` (dense, adaptive) and ``SSAM`` (sparse)."""

from ._sam import SAM
from ._ssam import SSAM

__all__ = ["SAM", "SSAM"]
