"""Helpers for tests of the operations and of code built on them.

Lists of tensors in every layout the operations accept, values that break careless kernels,
comparison bit by bit, and the error budget of a dtype.

Example:
    >>> import torch, sparse_kernels
    >>> from sparse_kernels.testing import assert_bit_equal, make_list, targets
    >>> grads = make_list("mixed", torch.float32, seed=1)
    >>> results = [sparse_kernels.grad_norm(grads, backend=t.backend) for t in targets("cpu")]
    >>> assert_bit_equal(results, results[:1] * len(results), "norm")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._backend import BACKENDS, available_backends, explain
from ._schemas import OPS
from .reference._common import CHUNK_SIZE

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Target:
    """A backend and the device type of the tensors it is given."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"


def all_targets() -> list[Target]:
    """Every (backend, device) pair there is a kernel for, available here or not."""
    pairs = [("reference", "cpu"), ("cpp", "cpu"), ("triton", "cpu")]
    pairs += [("reference", "cuda"), ("triton", "cuda"), ("cuda", "cuda")]
    return [Target(*pair) for pair in pairs]


def unavailable_reason(target: Target) -> str | None:
    """Why ``target`` cannot run here, in the words of ``explain``; None if it can."""
    if target.device == "cuda" and not torch.cuda.is_available():
        return f"{target}: no CUDA device"
    for op in OPS:
        reasons = {b: (ok, why) for b, ok, why in explain(op, target.device)}
        ok, why = reasons[target.backend]
        if not ok:
            return f"{target}: {why}"
    return None


def targets(device: str | None = None) -> list[Target]:
    """The pairs that can run here, optionally those of one device type."""
    usable = [t for t in all_targets() if unavailable_reason(t) is None]
    return [t for t in usable if device is None or t.device == device]


def supports(target: Target, dtype: torch.dtype) -> bool:
    """Whether the target has kernels for this dtype (float64 runs on reference and cpp only)."""
    assert target.backend in BACKENDS
    return target.backend in available_backends(target.device, dtype)


# lists of tensors ------------------------------------------------------------------------------

_SIZES: dict[str, list[tuple[int, ...]]] = {
    "no-tensors": [],
    "zero-size": [(0,)],
    "one": [(1,)],
    "zero-dim": [()],
    "seven": [(7,)],
    "chunk-edges": [(CHUNK_SIZE - 1,), (CHUNK_SIZE,), (CHUNK_SIZE + 1,)],
    "tiny-600": [(1 + i % 5,) for i in range(600)],
    "tiny-1000": [(1 + i % 3,) for i in range(1000)],
    "mixed": [(3,), (0,), (64, 33), (), (2 * CHUNK_SIZE + 77,), (0, 4), (31,), (257,), (32, 8)],
}


def _misaligned(dtype: torch.dtype, device: str) -> list[Tensor]:
    bases = [torch.empty(n + 1, dtype=dtype, device=device) for n in (1, 5, 1023, CHUNK_SIZE + 9)]
    return [base[1:] for base in bases]


def _transposed(dtype: torch.dtype, device: str) -> list[Tensor]:
    shapes = [(5, 3), (129, 70), (1, 9)]
    return [torch.empty(shape, dtype=dtype, device=device).t() for shape in shapes]


def _channels_last(dtype: torch.dtype, device: str) -> list[Tensor]:
    shapes = [(4, 3, 5, 5), (16, 9, 3, 3), (2, 1, 7, 1)]
    return [
        torch.empty(s, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        for s in shapes
    ]


def _strided(dtype: torch.dtype, device: str) -> list[Tensor]:
    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return [new(40)[::3], new(9, 50)[2:7, 1:48:2], new(6, 4, 10)[:, 1], new(300, 2)[:, 0]]


_LAYOUTS: dict[str, Callable[[torch.dtype, str], list[Tensor]]] = {
    "misaligned": _misaligned,
    "transposed": _transposed,
    "channels-last": _channels_last,
    "strided": _strided,
}

#: names of the lists that ``make_list`` builds
LIST_CASES = (*_SIZES, *_LAYOUTS)
#: a short selection that meets every code path of an elementwise driver once
SMALL_CASES = ("mixed", "misaligned", "transposed", "strided")


def make_list(
    case: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    seed: int = 0,
    scale: float = 1.0,
) -> list[Tensor]:
    """Build the list of tensors called ``case`` (one of ``LIST_CASES``), normal values.

    Args:
        case: the layout: sizes around a chunk, hundreds of tiny tensors, views with gaps, ...
        dtype: dtype of the tensors.
        device: device type.
        seed: of a generator of its own; two seeds give the same layout with other values.
        scale: standard deviation of the values.

    Returns:
        The list; views own storage of their own, gaps between their elements are filled as well.
    """
    if case in _SIZES:
        tensors = [torch.empty(s, dtype=dtype, device=device) for s in _SIZES[case]]
    else:
        tensors = _LAYOUTS[case](dtype, device)
    generator = torch.Generator().manual_seed(seed)
    for t in tensors:
        storage = whole_storage(t)
        values = torch.randn(storage.numel(), generator=generator) * scale
        storage.copy_(values.to(dtype))
    return tensors


def whole_storage(tensor: Tensor) -> Tensor:
    """All elements of the memory behind a view, gaps included, as a flat tensor."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)


def copy_of(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies with the same strides, storage offset and gaps; optionally in another dtype."""
    out = []
    for t in tensors:
        storage = whole_storage(t).to(dtype or t.dtype, copy=True)
        out.append(storage.as_strided(t.shape, t.stride(), t.storage_offset()))
    return out


def make_masks(tensors: Sequence[Tensor], density: float = 0.5, *, seed: int = 0) -> list[Tensor]:
    """Bool masks of the shapes of ``tensors``, True with probability ``density``."""
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(t.shape, generator=generator) < density for t in tensors]
    return [m.to(t.device) for m, t in zip(masks, tensors, strict=True)]


def bits_of(tensor: Tensor) -> Tensor:
    """The bits of a tensor as integers of its element size."""
    return tensor.detach().contiguous().view(_BITS[tensor.element_size()])


def special_values(dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Both zeros, infinities, NaNs with payloads, denormals and the largest values of a dtype."""
    info = torch.finfo(dtype)
    finite = [0.0, -0.0, info.max, -info.max, info.tiny, -info.tiny, info.smallest_normal / 2]
    values = torch.tensor([*finite, float("inf"), -float("inf"), float("nan")], dtype=dtype)
    infinity, quiet = bits_of(values)[-3:-2], bits_of(values)[-1:]
    # a quiet and a signalling NaN with payloads, the smallest denormal
    more = torch.cat([quiet + 42, infinity + 1, quiet * 0 + 1])
    return torch.cat([values, more.view(dtype)]).to(device)


def plant_special_values(tensors: Sequence[Tensor], *, stride: int = 5, start: int = 0) -> None:
    """Write ``special_values`` round-robin at every ``stride``-th element (mutated)."""
    for t in tensors:
        flat = torch.arange(min(start, t.numel()), t.numel(), stride, device=t.device)
        # copied as integers: arithmetic on a float may quieten a signalling NaN
        values = bits_of(special_values(t.dtype, str(t.device)))
        bits = t.detach().view(values.dtype)
        planted = bits.reshape(-1).clone()
        planted[flat] = values[torch.arange(flat.numel(), device=t.device) % values.numel()]
        bits.copy_(planted.view(t.shape))


# comparison ------------------------------------------------------------------------------------


def _describe(value: Tensor) -> str:
    width = 2 * value.element_size()
    mask = (1 << (8 * value.element_size())) - 1
    return f"{value.item()!r} (bits {int(bits_of(value.reshape(1))[0]) & mask:0{width}x})"


def _differing(actual: Tensor, expected: Tensor, payloads: bool) -> Tensor:
    different = bits_of(actual) != bits_of(expected)
    if not payloads and actual.dtype.is_floating_point:
        different &= ~(actual.isnan() & expected.isnan()).contiguous()
    return different


def assert_bit_equal(
    actual: Sequence[Tensor] | Tensor,
    expected: Sequence[Tensor] | Tensor,
    name: str = "tensors",
    *,
    payloads: bool = False,
) -> None:
    """Assert that two lists hold the same bits; any NaN equals any NaN unless ``payloads``.

    Args:
        actual, expected: lists of tensors, or single tensors. Shapes and dtypes must agree;
            devices need not.
        name: what the list is called in the message.
        payloads: compare the bits of NaNs as well.

    Raises:
        AssertionError: naming the list, the tensor, the first index and both values.
    """
    if isinstance(actual, Tensor):
        actual = [actual]
    if isinstance(expected, Tensor):
        expected = [expected]
    if len(actual) != len(expected):
        raise AssertionError(f"{name} has {len(actual)} tensors, expected {len(expected)}")
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        a, e = a.detach().cpu(), e.detach().cpu()
        if a.dtype != e.dtype or a.shape != e.shape:
            raise AssertionError(
                f"{name}[{i}] is {a.dtype} {tuple(a.shape)}, expected {e.dtype} {tuple(e.shape)}"
            )
        different = _differing(a, e, payloads).reshape(-1)
        if different.any():
            at = int(different.int().argmax())
            index = tuple(int(k) for k in torch.unravel_index(torch.tensor(at), a.shape))
            raise AssertionError(
                f"{name}[{i}]{list(index)} is {_describe(a.reshape(-1)[at])}, expected "
                f"{_describe(e.reshape(-1)[at])}; {int(different.sum())} of {a.numel()} differ"
            )


def ulp_of(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of ``dtype``'s neighbours at ``value`` (its last bit), as float64."""
    info = torch.finfo(dtype)
    magnitude = value.detach().double().abs().clamp(min=info.smallest_normal)
    exponent = torch.frexp(magnitude).exponent - 1
    return torch.ldexp(torch.full_like(magnitude, info.eps), exponent)


@dataclass(frozen=True, slots=True)
class ErrorBudget:
    """How far a backend may be from the float64 oracle: ``factor`` times the reference's own error
    in its dtype, plus ``ulps`` units in the last place of the result.

    The reference's error is the largest of the tensor, in ulps of the oracle: where the reference
    is right by luck a backend need not be.
    """

    dtype: torch.dtype
    factor: float = 2.0
    ulps: float = 1.0

    def allowed(self, reference: Tensor, oracle: Tensor) -> Tensor:
        """Largest error of each element."""
        unit = ulp_of(oracle, self.dtype)
        error = (reference.detach().double() - oracle.double()).abs() / unit
        worst = error[error.isfinite()].max() if error.isfinite().any() else error.new_zeros(())
        return (self.factor * worst + self.ulps) * unit

    def check(self, actual: Tensor, reference: Tensor, oracle: Tensor, name: str) -> None:
        """Assert that ``actual`` is within the budget; NaN and infinities must agree.

        Raises:
            AssertionError: naming the tensor, the first index and the values.
        """
        actual, reference, oracle = (t.detach().cpu() for t in (actual, reference, oracle))
        got, want = actual.double(), oracle.double()
        over_range = want.abs() > torch.finfo(self.dtype).max
        exact = got.isnan() & want.isnan() | (got == want) | (over_range & got.isinf())
        bad = ~exact & ~((got - want).abs() <= self.allowed(reference, oracle))
        if bad.any():
            at = int(bad.reshape(-1).int().argmax())
            values = (t.reshape(-1)[at].item() for t in (actual, reference, oracle))
            raise AssertionError(
                "{}.flat[{}] is {!r}; reference {!r}, oracle {!r}".format(name, at, *values)
                + f"; {int(bad.sum())} of {bad.numel()} over the budget"
            )


def error_budget(dtype: torch.dtype) -> ErrorBudget:
    """The budget of a dtype: twice the reference's error in that dtype plus 1 ulp."""
    if dtype not in DTYPES:
        raise ValueError(f"error_budget: dtype must be one of {DTYPES}, got {dtype}")
    return ErrorBudget(dtype)
