"""Builds the compiled libraries; all metadata stands in pyproject.toml.

SPARSE_KERNELS_BUILD        auto (default): CPU, and CUDA where nvcc and a CUDA torch are there;
                            none: pure Python; cpu: no CUDA; cuda: CUDA or an error
SPARSE_KERNELS_BUILD_TESTS  1 adds sparse_kernels._core, pybind11 bindings of the libtorch-free core
TORCH_CUDA_ARCH_LIST, MAX_JOBS and DEBUG=1 are honoured.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import setup

MODES = ("auto", "none", "cpu", "cuda")
mode = os.environ.get("SPARSE_KERNELS_BUILD", "auto")
if mode not in MODES:
    sys.exit(f"SPARSE_KERNELS_BUILD must be one of {', '.join(MODES)}, got {mode!r}")


def pure_python() -> None:
    print("sparse-kernels: pure Python build (reference and Triton backends)", file=sys.stderr)
    setup()


if mode == "none":
    pure_python()
    sys.exit()

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "sparse-kernels: torch is not importable here; install it (pip install torch) and build "
        "with pip install --no-build-isolation ., or set SPARSE_KERNELS_BUILD=none"
    )

compiler = os.environ.get("CXX", "g++")
if shutil.which(compiler.split()[0]) is None:
    sys.exit(
        f"sparse-kernels: no C++ compiler ({compiler}) on PATH; install g++ or set CXX, "
        "or set SPARSE_KERNELS_BUILD=none for the pure Python package"
    )

ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")  # no limited API on free-threaded CPython
DEBUG = os.environ.get("DEBUG") == "1"
# ops are registered through the stable ABI of torch 2.11: one library serves every later torch
STABLE = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
# threaded jumps would make branches of choices, where vector code has one instruction
MATH = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-thread-jumps"]
MATH += ["-fopenmp-simd"]
CXX = ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", *MATH]
CXX += ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
INFO = [f'-DSK_BUILD_TORCH="{torch.__version__}"', f'-DSK_BUILD_FLAGS="{" ".join(CXX)}"']


def cuda_version() -> str | None:
    """CUDA version of the toolkit that torch's build helper would use, or None.

    An nvcc alone is not one: the host compiler needs the headers, too.
    """
    home = cpp_extension.CUDA_HOME
    if not home or not Path(home, "include", "cuda_runtime_api.h").exists():
        return None
    nvcc = Path(home, "bin", "nvcc")
    if not nvcc.exists():
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return text.rpartition("release ")[2].partition(",")[0]


def want_cuda() -> bool:
    if mode == "cpu":
        return False
    nvcc, built = cuda_version(), torch.version.cuda
    if mode == "auto" and (nvcc is None or built is None):
        return False
    # first: with a CPU build of torch its helper does not look at CUDA_HOME
    if built is None:
        sys.exit(
            f"sparse-kernels: SPARSE_KERNELS_BUILD=cuda needs a CUDA build of torch, "
            f"{torch.__version__} is a CPU build"
        )
    if nvcc is None:
        sys.exit(
            "sparse-kernels: SPARSE_KERNELS_BUILD=cuda needs nvcc and the headers beside it; "
            "set CUDA_HOME to a toolkit"
        )
    if nvcc.partition(".")[0] != built.partition(".")[0]:
        sys.exit(
            f"sparse-kernels: nvcc is CUDA {nvcc} and torch was built with CUDA {built}; "
            f"set CUDA_HOME to a CUDA {built.partition('.')[0]} toolkit, "
            "or SPARSE_KERNELS_BUILD=cpu"
        )
    return True


def cpu_extension():
    return cpp_extension.CppExtension(
        "sparse_kernels._C",
        sorted(glob("csrc/cpu/*.cpp")),
        extra_compile_args=[*CXX, *STABLE, *INFO],
        py_limited_api=ABI3,
    )


def cuda_extension():
    archs = "8.0;9.0;10.0+PTX" if float(cuda_version()) >= 12.8 else "8.0;9.0+PTX"
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", archs)
    flags = [*STABLE, "-DUSE_CUDA"]
    nvcc = ["-std=c++20", "-O3", "--fmad=false", *(["-lineinfo"] if DEBUG else []), *flags]
    info = [*INFO, f'-DSK_BUILD_ARCHS="{os.environ["TORCH_CUDA_ARCH_LIST"]}"']
    extension = cpp_extension.CUDAExtension(
        "sparse_kernels._C_cuda",
        sorted([*glob("csrc/cuda/*.cu"), *glob("csrc/cuda/*.cpp")]),
        extra_compile_args={"cxx": [*CXX, *flags, *info], "nvcc": nvcc},
        py_limited_api=ABI3,
    )
    # a static runtime: the CUDA major of torch's wheels moves between releases
    extension.libraries = ["cudart_static" if n == "cudart" else n for n in extension.libraries]
    extension.libraries += ["rt", "dl", "pthread"]
    return extension


def core_extension():
    import pybind11

    return cpp_extension.CppExtension(
        "sparse_kernels._core",
        ["csrc/bindings/core.cpp"],
        include_dirs=[pybind11.get_include()],
        extra_compile_args=[*CXX, "-O1"],  # checks, not speed: half the build time
    )


cuda = want_cuda()
tests = os.environ.get("SPARSE_KERNELS_BUILD_TESTS") == "1"
extensions = [cpu_extension()]
if cuda:
    extensions.append(cuda_extension())
if tests:
    extensions.append(core_extension())
print(
    f"sparse-kernels: building {', '.join(e.name for e in extensions)}, torch {torch.__version__}"
    + (f", CUDA {torch.version.cuda}" if cuda else ", without CUDA"),
    file=sys.stderr,
)
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 and not tests else {},
)
