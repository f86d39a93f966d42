"""The choice of backend: precedence, refusal without fallback, explain, and a quiet import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import sparse_kernels as sk
from sparse_kernels import _backend
from sparse_kernels._schemas import OPS


def name(backend=None, op="restore_", device="cpu", dtype=torch.float32):
    return _backend.resolved_name(op, backend, device, dtype)


@pytest.fixture
def cpp():
    if "cpp" not in sk.available_backends():
        pytest.skip(str(sk.explain("grad_norm")))


@pytest.mark.usefixtures("cpp")
@pytest.mark.needs_backend("cpp")
@pytest.mark.parametrize("op", OPS)
def test_auto_picks_cpp_on_the_cpu(op):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert name(op=op, dtype=dtype) == "cpp"
        assert name("auto", op=op, dtype=dtype) == "cpp"


@pytest.mark.usefixtures("cpp")
@pytest.mark.needs_backend("cpp")
def test_precedence(monkeypatch):
    monkeypatch.setenv("SPARSE_KERNELS_BACKEND", "reference")
    assert name() == "reference"  # the environment stands above auto
    with sk.use_backend("cpp"):
        assert name() == "cpp"  # use_backend above the environment
        assert name("reference") == "reference"  # the argument above all
        with sk.use_backend("reference"):
            assert name() == "reference"
            with sk.use_backend("auto"):
                assert name() == "cpp"
        assert name() == "cpp"
    assert name() == "reference"
    monkeypatch.delenv("SPARSE_KERNELS_BACKEND")
    assert name() == "cpp"


def test_use_backend_ends_with_an_exception():
    before = name()
    with pytest.raises(KeyError), sk.use_backend("reference"):
        raise KeyError
    assert name() == before


def test_unknown_names(monkeypatch):
    known = "('auto', 'cuda', 'triton', 'cpp', 'reference')"
    w = torch.ones(3)
    for tensors in ([w], []):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            sk.grad_norm(tensors, backend="gpu")
        assert str(caught.value) == f"backend must be one of {known}, got 'gpu'"
    with pytest.raises(ValueError, match="backend must be one of"), sk.use_backend("CPP"):
        pass
    monkeypatch.setenv("SPARSE_KERNELS_BACKEND", "numpy")
    with pytest.raises(ValueError, match="got 'numpy'"):
        sk.grad_norm([w])
    with pytest.raises(ValueError, match="unknown op 'nope'; ops are grad_norm,"):
        sk.explain("nope")


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_explicit_choice_never_falls_back(backend):
    if backend in sk.available_backends():
        pytest.skip(f"{backend} takes CPU tensors here")
    w, saved = torch.ones(3), torch.zeros(3)
    with pytest.raises(sk.BackendUnavailableError) as caught:
        sk.restore_([w], [saved], backend=backend)
    text = str(caught.value)
    start = (
        f"restore_: backend {backend!r} is not available for torch.float32 on cpu: it runs on CUDA"
    )
    assert text.startswith(start)
    assert text.endswith(f"available here: {', '.join(sk.available_backends())}")
    assert torch.equal(w, torch.ones(3))
    with sk.use_backend(backend), pytest.raises(sk.BackendUnavailableError):
        sk.restore_([w], [saved])


@pytest.mark.usefixtures("cpp")
@pytest.mark.needs_backend("cpp")
def test_nothing_is_modified_when_a_later_group_has_no_backend():
    w = [torch.ones(3), torch.ones(3, device="meta")]
    with pytest.raises(sk.BackendUnavailableError, match="these are on meta"):
        sk.restore_(w, [torch.zeros_like(t) for t in w], backend="cpp")
    assert torch.equal(w[0], torch.ones(3))


def test_float64_is_named_where_it_is_missing():
    for op in OPS:
        reasons = {b: why for b, ok, why in sk.explain(op, "cuda", torch.float64) if not ok}
        assert reasons["triton"] == "float64 runs on the reference and cpp backends only"


def test_explain_lists_every_backend_with_its_reason():
    for op in OPS:
        rows = sk.explain(op)
        assert [r[0] for r in rows] == list(_backend.BACKENDS)
        assert all(isinstance(ok, bool) and reason for _, ok, reason in rows)
        assert rows[-1] == ("reference", True, "available")
        assert rows[0][1:] == (False, "it runs on CUDA tensors, these are on cpu")
        usable = [b for b, ok, _ in rows if ok]
        assert set(sk.available_backends()) <= set(usable)


def run_python(code, **environment):
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SPARSE_", "TRITON_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**keep, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_environment_variable_in_a_new_process():
    code = (
        "import torch, sparse_kernels as sk, sparse_kernels._backend as b\n"
        "print(b.resolved_name('grad_norm', None, 'cpu', torch.float32))\n"
        "sk.grad_norm([torch.ones(2)])"
    )
    done = run_python(code, SPARSE_KERNELS_BACKEND="reference")
    assert (done.returncode, done.stdout.strip()) == (0, "reference"), done.stderr
    done = run_python(code, SPARSE_KERNELS_BACKEND="cuda")
    assert done.returncode != 0
    assert "BackendUnavailableError: grad_norm: backend 'cuda' is not available" in done.stderr


def test_import_has_no_side_effects(tmp_path):
    package = os.path.dirname(importlib.util.find_spec("sparse_kernels").origin)
    code = (
        "import os, sys, torch\n"
        "rng = torch.random.get_rng_state()\n"
        "seen = (torch.get_default_dtype(), torch.get_num_threads())\n"
        "mods = set(sys.modules)\n"
        "import sparse_kernels\n"
        "assert (torch.get_default_dtype(), torch.get_num_threads()) == seen\n"
        "assert torch.equal(torch.random.get_rng_state(), rng)\n"
        "assert 'triton' not in set(sys.modules) - mods, 'triton is imported'\n"
        "assert not os.listdir('.'), os.listdir('.')\n"
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    environment = {"HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.path.dirname(package)
    done = run_python(f"import os; os.chdir({str(tmp_path / 'work')!r})\n{code}", **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list((tmp_path / "home").rglob("*"))
