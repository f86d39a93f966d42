"""Triton twins of the ops; see ``docs/backends.md``."""

from ._autotune import autotune

__all__ = ["autotune"]
