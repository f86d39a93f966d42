"""What no CUDA source may contain, and that no kernel is without its twin on the host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
DEVICE = sorted([*(CSRC / "cuda").glob("*.cu*"), *(CSRC / "phases").glob("*.h")])
#: what waits for the device, or allocates or copies beside torch's allocator and stream
WAITS = (
    r"cuda\w*Synchronize", r"cudaMemcpy\w*", r"cudaMemset\w*", r"cudaMalloc\w*", r"cudaFree\w*",
    r"cudaEvent\w*", r"cudaStreamWait\w*", r"cudaLaunchHostFunc", r"aoti_torch_item\w*",
    r"\bitem\s*(<[^>]*>)?\(", r"\bthrust::\w+", r"<<<[^>]*,\s*0\s*>>>",
)  # fmt: skip


def code_of(path: Path) -> str:
    return re.sub(r"//[^\n]*", "", path.read_text())


@pytest.mark.parametrize("path", DEVICE, ids=lambda p: p.name)
def test_nothing_waits_for_the_device(path):
    for pattern in WAITS:
        found = re.search(pattern, code_of(path))
        assert found is None, f"{path.name}: {found[0]}"


@pytest.mark.parametrize("path", DEVICE, ids=lambda p: p.name)
def test_every_launch_names_its_stream(path):
    for configuration in re.findall(r"<<<(.*?)>>>", code_of(path), re.S):
        assert re.search(r",\s*0,\s*(stream|current_stream\(.*\))$", configuration, re.S)


def test_atomics_add_integers_only():
    """They stand in one place; sums of floats have an order (csrc/core/reduce.h)."""
    found = [(p.name, a) for p in DEVICE for a in re.findall(r"\batomic\w+|\bred\.", code_of(p))]
    assert found == [("launch.cuh", "atomicAdd")] * 2
    text = code_of(CSRC / "cuda" / "launch.cuh")
    adds = re.findall(r"void add\((\w+)\* p, \w+ value\) const \{[^}]*atomicAdd", text)
    assert adds == ["int32_t", "int64_t"]


def kernels() -> dict[str, str]:
    """Kernel -> the program of csrc/phases that it runs."""
    found = {}
    for path in sorted((CSRC / "cuda").glob("*.cu*")):
        for part in code_of(path).split("__global__")[1:]:
            name = re.search(r"(\w+)\(const |(\w+)\((?:const )?\w+\*? ", part.partition(")")[2])
            program = re.search(r"phases::(\w+)(?:<[^;]*?>)?\(\s*block\b", part)
            assert name is not None, f"{path.name}: {part[:200]}"
            assert program is not None, f"{path.name}: {part[:200]}"
            found[name[1] or name[2]] = program[1]
    return found


def test_every_kernel_runs_a_program_that_the_host_harness_runs_too():
    harness = "".join(code_of(p) for p in sorted((CSRC / "bindings").glob("harness*.h")))
    programs = kernels()
    assert {"for_each_kernel", "gram_kernel", "zo_key_kernel"} <= programs.keys()
    launched = set()
    for path in (CSRC / "cuda").glob("*.cu*"):
        launched |= set(re.findall(r"(\w+)(?:<[^;<]*>)?\s*<<<", code_of(path)))
    for kernel, program in programs.items():
        called = re.search(rf"phases::{program}(<[^;]*?>)?\(", harness)
        assert called, f"{kernel} runs {program}, which the harness does not"
        declared = any(re.search(rf"SK_HD void {program}\(", code_of(p)) for p in DEVICE)
        assert declared, f"{program} is not a program of csrc/phases"
    assert launched - {"kernel"} <= programs.keys()
