"""Triton twins of the ops; see ``docs/backends.md``."""
