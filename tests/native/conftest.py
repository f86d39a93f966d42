"""The native tests need sparse_kernels._core, which is built for tests only."""

from __future__ import annotations

import importlib

import pytest
import torch

from sparse_kernels.reference import philox


@pytest.fixture(scope="session")
def core():
    try:
        return importlib.import_module("sparse_kernels._core")
    except ImportError as error:
        pytest.skip(
            "sparse_kernels._core is not built (SPARSE_KERNELS_BUILD_TESTS=1 pip install "
            f"--no-build-isolation -e .): {error}"
        )


@pytest.fixture
def portable(core, monkeypatch):
    """The reference with the normals of csrc/core, which it meets within 4 ulp only."""

    def box_muller(a, b):
        words = [(x - (x >= 2**31).long() * 2**32).int().contiguous() for x in (a, b)]
        even, odd = torch.empty(a.numel()), torch.empty(a.numel())
        core.box_muller(
            words[0].data_ptr(), words[1].data_ptr(), a.numel(), even.data_ptr(), odd.data_ptr()
        )
        return even.reshape(a.shape), odd.reshape(a.shape)

    monkeypatch.setattr(philox, "box_muller", box_muller)
