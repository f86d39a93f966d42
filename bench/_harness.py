"""Timing: interleaved rounds in one process, so that every ratio compares neighbours in time."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from sparse_optim.demo.machine import machine_name
from torch.utils._python_dispatch import TorchDispatchMode


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
    """Seconds of every round, per variant."""

    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def quantile(self, q: float) -> float:
        ordered = sorted(self.device)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    @property
    def median(self) -> float:
        return statistics.median(self.device)


def interleave(
    variants: dict[str, Callable[[], object]], device: str, rounds: int
) -> dict[str, Samples]:
    """Run every variant once per round, in turn, after one untimed call of each."""
    for run in variants.values():
        run()
    synchronize(device)
    samples = {name: Samples() for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            seconds, host = time_once(run, device)
            samples[name].device.append(seconds)
            samples[name].host.append(host)
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


def ratio(slow: Samples, fast: Samples) -> float:
    """Median over the rounds of slow / fast: numbers of different moments do not divide."""
    return statistics.median(s / f for s, f in zip(slow.device, fast.device, strict=True))


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
