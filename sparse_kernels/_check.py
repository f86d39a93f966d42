"""User-level validation and grouping, the same words for every backend.

Everything is checked before anything is modified; a message names the op, the list and the index.
The compiled kernels check their lists themselves (``csrc/torch/check.h``), so that the usual call
of a function ``checked_by_kernel`` (``_group.py``) asks a tensor nothing in Python; what a kernel
refuses comes here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._backend import CHECKS_LISTS, requested_backend, resolve, resolved
from ._group import Group, Refused, trust
from .reference._common import RANK_TILE, opmath_dtype

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(slots=True)
class ListArg:
    """One list of tensors of a call.

    Attributes:
        name: argument name for messages.
        tensors: the list, or None where the optional list is absent.
        mutated: the op writes these tensors.
        kind: "same" (dtype of the first list), "opmath" (its math dtype), "words" (packed mask
            bits), "ranks" (of a packed backup), "counts" (of packed mask bits), or a torch.dtype.
        optional: the list may be absent.
        sizes: elements of every tensor, where they follow from something else than the first list.
    """

    name: str
    tensors: Sequence[Tensor] | None
    mutated: bool = False
    kind: str | torch.dtype = "same"
    optional: bool = True
    sizes: Sequence[int] | None = None


def words_for(numel: int) -> int:
    """int32 words of the packed mask of ``numel`` elements."""
    return -(-numel // 32)


def tiles_for(numel: int) -> int:
    """Entries of the table of ranks of ``numel`` elements."""
    return -(-numel // RANK_TILE)


#: lists of another length than the first one's: what they hold, how many of a tensor, their dtype
_DERIVED = {
    "words": ("words, the mask", words_for, torch.int32),
    "ranks": ("ranks, the table", tiles_for, torch.int64),
    "counts": ("counts, the table", lambda words: tiles_for(32 * words), torch.int64),
}


def check_tensor_list(op: str, name: str, tensors: Any) -> None:
    if isinstance(tensors, Tensor) or not isinstance(tensors, (list, tuple)):
        raise ValueError(
            f"{op}: {name} must be a list or tuple of tensors, got {type(tensors).__name__}"
        )
    plain = not torch.compiler.is_compiling() and set(map(type, tensors)) <= _PLAIN
    if plain and set(map(_layout, tensors)) <= _STRIDED:  # an attrgetter cannot be traced
        return  # hundreds of tensors in a few microseconds
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise ValueError(f"{op}: {name}[{i}] must be a tensor, got {type(t).__name__}")
        if t.layout != torch.strided:
            raise ValueError(f"{op}: {name}[{i}] must be dense, got layout {t.layout}")


def _expected_dtype(kind: str | torch.dtype, leader: torch.dtype) -> torch.dtype:
    if isinstance(kind, torch.dtype):
        return kind
    if kind in _DERIVED:
        return _DERIVED[kind][2]
    return leader if kind == "same" else opmath_dtype(leader)


def _check_pair(op: str, arg: ListArg, i: int, lead: ListArg, leader: Tensor) -> None:
    """One tensor against the tensor of the first list at the same index."""
    assert arg.tensors is not None
    t, label = arg.tensors[i], f"{op}: {arg.name}[{i}]"
    if arg.sizes is not None:
        if t.numel() != arg.sizes[i]:
            raise ValueError(f"{label} has {t.numel()} elements, expected {arg.sizes[i]}")
    elif arg.kind in _DERIVED:
        what, count, _ = _DERIVED[arg.kind]
        if t.numel() != count(leader.numel()):
            raise ValueError(
                f"{label} has {t.numel()} {what} of {lead.name}[{i}] "
                f"({leader.numel()} elements) has {count(leader.numel())}"
            )
    elif t.shape != leader.shape:
        if t.numel() != leader.numel():
            raise ValueError(
                f"{label} has {t.numel()} elements, {lead.name}[{i}] has {leader.numel()}"
            )
        raise ValueError(
            f"{label} has shape {tuple(t.shape)}, {lead.name}[{i}] has {tuple(leader.shape)}"
        )
    dtype = _expected_dtype(arg.kind, leader.dtype)
    if t.dtype != dtype:
        raise ValueError(f"{label} is {t.dtype}, expected {dtype} to go with {lead.name}[{i}]")
    if t.device != leader.device:
        raise ValueError(f"{label} is on {t.device}, {lead.name}[{i}] is on {leader.device}")


def _check_mutated(op: str, arg: ListArg, seen: dict[int, str]) -> None:
    assert arg.tensors is not None
    grad_mode = torch.is_grad_enabled()
    compiling = torch.compiler.is_compiling()
    for i, t in enumerate(arg.tensors):
        if grad_mode and t.requires_grad:
            raise ValueError(
                f"{op}: {arg.name}[{i}] requires grad; call under torch.no_grad() to modify it"
            )
        if compiling or t.numel() == 0 or t.is_meta:
            continue  # addresses are not known while tracing, and 0 on meta tensors
        if any(st == 0 and sz > 1 for st, sz in zip(t.stride(), t.shape, strict=True)):
            raise ValueError(f"{op}: {arg.name}[{i}] is expanded; several elements share memory")
        first = seen.setdefault(t.data_ptr(), f"{arg.name}[{i}]")
        if first != f"{arg.name}[{i}]":
            raise ValueError(f"{op}: {arg.name}[{i}] and {first} are the same memory")


def _unseen_group(args: Sequence[ListArg], floating: bool) -> Group | None:
    """The whole call as one group by the look of its first tensor, for a compiled op to check.

    None where a kernel would not see what is wrong: lists left out or of another length, gradients
    wanted, tensors that are not torch's own.
    """
    lead = args[0].tensors
    if type(lead) not in (list, tuple) or not lead or _in_dispatch_mode():
        return None
    if not set(map(type, lead)) <= _PLAIN:
        return None
    dtype = lead[0].dtype
    if floating and dtype not in FLOATING:
        return None
    grad_mode = torch.is_grad_enabled()
    lists: dict[str, list[Tensor]] = {}
    for arg in args:
        tensors = arg.tensors
        if tensors is None and arg.optional:
            lists[arg.name] = []
            continue
        if not isinstance(tensors, (list, tuple)) or len(tensors) != len(lead):
            return None
        if arg.mutated and grad_mode and any(getattr(t, "requires_grad", True) for t in tensors):
            return None
        lists[arg.name] = tensors if type(tensors) is list else list(tensors)
    return Group(list(range(len(lead))), lead[0].device, dtype, lists, unseen=True)


_PLAIN = {Tensor, torch.nn.Parameter}
_in_dispatch_mode = torch._C._len_torch_dispatch_stack  # 0 outside
_facts = operator.attrgetter("shape", "dtype", "device")
_layout = operator.attrgetter("layout")
_STRIDED = {torch.strided}


def _one_group(args: Sequence[ListArg], floating: bool) -> Group | None:
    """The whole call as one group if that is plain to see, else None.

    The usual call has contiguous tensors of one device and dtype. Whole-list comparisons accept it
    in a fifth of the time that a check per tensor takes; everything else is left to those.
    """
    lead = args[0].tensors
    try:
        facts = list(map(_facts, lead))  # type: ignore[arg-type]  # None raises, as it should
        _, dtype, device = facts[0]
        uniform = all(f[1] is dtype and f[2] == device for f in facts)
        if not uniform or (floating and dtype not in FLOATING):
            return None
        lists: dict[str, list[Tensor]] = {}
        pointers: list[int] = []
        for arg in args:
            if arg.tensors is None and arg.optional:
                lists[arg.name] = []
                continue
            if not isinstance(arg.tensors, (list, tuple)):
                return None  # a tensor, too, can be iterated over
            lists[arg.name] = tensors = list(arg.tensors)
            if arg.sizes is not None:
                kind = _expected_dtype(arg.kind, dtype)
                wanted = [(n, kind, device) for n in arg.sizes]
                fits = [(t.numel(), t.dtype, t.device) for t in tensors] == wanted
            elif arg.kind in _DERIVED:
                _, count, kind = _DERIVED[arg.kind]
                wanted = [(count(f[0].numel()), kind, device) for f in facts]
                fits = [(t.numel(), t.dtype, t.device) for t in tensors] == wanted
            else:
                kind = _expected_dtype(arg.kind, dtype)
                expected = facts if kind == dtype else [(s, kind, d) for s, _, d in facts]
                fits = list(map(_facts, tensors)) == expected
            if not fits or not all(map(Tensor.is_contiguous, tensors)):
                return None
            if arg.mutated:
                if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
                    return None
                pointers += filter(None, map(Tensor.data_ptr, tensors))
    except (AttributeError, IndexError, TypeError, RuntimeError):
        return None  # not tensors, empty, sparse: the checks by tensor say what is wrong
    if len(set(pointers)) != len(pointers):
        return None
    return Group(list(range(len(facts))), device, dtype, lists)


def check_lists(op: str, args: Sequence[ListArg], floating: bool = True) -> Group | None:
    """Check all lists of a call against the first one.

    Returns:
        The call as one group where it is, for ``grouped``; None if it must be split or copied.

    Raises:
        ValueError: naming the op, the list and the index of the first thing that is wrong.
    """
    if not torch.compiler.is_compiling():  # addresses are not known while tracing
        if getattr(trust, "kernel", False):
            whole = _unseen_group(args, floating)
            if whole is not None:
                return whole
            trust.kernel = False
        whole = _one_group(args, floating)
        if whole is not None:
            return whole
    _check_by_tensor(op, args, floating)
    return None


def _check_by_tensor(op: str, args: Sequence[ListArg], floating: bool) -> None:
    lead = args[0]
    check_tensor_list(op, lead.name, lead.tensors)
    assert lead.tensors is not None
    if floating:
        for i, t in enumerate(lead.tensors):
            if t.dtype not in FLOATING:
                names = ", ".join(str(d).removeprefix("torch.") for d in FLOATING)
                raise ValueError(f"{op}: {lead.name}[{i}] is {t.dtype}, expected one of {names}")
    for arg in args[1:]:
        if arg.tensors is None and arg.optional:
            continue
        check_tensor_list(op, arg.name, arg.tensors)
        assert arg.tensors is not None
        if len(arg.tensors) != len(lead.tensors):
            raise ValueError(
                f"{op}: {arg.name} has {len(arg.tensors)} tensors, "
                f"{lead.name} has {len(lead.tensors)}"
            )
        for i, leader in enumerate(lead.tensors):
            _check_pair(op, arg, i, lead, leader)
    seen: dict[int, str] = {}
    for arg in args:
        if arg.mutated and arg.tensors is not None:
            _check_mutated(op, arg, seen)


def check_scalar(op: str, name: str, value: float, low: float, *, strict: bool = False) -> None:
    """ValueError unless ``value`` is finite and >= low (> low if strict)."""
    bad = not isinstance(value, (int, float)) or value != value or value in (float("inf"),)
    if bad or value < low or (strict and value == low):
        raise ValueError(
            f"{op}: {name} must be finite and {'>' if strict else '>='} {low:g}, got {value}"
        )


def check_scalar_tensor(op: str, name: str, value: Any) -> None:
    """ValueError unless ``value`` is a tensor with one element."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"{op}: {name} must be a tensor with one element")


def _storage_order(tensors: list[Tensor]) -> list[Tensor] | None:
    """Flat views in memory order if all tensors are dense with the same strides, else None."""
    first = tensors[0]
    if any(t.stride() != first.stride() for t in tensors[1:]):
        return None
    dims = sorted((st, sz) for st, sz in zip(first.stride(), first.shape, strict=True) if sz != 1)
    expected = 1
    for stride, size in dims:
        if stride != expected:
            return None
        expected *= size
    return [t.as_strided((t.numel(),), (1,)) for t in tensors]


def grouped(
    op: str,
    backend: str | None,
    args: Sequence[ListArg],
    *,
    ordered: bool,
    whole: Group | None = None,
) -> Iterator[Group]:
    """Split checked lists by device and dtype into contiguous lists; copy results back afterwards.

    Tensors that are not contiguous are passed as flat views in memory order where the op does not
    care for the order of elements (``ordered=False``, no mask words) and all tensors of an index
    agree in strides; otherwise a contiguous copy takes their place and is copied back after the
    call, that is, when the caller asks for the next group. ``whole``, what ``check_lists``
    returned, is passed on as it is. Every group's op is resolved before the first group is yielded:
    a backend that is missing for the last one leaves the first one unmodified.
    """
    name = requested_backend(backend)  # also where there is nothing to do a wrong one is an error
    if whole is not None:
        chosen, whole.function = resolved(op, name, whole.device.type, whole.dtype)
        if whole.unseen and chosen not in CHECKS_LISTS:
            raise Refused  # by a backend that checks nothing
        whole.op, whole.backend = op, backend
        yield whole
        return
    present = [a for a in args if a.tensors is not None]
    lead = present[0].tensors
    assert lead is not None
    if not lead:
        return
    ordered = ordered or any(a.kind in _DERIVED for a in present)
    keys: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, t in enumerate(lead):
        keys.setdefault((t.device, t.dtype), []).append(i)
    for device, dtype in keys:
        resolve(op, backend, device.type, dtype)
    for (device, dtype), indices in keys.items():
        lists: dict[str, list[Tensor]] = {a.name: [] for a in args}
        copies: list[tuple[Tensor, Tensor]] = []
        for i in indices:
            row = [a.tensors[i] for a in present]  # type: ignore[index]  # absent lists are left out
            if all(t.is_contiguous() for t in row):
                flat: list[Tensor] | None = row
            else:
                flat = None if ordered else _storage_order(row)
            for k, a in enumerate(present):
                t = row[k] if flat is None else flat[k]
                if flat is None and not t.is_contiguous():
                    t = t.contiguous()
                    if a.mutated:
                        copies.append((row[k], t))
                lists[a.name].append(t)
        yield Group(indices, device, dtype, lists, op, backend)
        for original, copy in copies:
            original.copy_(copy)


def bump_versions(args: Sequence[ListArg]) -> None:
    """Tell autograd that the mutated tensors changed; ops registered from C++ do not."""
    if torch.compiler.is_compiling():
        return  # functionalisation tracks mutation there
    mutated: list[Tensor] = []
    for a in args:
        if a.mutated and a.tensors is not None:
            mutated += a.tensors
    if mutated:
        torch.autograd.graph.increment_version(mutated)
