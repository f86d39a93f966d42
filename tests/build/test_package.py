"""The wheels: their contents, that they work outside the checkout, what a failed build says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "csrc",
    "sparse_kernels",
    "python_api",
)
# every package of ours on sys.path has to come from the wheel under test
CLEAN = {"PYTHONPATH", "SPARSE_KERNELS_BUILD", "SPARSE_KERNELS_BACKEND", "CXX", "CUDA_HOME"}
BLOCK = """
import importlib.abc, runpy, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocker())
sys.argv = ["setup.py", "--version"]
runpy.run_path("setup.py", run_name="__main__")
"""


def run(*command, cwd, **environment):
    base = {k: v for k, v in os.environ.items() if k not in CLEAN}
    return subprocess.run(
        command, cwd=cwd, env={**base, **environment}, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of what the build needs: building in the checkout would leave build/ behind."""
    copy = tmp_path_factory.mktemp("source")
    leftovers = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=leftovers)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def build_wheel(source, out, mode):
    done = run(
        sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q", ".",
        "-w", str(out), cwd=source, SPARSE_KERNELS_BUILD=mode, MAX_JOBS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = Path(out).glob("*.whl")
    return wheel


def install(wheel, target):
    # a wheel of pure Python or of one library is a zip file laid out like site-packages
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def python(code, site, cwd):
    """Run code where the wheel and the interpreter's own packages are, but not the checkout.

    The checkout is installed in editable mode, by a finder that stands in sys.meta_path, so the
    wheel's folder has to be asked first.
    """
    head = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.path[:] = [{str(site)!r}] + [p for p in sys.path if {str(ROOT)!r} not in p"
        " or 'site-packages' in p or 'lib/python' in p]\n"
    )
    done = run(sys.executable, "-W", "error", "-c", head + code, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def pure_wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp("pure"), "none")


def test_pure_wheel_contents(pure_wheel):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(pure_wheel) as archive:
        names = archive.namelist()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    wanted = {"sparse_kernels/py.typed", "sparse_kernels/_C.pyi", "sparse_optim/py.typed",
              "sparse_kernels/reference/norm.py", "sparse_kernels/triton/norm.py",
              "sparse_kernels/functional/norm.py", "sparse_kernels/testing.py"}  # fmt: skip
    assert wanted <= set(names)
    tops = {n.split("/")[0] for n in names if ".dist-info" not in n}
    assert tops == {"sparse_kernels", "sparse_optim"}
    assert not [n for n in names if n.endswith((".so", ".cpp", ".h", ".cu")) or "test_" in n]
    packages = {str(p.parent.relative_to(ROOT)) for p in (ROOT / "sparse_kernels").rglob("*.py")}
    packages |= {
        str(p.parent.relative_to(ROOT / "python_api")) for p in (ROOT / "python_api").rglob("*.py")
    }
    assert {str(Path(n).parent) for n in names if n.endswith(".py")} == packages
    requirements = [line for line in text.splitlines() if line.startswith("Requires-Dist")]
    assert [r for r in requirements if "extra ==" not in r] == ["Requires-Dist: torch>=2.11"]
    assert "License-File: LICENSE" in text


def test_pure_wheel_works_without_the_compiled_library(pure_wheel, tmp_path):
    site = install(pure_wheel, tmp_path / "site")
    out = python(
        "import torch, sparse_kernels as sk, sparse_optim\n"
        "print(sk.__file__)\n"
        "print(sk.available_backends())\n"
        "w, g = [torch.zeros(4)], [torch.full((4,), 2.0)]\n"
        "sk.masked_perturb_(w, g, sk.grad_norm(g), 0.5)\n"
        "print(w[0].tolist())\n"
        "print(dict((b, why) for b, ok, why in sk.explain('grad_norm'))['cpp'])\n"
        "try:\n"
        "    sk.grad_norm(g, backend='cpp')\n"
        "except sk.BackendUnavailableError as error:\n"
        "    print(error, '|', type(error.__cause__).__name__)\n",
        site, tmp_path,
    ).splitlines()  # fmt: skip
    assert out[0].startswith(str(site))
    assert out[1:3] == ["['reference']", "[0.25, 0.25, 0.25, 0.25]"]
    reason = "the extension sparse_kernels._C is not there: No module named 'sparse_kernels._C'"
    assert out[3] == reason
    assert out[4].startswith("grad_norm: backend 'cpp' is not available for torch.float32 on cpu: ")
    assert f"{reason}; available here: reference | ModuleNotFoundError" in out[4]


def failed_build(done):
    """The one sentence a failed build ends with."""
    assert done.returncode not in (0, None), done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def setup(source, **environment):
    return run(sys.executable, "setup.py", "--version", cwd=source, **environment)


def test_unknown_build_mode(source):
    text = failed_build(setup(source, SPARSE_KERNELS_BUILD="gpu"))
    assert text == "SPARSE_KERNELS_BUILD must be one of auto, none, cpu, cuda, got 'gpu'"


def test_missing_compiler(source):
    text = failed_build(setup(source, SPARSE_KERNELS_BUILD="cpu", CXX="/nonexistent/g++"))
    assert "no C++ compiler (/nonexistent/g++) on PATH" in text
    assert "install g++ or set CXX" in text
    assert "SPARSE_KERNELS_BUILD=none" in text


@pytest.mark.parametrize("mode", ["auto", "cpu", "cuda"])
def test_missing_torch(source, mode):
    done = run(sys.executable, "-c", BLOCK, cwd=source, SPARSE_KERNELS_BUILD=mode)
    text = failed_build(done)
    assert "torch is not importable" in text
    assert "pip install --no-build-isolation ." in text
    assert "SPARSE_KERNELS_BUILD=none" in text


def test_pure_python_build_needs_no_torch(source):
    done = run(sys.executable, "-c", BLOCK, cwd=source, SPARSE_KERNELS_BUILD="none")
    assert done.returncode == 0, done.stderr


def fake_nvcc(folder, release):
    """A CUDA toolkit of which only the version can be asked."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    header = folder / "include" / "cuda_runtime_api.h"
    header.parent.mkdir()
    header.touch()
    return str(folder)


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a CPU build of torch")
def test_cuda_asked_of_a_cpu_torch(source, tmp_path):
    # whether a toolkit is there or not: it is torch that has to be replaced
    for home in (str(tmp_path), fake_nvcc(tmp_path / "cuda", "13.0")):
        text = failed_build(setup(source, SPARSE_KERNELS_BUILD="cuda", CUDA_HOME=home))
        assert f"needs a CUDA build of torch, {torch.__version__} is a CPU build" in text


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
def test_cuda_toolkit_of_another_major(source, tmp_path):
    home = fake_nvcc(tmp_path / "cuda", "9.2")
    bare = fake_nvcc(tmp_path / "bare", "9.2")
    (tmp_path / "bare" / "include" / "cuda_runtime_api.h").unlink()
    for incomplete in (str(tmp_path), bare):
        done = setup(source, SPARSE_KERNELS_BUILD="cuda", CUDA_HOME=incomplete)
        assert "set CUDA_HOME to a toolkit" in failed_build(done)
    text = failed_build(setup(source, SPARSE_KERNELS_BUILD="cuda", CUDA_HOME=home))
    assert f"nvcc is CUDA 9.2 and torch was built with CUDA {torch.version.cuda}" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_wheel(source, tmp_path):
    wheel = build_wheel(source, tmp_path / "wheel", "cpu")
    assert "-cp310-abi3-linux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        libraries = [n for n in archive.namelist() if n.endswith(".so")]
        assert not [n for n in archive.namelist() if n.endswith((".cpp", ".h", ".cu"))]
    assert libraries == ["sparse_kernels/_C.abi3.so"]
    audit = run(sys.executable, "-m", "abi3audit", "--strict", str(wheel), cwd=tmp_path)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    site = tmp_path / "site"
    done = run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site),
        str(wheel), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = python(
        "import torch, sparse_kernels as sk\n"
        "from sparse_kernels import _C\n"
        "print(_C.__file__, sk.available_backends())\n"
        "print(sk.grad_norm([torch.full((4,), 2.0)], backend='cpp').item())\n",
        site, tmp_path,
    ).splitlines()  # fmt: skip
    assert out[0].startswith(str(site))
    assert "'cpp'" in out[0]
    assert out[1] == "4.0"
