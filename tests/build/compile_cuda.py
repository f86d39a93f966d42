"""Compiles csrc/cuda/*.cu without a GPU or a CUDA torch, and reads the machine code.

``python tests/build/compile_cuda.py [stem ...]`` prints one line per kernel and architecture.
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

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
ARCHS = ("80", "90")
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


def compile_all(nvcc: str, sources: list[Path], folder: Path) -> dict[str, Path]:
    with ThreadPoolExecutor(JOBS) as pool:
        objects = pool.map(lambda source: compile_source(nvcc, source, folder), sources)
        return {s.stem: o for s, o in zip(sources, objects, strict=True)}


@dataclass
class Kernel:
    stem: str
    arch: str
    name: str  # demangled, without namespaces
    registers: int = 0
    stack: int = 0
    code: list[str] = field(default_factory=list)

    def count(self, prefix: str) -> int:
        return sum(c.startswith(prefix) for c in self.code)

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
    if tool is None or not names:
        return {n: n for n in names}
    out = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout
    plain = [
        re.sub(r"^void |\bsk::|\bcuda::|\bphases::|\(.*", "", line) for line in out.split("\n")
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
            # "/*0040*/  @!P0 LDG.E.128 R4, ... ;": the predicate is not part of the opcode
            found[text.split(maxsplit=1)[0]].code = re.findall(
                r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text
            )
        plain = demangle(list(found))
        for name, kernel in found.items():
            kernel.name = plain[name]
            yield kernel


def ptx_entries(cuobjdump: str, path: Path) -> dict[str, str]:
    """PTX text of every kernel, by demangled name."""
    text = subprocess.run(
        [cuobjdump, "-ptx", str(path)], capture_output=True, text=True, check=True
    ).stdout
    parts = re.split(r"\.entry\s+(\w+)\s*\(", text)[1:]
    entries = dict(zip(parts[::2], parts[1::2], strict=True))
    plain = demangle(list(entries))
    return {plain[name]: body for name, body in entries.items()}


def main(stems: list[str]) -> None:
    nvcc, cuobjdump = find_nvcc(), find_cuobjdump()
    if nvcc is None or cuobjdump is None:
        sys.exit(f"nvcc: {nvcc or 'not found'}; cuobjdump: {cuobjdump or 'not found'}")
    sources = [s for s in SOURCES if not stems or s.stem in stems]
    with tempfile.TemporaryDirectory() as folder:
        for stem, path in compile_all(nvcc, sources, Path(folder)).items():
            for kernel in kernels_of(cuobjdump, stem, path):
                print(kernel)


if __name__ == "__main__":
    main(sys.argv[1:])
