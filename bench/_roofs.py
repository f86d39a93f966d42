"""The rates that bound a row: in place, copy, and the row's own streams, measured in its rounds.

The streams' roof is a loop in C++ that reads, updates and writes arrays of the case's own widths,
pass by pass, and computes nothing (streams.cpp). torch builds it at the first use, into its own
cache of extensions. It is for CPUs: on a GPU the copy is the roof. Where there is no compiler the
column stays empty.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .cases import LINE, Case, Pass

CAP = 1 << 26  # elements: a roof needs no more, and models would not fit beside their arrays
PAST_CACHES = 32 << 20  # bytes of a pass from which the kernels stream, too (csrc/cpu/for_each.h)
FLAGS = [
    "-std=c++20", "-O3", "-fopenmp-simd", "-fno-math-errno", "-DTORCH_STABLE_ONLY",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]  # fmt: skip


@functools.cache
def streams_op() -> Callable[[list[Tensor], list[Tensor], list[Tensor], bool], int] | None:
    """The compiled loop, or None, said on stderr."""
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
        made: dict[str, Callable[[], object]] = {
            "roof": lambda: self.scratch.mul_(1.0000001),
            "copy": lambda: self.target.copy_(self.scratch),
        }
        if self.device == "cpu" and streams_op() is not None:
            made["streams"] = self.streams(case.passes)
        return made

    def streams(self, passes: tuple[Pass, ...]) -> Callable[[], object]:
        """Every pass of the case, one after the other; passes share their arrays."""
        move = streams_op()
        assert move is not None
        sizes = [
            [
                [lines(w, self.elements) * LINE for w in group]
                for group in (p.read, p.update, p.write)
            ]
            for p in passes
        ]
        columns = itertools.zip_longest(*(itertools.chain(*g) for g in sizes), fillvalue=0)
        pool = [torch.ones(max(column), dtype=torch.uint8) for column in columns]
        calls = []
        for groups in sizes:
            arrays = iter(pool)
            tensors = [[next(arrays)[:n] for n in group] for group in groups]
            calls.append((*tensors, sum(map(sum, groups)) > PAST_CACHES))
        self.bytes["streams"] = sum(sum(r) + 2 * sum(u) + sum(w) for r, u, w in sizes)

        def run() -> int:
            return sum(move(*call) for call in calls)

        return run
