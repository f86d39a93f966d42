"""Microbenchmarks: ``python -m bench``."""
