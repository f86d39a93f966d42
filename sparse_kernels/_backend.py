"""Which backend runs an op: ``auto``, ``cuda``, ``triton``, ``cpp`` or ``reference``.

Precedence: the ``backend=`` argument, then ``use_backend``, then ``SPARSE_KERNELS_BACKEND``, then
``auto``. An explicit choice never falls back.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator

import torch

from . import _loader
from ._schemas import COMPILED, OPS, REFERENCE, TRITON

BACKENDS = ("cuda", "triton", "cpp", "reference")
CHECKS_LISTS = ("cuda", "cpp")  # compiled kernels check their lists themselves
_NAMESPACE = {"cuda": COMPILED, "cpp": COMPILED, "triton": TRITON, "reference": REFERENCE}
_AUTO = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpp", "reference")}
_override: str | None = None


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for cannot run this op on this device."""


def preferences(device: str) -> tuple[str, ...]:
    """Backends in the order in which ``auto`` tries them on tensors of a device type."""
    return _AUTO.get(device, ("reference",))


def _has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{COMPILED}::{op}", key)


@functools.cache
def _triton_reason() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    return None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _reason(op: str, backend: str, device: str, dtype: torch.dtype | None) -> str | None:
    """Why ``backend`` cannot run ``op``, or None if it can."""
    if backend == "reference":
        return None
    if backend == "cpp":
        if device != "cpu":
            return f"it runs on CPU tensors, these are on {device}"
        if not _has_kernel(op, "CPU"):
            error = _loader.load_errors.get("_C")
            return f"the extension sparse_kernels._C is not there: {error}"
        return None
    if dtype == torch.float64:
        return "float64 runs on the reference and cpp backends only"
    if backend == "triton":
        if device != "cuda" and not (device == "cpu" and _interpreting()):
            where = "CUDA tensors (CPU ones under TRITON_INTERPRET=1)"
            return f"it runs on {where}, these are on {device}"
        return _triton_reason()
    if device != "cuda":
        return f"it runs on CUDA tensors, these are on {device}"
    if not _has_kernel(op, "CUDA"):
        error = _loader.load_errors.get("_C_cuda")
        return f"the extension sparse_kernels._C_cuda is not there: {error}"
    return None


def requested_backend(backend: str | None) -> str:
    """The name in force for a call; an argument of None or "auto" leaves the choice open.

    Raises:
        ValueError: there is no backend of that name.
    """
    name = backend
    if name is None or name == "auto":
        name = _override or os.environ.get("SPARSE_KERNELS_BACKEND") or "auto"
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, got {name!r}")
    return name


@functools.cache
def resolved(op: str, name: str, device: str, dtype: torch.dtype | None) -> tuple[str, Callable]:
    """The backend that runs ``op`` under the name in force (``requested_backend``), and its op."""
    if name == "auto":
        chosen = next(b for b in preferences(device) if _reason(op, b, device, dtype) is None)
        if device == "cuda" and chosen == "reference":
            warnings.warn(
                f"{op}: no fused CUDA or Triton kernel for {dtype}, using the slow reference; "
                "see python -m sparse_kernels.info",
                stacklevel=2,
            )
    else:
        chosen = name
        reason = _reason(op, name, device, dtype)
        if reason is not None:
            there = [b for b in BACKENDS if _reason(op, b, device, dtype) is None]
            cause = _loader.load_errors.get({"cpp": "_C", "cuda": "_C_cuda"}.get(name, ""))
            raise BackendUnavailableError(
                f"{op}: backend {name!r} is not available for {dtype} on {device}: {reason}; "
                f"available here: {', '.join(there)}"
            ) from cause
    return chosen, getattr(getattr(torch.ops, _NAMESPACE[chosen]), op).default


def _namespace(op: str, name: str, device: str, dtype: torch.dtype | None) -> str:
    return _NAMESPACE[resolved(op, name, device, dtype)[0]]


# What torch.compiler.assume_constant_result sets; that decorator imports torch._dynamo, and with it
# triton, at import time. Tracing calls _namespace and does not look inside: what is installed does
# not change, and the name in force, which may, is an argument.
_namespace._dynamo_marked_constant = True  # type: ignore[attr-defined]


def resolve(
    op: str, backend: str | None, device: str, dtype: torch.dtype | None = None
) -> Callable:
    """The dispatcher op that runs ``op``; cached per (op, choice, device type, dtype)."""
    name = requested_backend(backend)
    if torch.compiler.is_compiling():
        return getattr(getattr(torch.ops, _namespace(op, name, device, dtype)), op).default
    return resolved(op, name, device, dtype)[1]


def resolved_name(
    op: str, backend: str | None, device: str, dtype: torch.dtype | None = None
) -> str:
    """Name of the backend that runs ``op`` for a ``backend=`` argument on a device type and dtype.

    Raises:
        BackendUnavailableError: the backend asked for cannot run it there.
    """
    return resolved(op, requested_backend(backend), device, dtype)[0]


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Choose the backend of every op called inside the block without ``backend=``.

    Args:
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: there is no backend of that name.
    """
    global _override
    requested_backend(backend)
    previous, _override = _override, backend
    try:
        yield
    finally:
        _override = previous


def explain(op: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[tuple]:
    """List (backend, usable, reason) for ``op`` on a device type, in the order of ``BACKENDS``.

    Raises:
        ValueError: there is no op of that name.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; ops are {', '.join(OPS)}")
    reasons = [(b, _reason(op, b, device, dtype)) for b in BACKENDS]
    return [(b, reason is None, reason or "available") for b, reason in reasons]


def available_backends(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[str]:
    """Backends that can run every op on tensors of this device type and dtype."""
    return [b for b in BACKENDS if all(_reason(op, b, device, dtype) is None for op in OPS)]
