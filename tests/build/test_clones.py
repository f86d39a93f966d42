"""The built CPU library: one clone of a hot function per x86-64 level, the best one picked."""

from __future__ import annotations

import ctypes
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CLONES = ("arch_x86_64_v4", "arch_x86_64_v3", "default")
CSRC = Path(__file__).parents[2] / "csrc"
#: functions and templates with SK_CLONES
HOT = {
    name
    for path in [*CSRC.glob("core/*.h"), *CSRC.glob("cpu/*")]
    for name in re.findall(r"^SK_CLONES [^;({]*?(\w+)\(", path.read_text(), re.M)
}
#: of /proc/cpuinfo, for the two levels above the baseline
FLAGS = {
    "arch_x86_64_v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "arch_x86_64_v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
}


@pytest.fixture(scope="module")
def library() -> str:
    try:
        path = importlib.import_module("sparse_kernels._C").__file__
    except ImportError:
        pytest.skip("sparse_kernels._C is not built")
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    return path


@pytest.fixture(scope="module")
def symbols(library) -> dict[str, set[int]]:
    """Name to addresses: every source has a copy of what several of them use."""
    out = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^([0-9a-f]+) (\w) (\S+)$", out, re.M)
    if not found:
        pytest.skip("the library was stripped")
    names: dict[str, set[int]] = {}
    for address, _, name in found:
        names.setdefault(name, set()).add(int(address, 16))
    return names


@pytest.fixture(scope="module")
def picked(symbols) -> list[str]:
    """The functions that have clones."""
    suffix = ".resolver"
    names = [name.removesuffix(suffix) for name in symbols if name.endswith(suffix)]
    if not names:
        pytest.skip("this library was built without clones")
    return names


def test_hot_functions_have_a_clone_per_level(symbols, picked):
    for name in picked:
        assert all(f"{name}.{clone}" in symbols for clone in CLONES), name
    assert "run_chunk" in HOT
    for function in HOT:
        assert any(f"{len(function)}{function}" in name for name in picked), function


def test_best_clone_of_this_processor_is_picked(library, symbols, picked):
    with open("/proc/cpuinfo") as file:
        flags = set(re.search(r"^flags\s*: (.*)$", file.read(), re.M)[1].split())
    levels = {clone for clone, needed in FLAGS.items() if needed <= flags}
    best = next((c for c in CLONES if c in levels), "default")
    with open("/proc/self/maps") as file:
        base = min(int(line.split("-")[0], 16) for line in file if line.rstrip().endswith(library))
    handle = ctypes.CDLL(library)
    for name in picked:
        # looked up as the library's own calls are: the resolver runs
        address = ctypes.cast(getattr(handle, name), ctypes.c_void_p).value - base
        assert address in symbols[f"{name}.{best}"], name
