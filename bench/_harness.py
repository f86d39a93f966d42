"""Timing: interleaved rounds in one process, so that every ratio compares neighbours in time."""

from __future__ import annotations

import gc
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sparse_optim.demo.machine import machine_name
from torch.utils._python_dispatch import TorchDispatchMode

WARM_CALLS = 5


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_once(run: Callable[[], object], device: str) -> tuple[float, float]:
    """(seconds until the result is there, seconds until the call returned)."""
    if device == "cpu":
        begin = time.perf_counter()
        run()
        elapsed = time.perf_counter() - begin
        return elapsed, elapsed
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin = time.perf_counter()
    first.record()
    run()
    last.record()
    host = time.perf_counter() - begin
    last.synchronize()
    return first.elapsed_time(last) / 1e3, host


@dataclass
class Samples:
    """Seconds of every round, per variant; ``first`` is the host's time of the first warm call."""

    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def quantile(self, q: float) -> float:
        ordered = sorted(self.device)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    @property
    def median(self) -> float:
        return statistics.median(self.device)

    @property
    def host_median(self) -> float:
        return statistics.median(self.host)


def last_level_cache(device: str) -> int:
    """Bytes; 32 MiB where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip()).groups()  # type: ignore[union-attr]
        sizes.append(int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit])
    return max(sizes, default=32 << 20)


class Flush:
    """Reads a buffer of four times the last-level cache, so that what was there is not.

    It does not write: dirty lines would be written back in somebody else's time.
    """

    def __init__(self, device: str) -> None:
        self.bytes = 4 * last_level_cache(device)
        self.buffer = torch.ones(self.bytes // 4, device=device)

    def needed(self, working_set: float) -> bool:
        return working_set < self.bytes

    def __call__(self) -> None:
        self.buffer.sum()


def interleave(
    variants: dict[str, Callable[[], object]],
    device: str,
    rounds: int,
    flush: Callable[[], None] | None = None,
    warm: bool = False,
) -> dict[str, Samples]:
    """Run every variant once per round, in turn, after one untimed call of each.

    ``flush`` is called before every timed call, outside its time; with ``warm`` the variant itself
    is, ``WARM_CALLS`` times, since another one, or the garbage collector, took its place in the
    caches and in the branch predictors, and one call does not take it back. The collector
    waits for the end of a round, as it does under ``timeit``: whose call it falls into is chance.
    """
    for run in variants.values():
        run()
    synchronize(device)
    samples = {name: Samples() for name in variants}
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            gc.collect()
            if warm and flush is None:
                for run in variants.values():  # the collector has been everywhere
                    run()
            for name, run in variants.items():
                if flush is not None:
                    flush()
                elif warm:
                    samples[name].first.append(time_once(run, device)[1])
                    for _ in range(WARM_CALLS - 1):
                        run()
                seconds, host = time_once(run, device)
                samples[name].device.append(seconds)
                samples[name].host.append(host)
    finally:
        if collects:
            gc.enable()
    return samples


class _CallCounter(TorchDispatchMode):
    """Counts the operations that work on memory; views and allocations do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not func.is_view and func.overloadpacket.__name__ not in _FREE:
            self.count += 1
        return func(*args, **(kwargs or {}))


_FREE = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "_local_scalar_dense")


def count_calls(run: Callable[[], object]) -> int:
    """Kernel calls of one step: dispatcher operations that compute, copy or reduce.

    One of ours is one call whatever the number of tensors; on CUDA it is one launch per table of
    tensors (see docs/performance.md), a sum one more.
    """
    with _CallCounter() as counter:
        run()
    return counter.count


def count_launches(run: Callable[[], object]) -> int:
    """Kernels that one step launches on the GPU, as the profiler sees them; copies do not count."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(
        e.count
        for e in profile.key_averages()
        if e.device_type == torch.autograd.DeviceType.CUDA
        and not e.key.startswith(("Memcpy", "Memset"))
    )


def ratio(slow: Samples, fast: Samples) -> float:
    """Median over the rounds of slow / fast: numbers of different moments do not divide."""
    return statistics.median(s / f for s, f in zip(slow.device, fast.device, strict=True))


def difference(many: Sequence[float], one: Sequence[float]) -> float:
    """Median over the rounds of the seconds of one beyond those of the other."""
    return statistics.median(m - o for m, o in zip(many, one, strict=True))


def commit() -> str:
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def header(device: str, command: Sequence[str]) -> dict[str, str]:
    """What a stored row needs to be reproduced."""
    return {
        "machine": machine_name(device),
        "torch": torch.__version__,
        "triton": triton_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(command),
    }
