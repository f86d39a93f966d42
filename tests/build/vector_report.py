"""What the vectoriser says about the loops of csrc/cpu: g++'s dump, function by function."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
_FUNCTION = re.compile(r"^;; Function .* \((\S+), funcdef_no")
_LOOP = re.compile(
    r"^(\S*?csrc/\S+):(\d+):\d+: (optimized: loop vectorized|missed: couldn't vectorize loop)"
)

#: file below csrc, and line of a loop's head
Loop = tuple[str, int]


def _end(lines: list[str], head: int) -> int:
    """Index of the last line of the loop whose head is at index `head`."""
    depth = 0
    for i in range(head, len(lines)):
        depth += lines[i].count("{") - lines[i].count("}")
        if depth == 0 and lines[i].rstrip().endswith((";", "}")):
            return i
    raise ValueError(f"a loop has no end: {lines[head]}")


def simd_loops() -> dict[Loop, tuple[int, str]]:
    """The loops that are meant to become vector code: the last line of each, and its head."""
    out = {}
    for path in sorted([*CSRC.glob("core/*.h"), *CSRC.glob("cpu/*")]):
        lines = path.read_text().splitlines()
        for i, line in enumerate(lines[:-1]):
            if line.strip().startswith("#pragma omp simd"):
                loop = (str(path.relative_to(CSRC)), i + 2)
                out[loop] = (_end(lines, i + 1) + 1, lines[i + 1].strip())
    return out


def loops_of(dump: Path) -> dict[str, dict[Loop, bool]]:
    """Mangled function to those of its loops, and whether each became vector code.

    A loop that is there more than once, for blocks of a fixed and of any length, counts as one. The
    place that g++ names is somewhere inside the loop.
    """
    places = {
        (path, line): (path, head)
        for (path, head), (end, _) in simd_loops().items()
        for line in range(head, end + 1)
    }
    out: dict[str, dict[Loop, bool]] = defaultdict(dict)
    function = ""
    with dump.open() as file:
        for line in file:
            if found := _FUNCTION.match(line):
                function = found[1]
            elif found := _LOOP.match(line):
                path = os.path.relpath(os.path.normpath(found[1]), CSRC)
                loop = places.get((path, int(found[2])))
                if loop is not None:
                    vector = found[3].startswith("optimized")
                    out[function][loop] = vector or out[function].get(loop, False)
    return dict(out)
