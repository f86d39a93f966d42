"""Fixtures of the tests of Triton kernels; triton is imported where they are used."""

from __future__ import annotations

import functools

import pytest


@pytest.fixture(scope="module", params=[80, 90, 100], ids="sm_{}".format)
def capability(request):
    return request.param


@pytest.fixture(scope="module")
def code_of(request, capability, tmp_path_factory):
    """Machine code of the first launch of one of the module's CASES, compiled once."""
    from triton_code import Code, captured, compile_call

    path = tmp_path_factory.mktemp("cubin") / "kernel.cubin"

    @functools.cache
    def get(case):
        return Code(compile_call(captured(request.module.CASES[case])[0], capability), path)

    return get


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels launched during the test."""
    from triton_cases import MODULES, _launch

    names, launch = [], _launch.launch

    def record(kernel, *args, **meta):
        names.append(kernel.fn.__name__)
        launch(kernel, *args, **meta)

    for module in MODULES:
        monkeypatch.setattr(module, "launch", record)
    return names
