"""The rates that bound a row: in place, copy, and the row's own streams, measured in its rounds.

The streams' roof is a loop in C++ that reads, updates and writes arrays of the case's own widths,
pass by pass, and computes nothing (streams.cpp). Where a case touches scattered lines there are two
such loops, one that touches as many lines and one that walks over all of them, as processors do
best; the roof is the faster one. torch builds them at the first use, into its own cache of
extensions. They are for CPUs: on a GPU the copy is the roof. Where there is no compiler the column
stays empty.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .cases import LINE, Case, Pass, Touched

CAP = 1 << 26  # elements: a roof needs no more, and models would not fit beside their arrays
PAST_CACHES = 32 << 20  # bytes of a pass from which the kernels stream, too (csrc/cpu/for_each.h)
FLAGS = [
    "-std=c++20", "-O3", "-fopenmp-simd", "-fno-math-errno", "-DTORCH_STABLE_ONLY",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]  # fmt: skip


@functools.cache
def streams_op() -> Callable[..., int] | None:
    """The compiled loop, or None, said on stderr; streams.cpp says what it takes."""
    try:
        from torch.utils import cpp_extension

        source = Path(__file__).with_name("streams.cpp")
        cpp_extension.load(
            "sparse_kernels_bench", [str(source)], extra_cflags=FLAGS, is_python_module=False
        )
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        print(f"no roof of the same streams, streams.cpp does not build: {reason}", file=sys.stderr)
        return None
    return torch.ops.sparse_kernels_bench.move_streams


def lines(width: float, elements: int) -> int:
    """Whole cache lines of a stream of so many bytes per element, one at least."""
    return max(round(width * elements / LINE), 1)


class Roofs:
    """Arrays of their own, as many elements as the row's list has, at most ``CAP``."""

    def __init__(self, elements: int, dtype: torch.dtype, device: str) -> None:
        self.device = device
        self.elements = min(elements, CAP)
        self.scratch = torch.ones(self.elements, dtype=dtype, device=device)
        self.target = torch.ones_like(self.scratch)
        self.bytes: dict[str, int] = {}

    def variants(self, case: Case) -> dict[str, Callable[[], object]]:
        """Closures by name; ``bytes`` says what each moves."""
        whole = 2 * self.scratch.numel() * self.scratch.element_size()
        self.bytes = {"roof": whole, "copy": whole}
        self.bytes["streams"] = round(case.bytes_per_element * self.elements)
        made: dict[str, Callable[[], object]] = {
            "roof": lambda: self.scratch.mul_(1.0000001),
            "copy": lambda: self.target.copy_(self.scratch),
        }
        if self.device == "cpu" and streams_op() is not None:
            made["streams"] = self.streams(case.passes)
            if any(isinstance(w, Touched) for p in case.passes for w in (*p.read, *p.update)):
                made["whole streams"] = self.streams(case.passes, whole=True)
        return made

    def streams(self, passes: tuple[Pass, ...], whole: bool = False) -> Callable[[], int]:
        """Every pass of a case, one after the other; passes share their arrays.

        With ``whole``, the arrays of which scattered lines are touched are walked over.
        """
        move = streams_op()
        assert move is not None

        def scattered(width: float) -> bool:
            return isinstance(width, Touched) and not whole

        def size_of(width: float) -> int:
            own = width.whole if isinstance(width, Touched) else width
            return lines(own, self.elements) * LINE

        columns = itertools.zip_longest(
            *([size_of(w) for w in (*p.read, *p.update, *p.write)] for p in passes), fillvalue=0
        )
        pool = [torch.ones(max(column), dtype=torch.uint8) for column in columns]
        calls = []
        for p in passes:
            arrays = iter(pool)
            read, update, write = (
                [(next(arrays)[: size_of(w)], w) for w in group]
                for group in (p.read, p.update, p.write)
            )
            both = (read, update)
            calls.append(
                (
                    *([t for t, w in group if not scattered(w)] for group in both),
                    [t for t, _ in write],
                    *([t for t, w in group if scattered(w)] for group in both),
                    *(
                        [getattr(w, of) for _, w in (*read, *update) if scattered(w)]
                        for of in ("share", "lines")
                    ),
                    sum(size_of(w) for _, w in (*read, *update, *write)) > PAST_CACHES,
                )
            )
        return lambda: sum(move(*call) for call in calls)
