"""The part of a call that one op runs, and who checks its lists."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ._backend import resolve
from ._schemas import COMPILED

_P = ParamSpec("_P")
_R = TypeVar("_R")
trust = threading.local()  # kernel: the lists of the call that runs are still unseen


class Refused(Exception):
    """A compiled op refused lists that nobody has looked at yet."""


@dataclass(slots=True)
class Group:
    """The part of a call that shares one device and dtype; ``lists`` are contiguous.

    Attributes:
        unseen: the lists were left to the compiled op's own checks.
        function: the dispatcher op, where it is known already.
    """

    indices: list[int]
    device: torch.device
    dtype: torch.dtype
    lists: dict[str, list[Tensor]]
    op: str = ""
    backend: str | None = None
    unseen: bool = False
    function: Callable[..., Any] | None = None

    def run(self, *args: Any) -> Any:
        """Call the dispatcher op that runs this group."""
        function = self.function
        if function is None:
            function = resolve(self.op, self.backend, self.device.type, self.dtype)
        if not self.unseen:
            return function(*args)
        trust.kernel = False  # from here on something may be written
        try:
            return function(*args)
        except RuntimeError as error:
            # a check's message names the op after its place, the dispatcher's the namespace;
            # anything else (memory, the device) may come after something was written
            text = str(error)
            if f", {self.op}: " in text or f"{COMPILED}::" in text:
                raise Refused from error
            raise


def checked_by_kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Leave the lists of a public function to the checks of the compiled op it calls.

    For functions that call one op per group and write nothing before. Where the op refuses, the
    function runs once more with the checks of ``_check.py``, which say what is wrong, or split the
    call by device and dtype, or copy what is not contiguous.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        trust.kernel = True
        try:
            return function(*args, **kwargs)
        except Refused:
            pass
        except ValueError:
            # before any op ran: it may be the lists that are wrong, and they come first
            if not trust.kernel:
                raise
        finally:
            trust.kernel = False
        return function(*args, **kwargs)

    return call
