"""Compiles csrc/cuda/*.cu without a GPU or a CUDA torch, and reads the machine code.

``python tests/build/compile_cuda.py [stem ...]`` prints one line per kernel and architecture, with
``--write-budget`` it also stores these as the budget (``cuda_budget.py``) of all or these sources.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cuda_budget
from cuda_budget import Budget, Entry
from sass import Code, Instruction, instructions

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
ARCHS = ("80", "90", "100")
JOBS = int(os.environ.get("MAX_JOBS", "2"))
STABLE = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA"]


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))


def find_cuobjdump() -> str | None:
    """On PATH, or in the Triton wheel, which brings nvdisasm along."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        tools = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
        found = shutil.which("cuobjdump", path=str(tools))
    return found


def compile_source(nvcc: str, source: Path, folder: Path) -> Path:
    """Object file with machine code of every architecture and the PTX of the last one."""
    from torch.utils.cpp_extension import include_paths

    codes = []
    for arch in ARCHS:
        kinds = f"[sm_{arch},compute_{arch}]" if arch == ARCHS[-1] else f"sm_{arch}"
        codes.append(f"--generate-code=arch=compute_{arch},code={kinds}")
    out = folder / f"{source.stem}.o"
    command = [nvcc, "-c", "-std=c++20", "-O3", "--fmad=false", *STABLE, *codes]
    command += [f"-I{path}" for path in include_paths()]
    done = subprocess.run([*command, "-o", str(out), str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{source.name}: {done.stderr[-4000:]}")
    return out


#: these take longest, so they come first: a minute or more, where the others take 10 to 30 seconds
SLOW = ("zo_combine", "bregman_step", "mask_topk")


def compile_all(nvcc: str, sources: list[Path], folder: Path) -> dict[str, Path]:
    """Objects by stem, in the order of ``sources``.

    One process per file and no ``--threads`` in it: with as many files as processors under way,
    architectures side by side would only wait for each other.
    """
    ordered = sorted(sources, key=lambda s: s.stem not in SLOW)
    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda source: compile_source(nvcc, source, folder), ordered))
    found = {s.stem: o for s, o in zip(ordered, objects, strict=True)}
    return {s.stem: found[s.stem] for s in sources}


@dataclass
class Kernel:
    stem: str
    arch: str
    name: str  # demangled, without namespaces
    registers: int = 0
    stack: int = 0
    code: list[Instruction] = field(default_factory=list)

    @property
    def key(self) -> str:
        return cuda_budget.key_of(self.stem, self.name)

    def count(self, prefix: str) -> int:
        return sum(c.opcode.startswith(prefix) for c in self.code)

    def __str__(self) -> str:
        counts = " ".join(
            f"{what} {self.count(what):3d}"
            for what in ("LDG", "LDG.E.128", "STG", "STG.E.128", "LDL", "STL", "FFMA")
        )
        return (
            f"sm_{self.arch} {self.registers:3d} registers, stack {self.stack}, "
            f"{len(self.code):4d} instructions: {counts}  {self.name}"
        )


def demangle(names: list[str]) -> dict[str, str]:
    tool = shutil.which("c++filt")
    if tool is None:
        raise RuntimeError("c++filt (binutils) is not installed: kernels have no names without it")
    if not names:
        return {}
    out = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout
    plain = [
        re.sub(r"^void |\bsk::|\bcuda::|\bphases::|\((?![\w:]+\)\d).*", "", line)
        for line in out.split("\n")
    ]
    return dict(zip(names, plain, strict=False))


def kernels_of(cuobjdump: str, stem: str, path: Path) -> Iterator[Kernel]:
    def dump(option: str, arch: str) -> str:
        command = [cuobjdump, option, "-arch", f"sm_{arch}", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for arch in ARCHS:
        found: dict[str, Kernel] = {}
        usage = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)")
        for name, registers, stack in usage.findall(dump("-res-usage", arch)):
            found[name] = Kernel(stem, arch, name, int(registers), int(stack))
        for text in dump("-sass", arch).split("Function : ")[1:]:
            found[text.split(maxsplit=1)[0]].code = instructions(text)
        plain = demangle(list(found))
        for name, kernel in found.items():
            kernel.name = plain[name]
            yield kernel


def costs_of(kernels: list[Kernel], folder: Path) -> dict[str, Entry]:
    """What every kernel costs, by key."""
    shapes = cuda_budget.shapes(sorted({k.key for k in kernels}), folder)
    out: dict[str, Entry] = {}
    for k in kernels:
        shape = shapes.get(k.key)
        entry = out.setdefault(k.key, Entry(shape.bytes if shape else 0, {}))
        entry.costs[k.arch] = cuda_budget.cost_of(Code(k.code), k.registers, k.stack, shape)
    return out


def ptx_entries(cuobjdump: str, path: Path) -> dict[str, str]:
    """PTX text of every kernel, by demangled name."""
    text = subprocess.run(
        [cuobjdump, "-ptx", str(path)], capture_output=True, text=True, check=True
    ).stdout
    parts = re.split(r"\.entry\s+(\w+)\s*\(", text)[1:]
    entries = dict(zip(parts[::2], parts[1::2], strict=True))
    plain = demangle(list(entries))
    return {plain[name]: body for name, body in entries.items()}


def version_of(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV(\d+\.\d+\.\d+)", text)
    assert found is not None, text
    return found[1]


def main(arguments: list[str]) -> None:
    nvcc, cuobjdump = find_nvcc(), find_cuobjdump()
    if nvcc is None or cuobjdump is None:
        sys.exit(f"nvcc: {nvcc or 'not found'}; cuobjdump: {cuobjdump or 'not found'}")
    stems = [a for a in arguments if a != "--write-budget"]
    sources = [s for s in SOURCES if not stems or s.stem in stems]
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        for stem, path in compile_all(nvcc, sources, Path(folder)).items():
            kernels += kernels_of(cuobjdump, stem, path)
        costs = costs_of(kernels, Path(folder))
        for kernel in kernels:
            cost = costs[kernel.key].costs[kernel.arch]
            print(f"{kernel}: {cost.instructions} for {cost.elements}")
    if "--write-budget" in arguments:
        kept = {}
        if stems and cuda_budget.FILE.exists():
            old = Budget.read()
            if old.nvcc != version_of(nvcc):
                sys.exit(f"the budget is that of nvcc {old.nvcc}: write it for all sources")
            kept = {k: v for k, v in old.kernels.items() if k.split(":")[0] not in stems}
        Budget(version_of(nvcc), kept | costs).write()


if __name__ == "__main__":
    main(sys.argv[1:])
