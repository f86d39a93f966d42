"""The host harness and the CPU ops under AddressSanitizer and UBSan: programs without Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from walks import check_walks

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "build"))
import compile_cpu  # noqa: E402

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


@pytest.mark.slow
def test_cpu_ops_under_sanitizers(tmp_path):
    """Every op, dtype and variant of tests/build/hot_*.cpp: odd sizes, misaligned storages."""
    try:
        program = compile_cpu.Program(tmp_path, FLAGS, ["-fsanitize=address,undefined"])
        paths = [program.at_level(1)]
    except compile_cpu.Unavailable as reason:
        pytest.skip(str(reason))
    except RuntimeError as error:
        if "cannot find -lasan" in str(error) or "cannot find -lubsan" in str(error):
            pytest.skip("g++ has no sanitizer runtimes (libasan, libubsan)")
        raise
    missing = []
    for level in (3, 4):  # intrinsics of their own
        try:
            paths.append(program.at_level(level))
        except compile_cpu.Unavailable as reason:
            missing.append(str(reason))
    bits = [compile_cpu.run([path, "bits"]) for path in paths]
    assert len(bits[0].splitlines()) > 200
    assert all(other == bits[0] for other in bits)
    if missing:
        pytest.skip("; ".join(missing))
