"""Loads the compiled libraries and keeps the reason where one is missing."""

from __future__ import annotations

import importlib
import types

import torch

#: module name -> the exception that kept it from loading
load_errors: dict[str, BaseException] = {}


class _NotForThisTorch(ImportError):
    """Raised (and stored) in place of a load error for a library this torch cannot use."""


def _load(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(f"sparse_kernels.{name}")
    except (ImportError, OSError, RuntimeError) as error:
        load_errors[name] = error
        return None


_C = _load("_C")

# a CUDA library names libtorch_cuda.so and cannot load into a CPU-only torch, so it is not tried
_C_cuda: types.ModuleType | None = None
if torch.version.cuda is None:
    load_errors["_C_cuda"] = _NotForThisTorch(
        f"torch {torch.__version__} is a CPU build; install a CUDA build of torch and reinstall"
    )
else:
    _C_cuda = _load("_C_cuda")
