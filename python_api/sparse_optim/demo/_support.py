"""Errors that end the program with one line, and packages only the demo needs."""

from __future__ import annotations

import importlib
from types import ModuleType

INSTALL = 'pip install "sparse-kernels[demo]"'


class UserError(Exception):
    """Something the user can put right; its message is one line."""


def require(*modules: str) -> list[ModuleType]:
    """Import optional packages.

    Args:
        modules: names such as "sklearn.datasets".

    Returns:
        The modules, in that order.

    Raises:
        UserError: one is not installed.

    Example:
        >>> require("math")[0].__name__
        'math'
    """
    found = []
    for name in modules:
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            missing = (error.name or name).partition(".")[0]
            raise UserError(f"{missing} is not installed; {INSTALL} brings it") from error
    return found
