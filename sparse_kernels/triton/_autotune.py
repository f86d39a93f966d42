"""Block sizes by measurement, where it is asked for; else those that the launchers name.

``triton.autotune`` runs every candidate on the caller's own tensors, and its ``restore_value``
saves arguments, not the buffers behind a table of addresses: an in-place step would be taken as
often as there are candidates. Here candidates run on copies of everything a launch names, of the
same alignment, and the caller's tensors see one launch, the one with the options found.

A choice changes no bit of a result: ``TUNED`` has only kernels whose float sums have one order
whatever the block and the number of warps, and a block that is part of that order stays.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# the others have one program or one warp, or add floats as the layout suggests (prox_group's value)
TUNED = frozenset(
    f"_{name}_kernel"
    for name in (
        "adabreg_step", "grad_norm", "linbreg_step", "live_mask", "mask_apply", "mask_count",
        "mask_index", "mask_nm", "mask_pack", "mask_unpack", "masked_perturb", "move_entries",
        "restore", "restore_adamw", "restore_sgd", "topk_histogram", "topk_ties", "topk_write",
        "zo_combine", "zo_gram", "zo_norm2",
    )
)  # fmt: skip
_MOST_WARPS = 16
_REPEATS = 9
_VARIABLE = "SPARSE_KERNELS_TRITON_AUTOTUNE"

_choices: dict[tuple, dict[str, int]] = {}
_stored: dict[str, dict[str, int]] = {}
_behind = WeakTensorKeyDictionary()  # of a table of addresses: weak references to its tensors
_file: Path | None = None


def default_file() -> Path:
    """Where choices are kept for the user, in their cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "sparse_kernels", "triton_autotune.json")


def _load(file: Path | None) -> None:
    global _file
    _file = file
    if file is not None and file.exists():
        _stored.update(json.loads(file.read_text()))


def _from_environment() -> bool:
    value = os.environ.get(_VARIABLE, "0")
    if value not in ("", "0", "1", "file"):
        raise ValueError(f"{_VARIABLE} must be 0, 1 or file, got {value!r}")
    if value == "file":
        _load(default_file())
    return value in ("1", "file")


_on = _from_environment()


@contextlib.contextmanager
def autotune(file: str | os.PathLike | None = None) -> Iterator[None]:
    """Measure the block sizes of the Triton kernels launched inside the block; later ones use them.

    The first launch of a kernel for a device, dtype, set of options and power of two of its size
    takes some tens of times as long, waits for the device and needs memory for a copy of its
    operands; where there is not enough, and while a CUDA graph is captured, nothing is measured.
    ``SPARSE_KERNELS_TRITON_AUTOTUNE=1`` does the same for the whole process, and ``=file`` keeps
    the choices in ``default_file()``.

    Args:
        file: JSON file that choices are read from and added to; None keeps them in memory.

    Example:
        >>> from sparse_kernels.triton import autotune
        >>> with autotune():
        ...     pass  # a training step
    """
    global _on, _file
    previous = _on, _file
    if file is not None:
        _load(Path(file))
    _on = True
    try:
        yield
    finally:
        _on, _file = previous


def remember(table: Tensor, tensors: Sequence[Tensor]) -> None:
    """Note whose addresses a table holds, while launches are measured."""
    if not _on:
        return
    old = [ref() for ref in _behind.get(table, [])] or [None] * len(tensors)
    # lists of views may share addresses, and a table: what is copied must hold the larger ones
    kept = [
        o if o is not None and o.data_ptr() == t.data_ptr() and o.nbytes > t.nbytes else t
        for o, t in zip(old, tensors, strict=True)
    ]
    _behind[table] = [weakref.ref(t) for t in kept]


def candidates(meta: dict[str, Any]) -> list[dict[str, int]]:
    """Options to try, the launcher's own first: half and twice its block and its warps."""
    warps, block = meta["num_warps"], meta.get("BLOCK")
    blocks = [1.0]
    if block is not None and not meta.get("SUMSQ"):  # there a block is a row of the sum
        blocks += [n for n in (0.5, 2.0) if n * block <= meta.get("SIZE", meta.get("WORDS"))]
    found = []
    for b, w in itertools.product(blocks, (1.0, 0.5, 2.0)):
        if 1 <= w * warps <= _MOST_WARPS and 0.5 <= b / w <= 2.0:  # elements of a thread
            own = {} if block is None else {"BLOCK": int(b * block)}
            found.append({**own, "num_warps": int(w * warps)})
    return found


@functools.cache
def _machine(device: torch.device) -> str:
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return f"{name}, Triton {triton.__version__}"


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def options(
    kernel: str,
    grid: tuple[int, ...],
    device: torch.device,
    args: tuple,
    meta: dict[str, Any],
    run: Callable[[tuple, dict[str, Any]], None],
) -> dict[str, Any]:
    """Options of a launch: those found by measurement, else its launcher's.

    Args:
        kernel: its name.
        grid, args, meta: of the launch.
        run: launches it with other arguments and options.
    """
    if not (_on or _choices) or kernel not in TUNED:
        return meta
    key = (kernel, *meta.items(), _machine(device), math.prod(grid).bit_length())
    chosen = _choices.get(key)
    if chosen is None and _on and not _capturing(device):
        tried = candidates(meta)
        chosen = _stored.get(str(key))
        if chosen not in tried:  # a file may be anything
            chosen = _fastest(tried, args, meta, run, device)
            if chosen is None:
                return meta
            _store(str(key), chosen)
        _choices[key] = chosen
    return meta | chosen if chosen is not None else meta


def _store(key: str, chosen: dict[str, int]) -> None:
    if _file is None:
        return
    _stored[key] = chosen
    _file.parent.mkdir(parents=True, exist_ok=True)
    part = _file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(_stored, indent=1, sort_keys=True))
    part.replace(_file)  # another process reads the old file or the new one, not half of it


def _fastest(
    tried: list[dict[str, int]],
    args: tuple,
    meta: dict[str, Any],
    run: Callable[[tuple, dict[str, Any]], None],
    device: torch.device,
) -> dict[str, int] | None:
    """The candidate with the shortest launch on copies; None where there is no memory for them."""
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        scratch, _kept = copies_of(args)
    except torch.OutOfMemoryError:
        return None
    times = []
    for n, candidate in enumerate(tried):
        try:
            seconds = _seconds(lambda o=candidate: run(scratch, meta | o), device)  # type: ignore[misc]
        except (OutOfResources, PTXASError):  # this device cannot hold such a block
            continue
        times.append((seconds, n))
    return tried[min(times)[1]] if times else None


def copies_of(args: tuple) -> tuple[tuple, list[Tensor]]:
    """The arguments of a launch with every tensor copied, those behind tables of addresses too.

    Returns:
        The arguments, and what has to live as long as they are used.
    """
    tensors = [a for a in args if isinstance(a, Tensor)]
    behind = {id(t): [ref() for ref in _behind[t]] for t in tensors if t in _behind}
    named = [t for t in tensors if id(t) not in behind]
    named += [t for found in behind.values() for t in found]
    if any(t is None for t in named):
        raise RuntimeError("a tensor behind a table of addresses is gone before its launch")
    largest: dict[int, Tensor] = {}
    for tensor in named:
        if tensor.nbytes >= largest.setdefault(tensor.data_ptr(), tensor).nbytes:
            largest[tensor.data_ptr()] = tensor
    # what shares memory goes on sharing it: an in-place step has its source where it writes
    copies = {address: _copy(tensor) for address, tensor in largest.items()}

    def copied(arg):
        if not isinstance(arg, Tensor):
            return arg
        if id(arg) not in behind:
            return copies[arg.data_ptr()].view(arg.dtype)
        addresses = [copies[t.data_ptr()].data_ptr() for t in behind[id(arg)]]
        return torch.tensor(addresses, dtype=torch.int64).to(arg.device)

    return tuple(copied(arg) for arg in args), list(copies.values())


def _copy(tensor: Tensor) -> Tensor:
    """The same elements in the same order in memory, as far from a 16-byte boundary."""
    elements = tensor.as_strided((tensor.numel(),), (1,))
    room = torch.empty(tensor.nbytes + 16, dtype=torch.uint8, device=tensor.device)
    at = (tensor.data_ptr() - room.data_ptr()) % 16
    return room[at : at + tensor.nbytes].view(tensor.dtype).copy_(elements)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Median time of a launch, after one that compiles it."""
    run()
    if device.type != "cuda":
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPEATS + 1)]
    for event in events[:-1]:
        event.record()
        run()
    events[-1].record()
    events[-1].synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)) / 1e3
