"""The host harness under AddressSanitizer and UBSan: a program of its own, without Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from walks import check_walks

ROOT = Path(__file__).parents[2]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-fopenmp-simd",
    "-ffp-contract=off",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-DSK_NO_CLONES",  # instruction set clones are picked before the sanitizer is ready
]


@pytest.mark.slow
def test_programs_under_sanitizers(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    program = tmp_path / "harness"
    source = ROOT / "csrc" / "bindings" / "harness_main.cpp"
    built = subprocess.run(
        [compiler, *FLAGS, str(source), "-o", str(program)], capture_output=True, text=True
    )
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("g++ has no sanitizer runtimes (libasan, libubsan)")
    assert built.returncode == 0, built.stderr
    run = subprocess.run([str(program)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    check_walks(run.stdout)
