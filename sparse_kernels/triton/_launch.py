"""What every Triton launcher shares: one launch for a list of tensors, and the summation order.

A list is described by device tables: the addresses of its tensors (one int64 table per list), the
element counts, and one row (tensor, chunk) per program. A kernel argument per tensor would limit
the list and make the launch cost grow with it (triton-lang/triton#3503). The tables are cached, so
a training step uploads nothing as long as its tensors stay where they are.
"""

import contextlib
import ctypes
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference._common import CHUNK_SIZE, LANES, RANK_TILE
from . import _autotune

INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))

CHUNK: tl.constexpr = tl.constexpr(CHUNK_SIZE)  # elements per chunk of a sum
ROW: tl.constexpr = tl.constexpr(LANES)  # lanes of a chunk's sum, and elements added at a time
# elements per program of an elementwise kernel: enough programs for a medium tensor, and one entry
# of a table of ranks, so that a program finds its part of a packed backup by itself
TILE = RANK_TILE
ADDENDS: tl.constexpr = tl.constexpr(32)  # partial sums in flight while they are added in order

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def storage_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a parameter dtype; TypeError for one without a Triton kernel."""
    if dtype not in _TYPES:
        raise TypeError(f"the Triton kernels take float32, bfloat16 and float16, got {dtype}")
    return _TYPES[dtype]


def f32(value: float) -> float:
    """``value`` rounded to float32, or infinite: a kernel never sees a double."""
    return ctypes.c_float(value).value


class _TableCache:
    """Device tables by key, the least recently used ones dropped first.

    A key holds the stream: a table uploaded on one stream says nothing about another. While a CUDA
    graph is captured every table used is kept for good, since replays read it again.
    """

    def __init__(self, capacity: int) -> None:
        self._entries: OrderedDict[tuple, Tensor] = OrderedDict()
        self._captured: list[Tensor] = []
        self._capacity = capacity

    def get(self, key: tuple, device: torch.device, build: Callable[[], Tensor]) -> Tensor:
        cuda = device.type == "cuda"
        key = (*key, device, torch.cuda.current_stream(device).cuda_stream if cuda else 0)
        capturing = cuda and torch.cuda.is_current_stream_capturing()
        table = self._entries.get(key)
        if table is None:
            host = build()
            # from pinned memory the copy is queued, and the host does not wait for it
            table = host.pin_memory().to(device, non_blocking=True) if cuda else host
            if not capturing:  # a captured copy has not run yet: nobody else may find its target
                self._entries[key] = table
        if capturing:
            self._captured.append(table)
        elif len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        if key in self._entries:
            self._entries.move_to_end(key)
        return table


_plans = _TableCache(capacity=256)
_addresses = _TableCache(capacity=1024)


@dataclass(frozen=True, slots=True)
class Plan:
    """The programs of a launch over a list of tensors.

    Attributes:
        rows: int32 [programs, 2] on the device: tensor and chunk within it, in list order. Empty
            tensors have none.
        numels: int64 [tensors] on the device.
        programs: number of rows.
    """

    rows: Tensor
    numels: Tensor
    programs: int


def _build_rows(numels: tuple[int, ...], chunk: int) -> Tensor:
    counts = torch.tensor([-(-n // chunk) for n in numels], dtype=torch.int64)
    tensors = torch.repeat_interleave(torch.arange(len(numels)), counts)
    first = torch.cumsum(counts, 0) - counts
    chunks = torch.arange(tensors.numel()) - first[tensors]
    return torch.stack([tensors, chunks], dim=1).int()


def make_plan(tensors: Sequence[Tensor], chunk: int) -> Plan:
    """One program per ``chunk`` elements of every tensor; cached by element counts and device."""
    return plan_of(tuple(t.numel() for t in tensors), chunk, tensors[0].device)


def plan_of(numels: tuple[int, ...], chunk: int, device: torch.device) -> Plan:
    """The same for counts of anything, tiles or groups, in the place of elements."""
    rows = _plans.get(("rows", chunk, numels), device, lambda: _build_rows(numels, chunk))
    return Plan(rows, int64_table(numels, device), rows.shape[0])


def int64_table(values: tuple[int, ...], device: torch.device) -> Tensor:
    """A device copy of a tuple of ints, cached by its value."""
    build = lambda: torch.tensor(values, dtype=torch.int64)  # noqa: E731  # called at most once
    return _plans.get(("values", values), device, build)


def address_table(tensors: Sequence[Tensor]) -> Tensor | None:
    """The addresses of a list on its device, cached by their values; None for an absent list."""
    if not tensors:
        return None
    pointers = tuple(t.data_ptr() for t in tensors)
    build = lambda: torch.tensor(pointers, dtype=torch.int64)  # noqa: E731  # called at most once
    table = _addresses.get((pointers,), tensors[0].device, build)
    _autotune.remember(table, tensors)
    return table


def launch(
    kernel: object, grid: tuple[int, ...], device: torch.device, *args: object, **meta: object
) -> None:
    """Launch on ``device`` without contraction of a multiplication and an addition into one fma."""

    def run(args: tuple, meta: dict[str, object]) -> None:
        kernel[grid](*args, **meta, enable_fp_fusion=False)  # type: ignore[index]

    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        name = kernel.fn.__name__  # type: ignore[attr-defined]
        run(args, _autotune.options(name, grid, device, args, meta, run))


def sum_in_order(partials: Tensor, out: Tensor, *, root: bool = False) -> None:
    """Add the rows of ``partials`` [n, count] in order in float64, into ``out`` [n]."""
    rows, count = partials.shape
    kernel, device = _sum_in_order_kernel, partials.device
    launch(kernel, (rows,), device, partials, out, count, ROOT=root, num_warps=1)


@triton.jit
def add_in_order(partials_ptr, count):
    """float64 sum of ``count`` numbers, one after the other."""
    total = tl.zeros((), tl.float64)
    for start in range(0, count, ADDENDS):
        # the loads of a batch do not wait for each other; only the additions do
        for j in tl.static_range(ADDENDS):
            here = start + j < count
            total += tl.load(partials_ptr + start + j, mask=here, other=0.0).to(tl.float64)
    return total


@triton.jit(do_not_specialize=["count", "out_ptr"])
def _sum_in_order_kernel(partials_ptr, out_ptr, count, ROOT: tl.constexpr):
    row = tl.program_id(0)
    total = add_in_order(partials_ptr + row.to(tl.int64) * count, count)
    if ROOT:
        total = tl.sqrt(total)  # of a float64 this is the correctly rounded instruction
    tl.store(out_ptr + row, total)


@triton.jit
def locate(rows_ptr, numels_ptr, SIZE: tl.constexpr):
    """Tensor, first element (int64) and number of elements (int32, up to SIZE) of this program."""
    row = tl.program_id(0).to(tl.int64)
    tensor = tl.load(rows_ptr + 2 * row)
    first = tl.load(rows_ptr + 2 * row + 1).to(tl.int64) * SIZE
    left = tl.load(numels_ptr + tensor) - first
    return tensor, first, tl.where(left < SIZE, left, SIZE).to(tl.int32)


@triton.jit
def pointer_to(table_ptr, tensor, first, TYPE: tl.constexpr):
    """Pointer to element ``first`` of a tensor of the list."""
    return tl.load(table_ptr + tensor).to(tl.pointer_type(TYPE)) + first


@triton.jit
def is_aligned(pointer):
    """Whether 16-byte accesses are allowed at ``pointer``.

    Where they are, a kernel says so by ``tl.multiple_of(pointer + block, 16)`` inside the loop that
    relies on it: the hint sticks to the sum, while one on ``pointer`` itself would reach the loop
    for misaligned tensors too.
    """
    return (pointer.to(tl.int64) & 15) == 0


@triton.jit
def whole_blocks(count, aligned, BLOCK: tl.constexpr):
    """Elements of a program that go through the vector path: the full blocks if all is aligned."""
    return tl.where(aligned, count - count % BLOCK, 0)


@triton.jit
def widen(x):
    """A parameter dtype to float32."""
    if INTERPRETED and x.dtype == tl.bfloat16:  # the interpreter's own conversion drops denormals
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, TYPE: tl.constexpr):
    """float32 to a parameter dtype, rounded to nearest even."""
    if INTERPRETED and tl.bfloat16 == TYPE:  # the interpreter's own conversion truncates
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(TYPE)


@triton.jit
def quotients(rest, offsets, length, SIZE: tl.constexpr):
    """``(rest + offsets) // length`` by divisions of int32, for offsets below SIZE.

    ``rest < length``, and both may be beyond int32: where a program starts within a run, or a row.
    """
    left = tl.where(length - rest < SIZE, length - rest, SIZE).to(tl.int32)
    short = tl.where(length < SIZE, length, SIZE).to(tl.int32)
    return tl.where(offsets < left, 0, 1 + (offsets - left) // short)


@triton.jit
def tree_sums(lanes, STEPS: tl.constexpr):
    """Sums [n] of the lines of ``lanes`` [n, 2^STEPS] by halves, lane i with lane i + width.

    The order every backend uses: a plain ``tl.sum`` may order its additions as the layout suggests;
    a sum of two cannot.
    """
    for _ in tl.static_range(STEPS):
        lanes = tl.sum(tl.reshape(lanes, (lanes.shape[0], 2, lanes.shape[1] // 2)), axis=1)
    return tl.reshape(lanes, (lanes.shape[0],))


@triton.jit
def tree_sum(lanes):
    """Sum of ROW lanes in the order of ``tree_sums``."""
    return tl.sum(tree_sums(tl.reshape(lanes, (1, ROW)), 11), axis=0)  # 2048 lanes to 1
