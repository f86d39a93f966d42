"""Compiles csrc/cpu/*.cpp into programs without libtorch, and measures them: see hot_loops.cpp.

``python tests/build/compile_cpu.py [PATTERN]`` prints the instructions per element of the cases
whose names hold PATTERN; ``--write`` puts those of all cases into hot_budget.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = sorted(p for p in (ROOT / "csrc" / "cpu").glob("*.cpp") if p.name != "module.cpp")
CASES = [HERE / f"hot_{name}.cpp" for name in ("loops", "steps", "selections", "random", "copies")]
BUDGET = HERE / "hot_budget.json"
JOBS = int(os.environ.get("MAX_JOBS", "2"))
#: in their place hot_torch.h is included
TORCH_HEADERS = (
    "torch/csrc/inductor/aoti_torch/c/shim.h",
    "torch/csrc/stable/library.h",
    "torch/csrc/stable/ops.h",
    "torch/csrc/stable/tensor.h",
    "torch/headeronly/core/ScalarType.h",
    "torch/headeronly/util/Exception.h",
)
#: x86-64 levels of the clones, by the names that g++ gives them
CLONES = {4: "arch_x86_64_v4", 3: "arch_x86_64_v3", 1: "default"}
COUNTED_LEVELS = (4, 3)
_OP = re.compile(r"^((?:\w|std::|[<>, :])*? \w+_cpu\([^{}]*\)) \{$", re.M)
#: innermost loops: a jump back, and what lies between
_LINE = re.compile(r"^ +([0-9a-f]+):\t(\S+)(?: +([0-9a-f]+) )?")


class Unavailable(Exception):
    """What a measurement needs and this machine lacks."""


def run(command: Iterable[object], **kwargs) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr[-4000:]}")
    return done.stdout


def find_compiler() -> str:
    compiler = shutil.which("g++")
    if compiler is None or os.uname().machine != "x86_64":
        raise Unavailable("the clones of the CPU kernels need g++ on x86-64")
    return compiler


def build_flags() -> list[str]:
    """Those of the installed library, with the one that Python's own flags bring."""
    importlib.import_module("sparse_kernels")
    library = importlib.import_module("sparse_kernels._C")
    flags = library.build_info()["flags"].split()
    if "-O3" not in flags:
        raise Unavailable(f"the library was built with {' '.join(flags)}")
    return [*flags, "-fwrapv"]


def declarations() -> str:
    """The functions that csrc/cpu registers, for the cases to call: hot_ops.h."""
    ops = [found for source in SOURCES for found in _OP.findall(source.read_text())]
    lines = [f"{op};" for op in ops]
    types = "using hot::Tensor;\nusing hot::TensorList;"
    return "\n".join(["#pragma once", "namespace sk::cpu {", types, *lines, "}", ""])


class Program:
    """The objects of all CPU ops and of the cases, in a folder.

    Args:
        folder: where everything is written.
        flags: of the compiler, for the ops.
        link: of the linker, and of the compiler for hot_*.cpp.
        reports: whether the vectoriser writes one for every source.
    """

    def __init__(
        self, folder: Path, flags: list[str], link: Iterable[str] = (), *, reports: bool = False
    ):
        self.folder, self.compiler, self.link_flags = folder, find_compiler(), list(link)
        for header in TORCH_HEADERS:
            path = folder / "include" / header
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'#include "{HERE / "hot_torch.h"}"\n')
        (folder / "include" / "hot_ops.h").write_text(declarations())
        jobs = [(source, ["-std=c++20", "-O1", *self.link_flags]) for source in CASES]
        for source in SOURCES:
            own = [f"-fdump-tree-vect-optimized-missed={self.report(source)}"] if reports else []
            jobs.append((source, [*flags, *own]))
        # the longest first
        jobs.sort(key=lambda job: job[0].stem not in ("bregman_step", "zo_combine", "prox_group"))
        with ThreadPoolExecutor(JOBS) as pool:
            self.objects = list(pool.map(lambda job: self._compile(*job), jobs))

    def report(self, source: Path) -> Path:
        return self.folder / f"{source.stem}.vect"

    def object(self, source: Path) -> Path:
        return self.folder / f"{source.stem}.o"

    def _compile(self, source: Path, flags: list[str]) -> Path:
        out = self.object(source)
        include = self.folder / "include"
        run([self.compiler, *flags, f"-I{include}", "-c", source, "-o", out])
        return out

    def at_level(self, level: int) -> Path:
        """A program that sees no more of the processor than an x86-64 level.

        Raises:
            Unavailable: the processor has less.
        """
        path = self.folder / f"hot_loops_v{level}"
        if not path.exists():
            hides = self.folder / f"hot_level_{level}.o"
            source = HERE / "hot_level.cpp"
            run([self.compiler, "-O1", f"-DSK_LEVEL={level}", "-c", source, "-o", hides])
            wrap = "-Wl,--wrap=__cpu_indicator_init"
            run([self.compiler, *self.objects, hides, wrap, *self.link_flags, "-o", path])
        if (has := int(run([path, "level"]))) < level:
            raise Unavailable(f"this processor is x86-64-v{has} and does not run v{level} code")
        return path


def per_element(lines: Iterable[str]) -> dict[str, float]:
    """Case to instructions per element, from lines NAME ELEMENTS INSTRUCTIONS."""
    counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for line in lines:
        name, elements, instructions = line.split()
        counts[name].append((int(elements), int(instructions)))
    out = {}
    for name, found in counts.items():
        if len(found) == 2:  # what is done once per call drops out
            found = [(found[1][0] - found[0][0], found[1][1] - found[0][1])]
        ((elements, instructions),) = found
        out[name] = round(instructions / elements, 4)
    return out


def count_steps(program: Program, level: int, pattern: str = "") -> dict[str, float]:
    """Instructions per element, counted by the processor itself, one trap after each."""
    return per_element(run([program.at_level(level), "steps", pattern]).splitlines())


def count_callgrind(program: Program, pattern: str = "") -> dict[str, float]:
    """The same of the v3 code, counted by valgrind: it knows nothing of AVX-512."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Unavailable("valgrind is not installed: callgrind counted nothing")
    path = program.at_level(3)
    out = program.folder / "callgrind.out"
    for old in program.folder.glob("callgrind.out*"):
        old.unlink()
    names = run(
        [valgrind, "-q", "--tool=callgrind", f"--callgrind-out-file={out}",
         "--toggle-collect=hot_call", "--dump-after=hot_call", path, "calls", pattern]
    ).splitlines()  # fmt: skip
    lines = []
    for i, name in enumerate(names, 1):
        text = Path(f"{out}.{i}").read_text()
        found = re.search(r"^(?:totals|summary): (\d+)", text, re.M)
        assert found is not None, f"callgrind wrote no totals for {name}"
        lines.append(f"{name} {found[1]}")
    return per_element(lines)


def innermost_loops(listing: Iterable[str]) -> dict[str, int]:
    """Symbol to the instructions of its innermost loops, from objdump's listing."""
    out: dict[str, int] = {}
    symbol, code = "", []

    def flush() -> None:
        if not symbol:
            return
        where = {address: i for i, (address, _, _) in enumerate(code)}
        backward = [
            (where[target], i)
            for i, (address, name, target) in enumerate(code)
            if name.startswith("j") and target in where and target <= address
        ]
        inner = {
            (low, high)
            for low, high in backward
            if not any((a, b) != (low, high) and low <= a and b <= high for a, b in backward)
        }
        out[symbol] = sum(high - low + 1 for low, high in inner)

    for line in listing:
        if line.endswith(">:\n"):
            flush()
            symbol, code = line[line.index("<") + 1 : -3], []
        elif found := _LINE.match(line):
            code.append((int(found[1], 16), found[2], int(found[3] or "0", 16)))
    flush()
    return out


def count_loops(program: Program, source: Path) -> dict[str, int]:
    """Clone to the instructions in the innermost loops of all functions of a source.

    What the compiler wrote, whichever of it this processor can run.
    """
    listing = run(["objdump", "-d", "--no-show-raw-insn", program.object(source)])
    totals: dict[str, int] = defaultdict(int)
    for symbol, instructions in innermost_loops(listing.splitlines(keepends=True)).items():
        for level in COUNTED_LEVELS:
            if symbol.endswith("." + CLONES[level]):
                totals[f"v{level}"] += instructions
    return dict(totals)


def count(program: Program, level: int, pattern: str = "") -> dict[str, float]:
    """Instructions per element at a level. Both tools count the same; callgrind is the faster one,
    but runs no AVX-512 code.
    """
    if level == 3 and shutil.which("valgrind") is not None:
        return count_callgrind(program, pattern)
    return count_steps(program, level, pattern)


def measure(program: Program, pattern: str = "") -> dict[str, dict[str, float]]:
    """Case to instructions per element at every level that is counted."""
    out: dict[str, dict[str, float]] = defaultdict(dict)
    for level in COUNTED_LEVELS:
        for name, found in count(program, level, pattern).items():
            out[name][f"v{level}"] = found
    return dict(out)


def compiler_major(compiler: str) -> int:
    return int(run([compiler, "-dumpversion"]).partition(".")[0])


def write_budget(program: Program) -> None:
    loops = {source.stem: count_loops(program, source) for source in SOURCES}
    budget = {
        "compiler": f"g++ {compiler_major(program.compiler)}",
        "instructions_per_element": measure(program),
        "instructions_in_innermost_loops": {stem: n for stem, n in loops.items() if n},
    }
    text = json.dumps(budget, indent=1)
    # a case per line
    BUDGET.write_text(re.sub(r"\{\s+(\"v4\": \S+)\s+(\"v3\": \S+)\s+\}", r"{\1 \2}", text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="")
    parser.add_argument("--write", action="store_true", help="write hot_budget.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Program(Path(folder), build_flags())
        if arguments.write:
            return write_budget(program)
        for name, counts in measure(program, arguments.pattern).items():
            print(f"{name:44}", *(f"{level} {found:9.4f}" for level, found in counts.items()))


if __name__ == "__main__":
    main()
