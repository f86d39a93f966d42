"""Times of a run's steps."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence

import torch

_WARM_UP = 5  # steps that allocate state and fill caches


class Stopwatch:
    """Adds up the time inside ``on()`` blocks without that of ``off()`` blocks inside them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._total = 0.0

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Count the block."""
        start = self._now()
        yield
        self._total += self._now() - start

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Leave the block out of the ``on()`` block around it."""
        start = self._now()
        yield
        self._total -= self._now() - start

    def take(self) -> float:
        """Seconds since the last call."""
        total, self._total = self._total, 0.0
        return total


def median_ms(seconds: Sequence[float], cycle: int = 1) -> float:
    """Median milliseconds over whole cycles, without the first steps if there are others."""
    kept = seconds[_WARM_UP:] if len(seconds) >= _WARM_UP + cycle else seconds
    cycle = min(cycle, len(kept))
    means = [statistics.fmean(kept[i : i + cycle]) for i in range(0, len(kept) - cycle + 1, cycle)]
    return 1e3 * statistics.median(means)
