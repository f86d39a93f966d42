"""python -m sparse_kernels.info says what is there and why something is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import sparse_kernels as sk
from sparse_kernels import _backend, _loader, info
from sparse_kernels._schemas import OPS


def test_report_of_the_command():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "sparse_kernels.info"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for text in (sk.__version__, torch.__version__, info.TARGET_TORCH, *OPS):
        assert text in done.stdout
    assert done.stdout.strip() == info.report()
    assert max(map(len, done.stdout.splitlines())) < 400


def test_unknown_option_is_an_error():
    done = subprocess.run(
        [sys.executable, "-m", "sparse_kernels.info", "--what"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--what" in done.stderr


@pytest.mark.needs_backend("cpp")
def test_build_info_of_the_compiled_library():
    if _loader._C is None:
        pytest.skip(str(_loader.load_errors["_C"]))
    built = info.build_info("_C")
    assert set(built) >= {"compiler", "torch", "flags", "simd"}
    assert all(isinstance(v, str) and v for v in built.values())
    # the flags that equal bits rest on
    assert "-ffp-contract=off" in built["flags"]
    for fast in ("-ffast-math", "-Ofast", "-march=native"):
        assert fast not in built["flags"]
    assert built["flags"] in info.report()


@pytest.mark.parametrize("device", info.DEVICES)
def test_backend_named_is_the_backend_that_runs(device):
    rows = info.backend_rows(device)
    assert [op for op, _, _ in rows] == list(OPS)
    for op, chosen, why in rows:
        reasons = {b: reason for b, ok, reason in sk.explain(op, device) if not ok}
        assert chosen not in reasons
        if device == "cpu":
            assert chosen == _backend.resolved_name(op, None, device, torch.float32)
        for backend in _backend.preferences(device):
            if backend == chosen:
                break
            assert f"{backend}: {reasons[backend]}" in why


def test_missing_library_is_explained(monkeypatch):
    monkeypatch.setattr(_loader, "_C", None)
    monkeypatch.setitem(_loader.load_errors, "_C", ImportError("no such file"))
    assert info.build_info("_C") == "not loaded: no such file"
    assert "sparse_kernels._C not loaded: no such file" in info.report()
    assert info.versions()["torch built with"] == "nothing built"
