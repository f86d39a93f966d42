"""What the CUDA kernels may cost: stored counts by kernel and architecture, and the comparison.

``cuda_budget.json`` holds for every kernel and architecture: registers, spilled bytes, loads and
stores of 16 bytes, instructions of the vector path (``sass.py``) and the elements that a thread
works on along it. The elements come from the constants of csrc/phases, which a generated C++
program prints, for ops that read another list from the bytes that the path loads. A kernel
without a hot loop is counted from its first instruction to its last, and elements are 0 where a
thread has no fixed number of them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from sass import Code

FILE = Path(__file__).with_name("cuda_budget.json")
ROOT = Path(__file__).parents[2]
WRITE = "python tests/build/compile_cuda.py --write-budget"
#: For another release of nvcc, which allocates and schedules anew: ptxas 13.4 in place of 13.0 gave
#: 93 kernels of sm_100 between 7 % fewer and 6 % more instructions, and up to 8 registers more.
MARGIN, MARGIN_REGISTERS = 0.10, 8
#: 33.5e12 instructions and 4.3e12 bytes a second: 62 instructions for 8 bytes (H200)
SLOTS_PER_BYTE = 62 / 8
COLUMNS = ("registers", "spills", "loads", "stores", "instructions", "elements")


@dataclass(frozen=True)
class Cost:
    """Of one kernel on one architecture; per thread, elements and instructions of one trip."""

    registers: int
    spills: int  # bytes of stack
    loads: int  # of 16 bytes
    stores: int
    instructions: int
    elements: int

    @property
    def per_element(self) -> float:
        return self.instructions / max(1, self.elements)


@dataclass
class Entry:
    """A kernel: the bytes that an element moves at least (0: unknown), and what it costs."""

    bytes: float
    costs: dict[str, Cost]  # by architecture

    @property
    def slots(self) -> float:
        """Instructions per element that an H200 issues while it moves the bytes."""
        return SLOTS_PER_BYTE * self.bytes


@dataclass
class Budget:
    nvcc: str
    kernels: dict[str, Entry]

    @classmethod
    def read(cls) -> Budget:
        stored = json.loads(FILE.read_text())
        assert tuple(stored["columns"]) == COLUMNS
        kernels = {}
        for key, numbers in stored["kernels"].items():
            moved = numbers.pop("bytes")
            kernels[key] = Entry(moved, {arch: Cost(*n) for arch, n in numbers.items()})
        return cls(stored["nvcc"], kernels)

    def write(self) -> None:
        """One line per kernel, so that a diff shows which ones changed."""
        lines = []
        for key, entry in sorted(self.kernels.items()):
            costs = {arch: list(asdict(cost).values()) for arch, cost in entry.costs.items()}
            lines.append(f"    {json.dumps(key)}: {json.dumps({'bytes': entry.bytes, **costs})}")
        body = ",\n".join(lines)
        head = f'  "nvcc": {json.dumps(self.nvcc)},\n  "columns": {json.dumps(list(COLUMNS))},\n'
        FILE.write_text(f'{{\n{head}  "kernels": {{\n{body}\n  }}\n}}\n')


def compare(budget: Budget, found: Budget) -> tuple[list[str], list[str]]:
    """Compares compiled kernels with their budget.

    Args:
        budget: stored.
        found: compiled.

    Returns:
        What exceeds the budget, has none or is gone; and what is below it.
    """
    same = budget.nvcc == found.nvcc
    margin, registers = (0.0, 0) if same else (MARGIN, MARGIN_REGISTERS)
    over, below = [], []
    for key in sorted(budget.kernels.keys() - found.kernels.keys()):
        over.append(f"{key}: has a budget, but is not compiled any more; {WRITE}")
    for key, entry in sorted(found.kernels.items()):
        stored = budget.kernels.get(key)
        if stored is None:
            over.append(f"{key}: has no budget; {WRITE}")
            continue
        if stored.bytes != entry.bytes:
            over.append(f"{key}: bytes per element {stored.bytes} -> {entry.bytes}; {WRITE}")
        for arch, new in entry.costs.items():
            old = stored.costs.get(arch)
            if old is None:
                over.append(f"{key}, sm_{arch}: has no budget; {WRITE}")
                continue
            where = f"{key}, sm_{arch}: "
            limits = {
                "registers": (old.registers, new.registers, old.registers + registers),
                "spills": (old.spills, new.spills, old.spills),
                "instructions per element": (
                    old.per_element, new.per_element, old.per_element * (1 + margin)
                ),
            }  # fmt: skip
            for what, (before, now, limit) in limits.items():
                if now > limit:
                    over.append(f"{where}{what} {before:.4g} -> {now:.4g}, at most {limit:.4g}")
                elif now < before:
                    below.append(f"{where}{what} {before:.4g} -> {now:.4g}")
            # fewer wide accesses where there were some: narrower ones instead
            for what in ("loads", "stores"):
                before, now = getattr(old, what), getattr(new, what)
                if now == 0 < before or (same and now != before):
                    over.append(f"{where}16-byte {what} {before} -> {now}")
    return over, below


# elements of a trip ----------------------------------------------------------------------------

PROGRAM = r"""
#include <cstdio>
#include "phases/compaction.h"
#include "phases/gram.h"
#include "phases/mask_count.h"
#include "phases/mask_nm.h"
#include "phases/prox_blocks.h"
#include "phases/topk.h"
using namespace sk;
using namespace sk::phases;

template <class... S>
double bytes_of(StreamList<S...>) {
  return (0.0 + ... + ((S::role == Role::kInOut ? 2.0 : 1.0) * sizeof(typename S::Storage)));
}
// elements of a trip, bytes of an element of the list that a computed input comes from, and bytes
// that an element moves
template <class Op>
void each(const char* key, double mask) {
  using T = Traits<Op>;
  double bytes = bytes_of(typename Op::Lists{}) + mask;
  if constexpr (backup_of<Op>() != Backup::kNone) {
    using First = typename Op::Lists::template At<0>;
    if (kSaves<Op> || First::role == Role::kOut) bytes += sizeof(typename First::Storage);
  }
  if (Op::Lists::size == 0) bytes = 0;  // it draws what it adds
  if (T::kInput) bytes = (T::kInputBytes == 4 && bytes == 1 ? 1 : T::kInputBytes) + 0.125;
  std::printf("%s\t%d\t%d\t%g\n", key, Shape<Op>::V * Shape<Op>::U, T::kInputBytes, bytes);
}
template <class Keys>
void ranked(const char* key, double mask) {
  using Group = KeyGroup<Keys>;
  const double bytes = Keys::kRandom ? 0 : sizeof(typename Keys::Storage) + mask;
  std::printf("%s\t%d\t0\t%g\n", key, Group::V * Group::U, bytes);
}
template <class Lists>
void prox(const char* key, int elements) {
  std::printf("%s\t%d\t0\t%g\n", key, elements, bytes_of(typename Lists::Lists{}));
}
template <class Move>
void moved(const char* key) {
  std::printf("%s\t4\t0\t%g\n", key, 4.0 + 2 * sizeof(typename Move::Storage));
}
int main() {
%s
}
"""


@dataclass(frozen=True)
class Shape:
    elements: int
    input_bytes: int
    bytes: float  # that an element moves, at least


def call_of(key: str) -> str | None:
    """The statement that prints a kernel's shape; None for work that is not by the element."""
    name = key.partition(": ")[2]
    quoted = json.dumps(key)
    op, masked = name.removesuffix(" masked"), name.endswith(" masked")
    kernel, _, argument = name.removesuffix(">").partition("<")
    if kernel == "count_kernel":
        return f'std::printf("%s\\t%d\\t0\\t0.125\\n", {quoted}, 32 * kOwnWords);'
    if kernel in ("histogram_kernel", "write_kernel", "ties_kernel"):
        return f"ranked<{argument}>({quoted}, {0 if kernel == 'histogram_kernel' else 0.125});"
    if kernel in ("prox_group_kernel", "prox_large_kernel"):
        return f"prox<{argument}>({quoted}, kQuad);"
    if kernel == "prox_small_kernel":
        return f"prox<{argument}>({quoted}, kQuad * kHeld);"
    if kernel == "move_kernel":
        return f"moved<{argument}>({quoted});"
    if kernel.endswith("_kernel") or op.startswith("MaskNm<"):
        return None
    return f"each<{op}>({quoted}, {0.125 if masked else 0});"


def shapes(keys: Iterable[str], folder: Path) -> dict[str, Shape]:
    """Shapes of the kernels that work by the element, from the headers of csrc/phases."""
    compiler = shutil.which("g++")
    assert compiler is not None, "nvcc is installed without g++"
    source, program = folder / "shapes.cpp", folder / "shapes"
    calls = [f"  {call}" for call in map(call_of, keys) if call is not None]
    source.write_text(PROGRAM.replace("%s\n}", "\n".join(calls) + "\n}"))
    command = [compiler, "-std=c++20", f"-I{ROOT / 'csrc'}", "-DSK_NO_CLONES", "-w"]
    done = subprocess.run(
        [*command, str(source), "-o", str(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    out = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in out.splitlines():
        key, elements, input_bytes, moved = line.split("\t")
        found[key] = Shape(int(elements), int(input_bytes), float(moved))
    return found


def cost_of(code: Code, registers: int, stack: int, shape: Shape | None) -> Cost:
    """Counts one kernel; ``shape`` is None where a thread has no fixed number of elements."""
    path = code.hot()
    elements = shape.elements if shape else 0
    if path is None and shape is not None and not shape.bytes:
        path = code.loop()
    if path is None or shape is None:
        path = code.straight()
    elif shape.input_bytes and path.loaded:
        elements = path.loaded // shape.input_bytes
    wide = [x for x in code.code if x.access == 16]
    local = sum(x.is_a("LDL", "STL") for x in code.code)
    return Cost(
        registers, stack + 4 * local, sum(x.is_a("LDG") for x in wide),
        sum(x.is_a("STG") for x in wide), path.length, elements,
    )  # fmt: skip


def key_of(stem: str, name: str) -> str:
    """``stem: op``, with ``masked`` behind it; kernels of their own keep their name."""
    name = name.replace("> >", ">>").replace("> >", ">>")
    found = re.fullmatch(r"for_each_kernel<(.*), (true|false)>", name)
    if found:
        name = found[1] + (" masked" if found[2] == "true" else "")
    return f"{stem}: {name}"
