"""The CPU kernels past 2^31 elements; the CUDA kernels' programs: tests/native, "past 2 to the"."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import past_int32
import pytest

import sparse_kernels as sk


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory without pages behind it is Linux's")
@pytest.mark.parametrize("case", [c.__name__ for c in past_int32.CASES])
def test_tensors_of_more_than_2_to_the_31_elements(case):
    """A process of its own, since a stray write ends it; about half a GB of memory is used."""
    if "cpp" not in sk.available_backends():
        pytest.skip("the compiled kernels are not installed")
    script = Path(past_int32.__file__)
    done = subprocess.run([sys.executable, str(script), case], capture_output=True, text=True)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
