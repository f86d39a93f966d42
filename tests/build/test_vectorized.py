"""The compiler's own report: the Bregman steps' functors become vector code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parent / "vectorized.cpp"
FLAGS = (  # as setup.py and Python's own flags have them
    "-O3", "-fwrapv", "-std=c++20", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fopenmp-simd",
)  # fmt: skip
FUNCTION = re.compile(r"^SK_TARGET void (\w+)\(")


def test_every_step_is_vectorised(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    include = Path(torch.__file__).parent / "include"
    found = subprocess.run(
        [compiler, *FLAGS, f"-I{include}", "-fopt-info-vec-all", "-c", str(SOURCE),
         "-o", str(tmp_path / "out.o")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    if "note: vectorized" not in found.stderr:
        pytest.skip("this g++ gives no vectoriser's report")
    lines = SOURCE.read_text().splitlines()
    names = {i: m[1] for i, line in enumerate(lines, 1) if (m := FUNCTION.match(line))}
    loops = {
        names[int(line)]: int(count)
        for line, count in re.findall(
            r"vectorized\.cpp:(\d+):\d+: note: vectorized (\d+) loops in function", found.stderr
        )
        if int(line) in names
    }
    assert len(names) == 11
    assert loops == dict.fromkeys(names.values(), 1)
