"""Pieces shared by the optimizers: phases, names in messages, loss values, guarded buffers."""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BACKENDS = ("auto", "cuda", "triton", "cpp", "reference")
_layout = operator.attrgetter("layout")


class Phase(str, enum.Enum):
    """Where an optimizer stands inside a step.

    Example:
        >>> Phase.IDLE == "idle"
        True
    """

    IDLE = "idle"  # weights are the weights
    PERTURBED = "perturbed"  # weights are w + e; gradients are being taken there
    RESTORED = "restored"  # weights are the weights again, the gradient at w + e is in .grad

    __str__ = str.__str__


def check_backend(backend: str) -> str:
    """Return ``backend``; ValueError if there is no such name."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    return backend


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, strict: bool = False
) -> float:
    """Return ``value`` as a float; ValueError unless finite and in range (> low if strict)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    inside = math.isfinite(number) and low <= number <= high and not (strict and number == low)
    if not inside:
        bounds = f"{'>' if strict else '>='} {low:g}"
        if high != math.inf:
            bounds += f" and <= {high:g}"
        raise ValueError(f"{name} must be finite and {bounds}, got {value}")
    return number


def check_momentum(group: dict[str, Any]) -> None:
    """ValueError unless momentum and nesterov of a parameter group go together."""
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {group['momentum']}")
    plain = group.get("momentum_form", "sgd") == "sgd"
    if group["nesterov"] and (group["momentum"] == 0.0 or not plain):
        raise ValueError("nesterov needs momentum > 0 of the 'sgd' form")


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int; ValueError unless it is integral and in [low, high)."""
    if isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
    if number < low or (high is not None and number >= high):
        bounds = f">= {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return number


def name_of(groups: Sequence[dict[str, Any]], param: Tensor) -> str:
    """The name a parameter was given with, else ""."""
    for group in groups:
        for i, p in enumerate(group["params"]):
            if p is param and group.get("param_names"):
                return group["param_names"][i]
    return ""


def label(groups: Sequence[dict[str, Any]], param: Tensor) -> str:
    """Name of a parameter for messages: its own if it was given one, else its place."""
    name, shape = name_of(groups, param), tuple(param.shape)
    if name:
        return f"parameter {name!r} of shape {shape}"
    for g, group in enumerate(groups):
        for i, p in enumerate(group["params"]):
            if p is param:
                return f"parameter param_groups[{g}]['params'][{i}] of shape {shape}"
    return f"a parameter of shape {shape}"


def trainable(groups: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Parameters with ``requires_grad`` in group order, each once."""
    # by id: torch hashes a tensor in Python
    return list({id(p): p for g in groups for p in g["params"] if p.requires_grad}.values())


def same_tensors(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two lists hold one and the same tensors."""
    return len(a) == len(b) and all(map(operator.is_, a, b))


def check_dense_gradients(
    where: str, groups: Sequence[dict[str, Any]], params: Sequence[Tensor]
) -> None:
    """RuntimeError for a gradient the fused operations have no meaning for."""
    grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
    for param, layout in zip(params, map(_layout, grads), strict=True):
        if layout != torch.strided:
            raise RuntimeError(f"{where}: {label(groups, param)} has a gradient of layout {layout}")
    if any(map(Tensor.is_complex, grads)):
        complex_one = next(p for p in params if p.grad.is_complex())  # type: ignore[union-attr]
        raise RuntimeError(f"{where}: {label(groups, complex_one)} is complex")


def as_loss(where: str, value: Any) -> Tensor:
    """A closure's return value as a detached 0-dim tensor, float64 if it was, else float32."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(
                f"{where}: the loss closure must return a real scalar, "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
        wide = value.dtype == torch.float64
        return value.detach().reshape(()).to(torch.float64 if wide else torch.float32)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    raise ValueError(f"{where}: the loss closure must return a scalar, got {type(value).__name__}")


class BufferGuard:
    """Copies of the buffers of some modules, put back in place after forwards that do not count.

    Every buffer in the module trees is guarded, so running statistics of any normalisation layer,
    custom ones included, are.
    """

    def __init__(self, modules: nn.Module | Iterable[nn.Module] | None) -> None:
        given = [] if modules is None else modules
        self.modules = [given] if isinstance(given, nn.Module) else list(given)
        for i, m in enumerate(self.modules):
            if not isinstance(m, nn.Module):
                raise ValueError(f"bn_modules[{i}] must be a module, got {type(m).__name__}")
        self._saved: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"modules": self.modules, "_saved": []}

    def save(self) -> None:
        """Remember the buffers as they are now."""
        owners = dict.fromkeys(sub for m in self.modules for sub in m.modules())
        self._saved = [
            (owner, name, buffer, buffer.detach().clone())
            for owner in owners
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def put_back(self) -> None:
        """Write the remembered values back, into the same tensors."""
        for owner, name, buffer, saved in self._saved:
            with torch.no_grad():
                buffer.copy_(saved)
            if owner._buffers.get(name) is not buffer:
                owner._buffers[name] = buffer

    def drop(self) -> None:
        self._saved = []


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def rng_state(devices: Iterable[torch.device]) -> dict[str, Tensor]:
    """States of torch's global generators: the CPU's and those of the CUDA devices named."""
    state = {"cpu": torch.get_rng_state()}
    for device in set(devices):
        if device.type == "cuda":
            state[str(device)] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    for device, value in state.items():
        if device == "cpu":
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value, device)
