"""The native tests need sparse_kernels._core, which is built for tests only."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(scope="session")
def core():
    try:
        return importlib.import_module("sparse_kernels._core")
    except ImportError as error:
        pytest.skip(
            "sparse_kernels._core is not built (SPARSE_KERNELS_BUILD_TESTS=1 pip install "
            f"--no-build-isolation -e .): {error}"
        )
