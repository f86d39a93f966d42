"""The machine a run has: its name, and the memory that the run takes."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Made = TypeVar("Made")
_MARK = "added_memory"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = (line for line in file if line.startswith("model name"))
            return next(lines).split(":")[1].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine_name(device: str) -> str:
    """A name that a reader can place: the GPU, or the processor and the threads used."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {threads} thread{'s' * (threads != 1)}"


def peak_memory(device: str) -> int:
    """Bytes: on CUDA the most that torch's tensors have held, else the process's largest size."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the process's stderr: torch's profiler tells there when it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def added_memory(make: Callable[[], Made], call: Callable[[Made], object], device: str) -> int:
    """Most bytes of torch tensors that ``call(make())`` holds at once beyond those of ``make()``.

    On the CPU torch's profiler tells every allocation and release of torch's allocator, in order;
    what libraries take for themselves does not show. On CUDA the allocator counts.

    Args:
        make: what lives before; measured too, since a release counts only if its allocation was
            seen.
        call: what is measured.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        made = make()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(made)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        made = make()
        with record_function(_MARK):
            call(made)
    results = record.profiler.kineto_results
    events = sorted(results.events(), key=lambda event: event.start_ns())
    (mark,) = (e for e in events if e.name() == _MARK)
    held = most = before = 0
    for event in events:
        if event.name() == _MARK:
            most = before = held
        elif event.name() == "[memory]" and event.start_ns() <= mark.end_ns():
            held += event.nbytes()
            most = max(most, held)
    return most - before
