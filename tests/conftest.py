"""Shared by all tests: the choice of targets, determinism, and what a missing backend means."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparse_kernels import _backend
from sparse_kernels.testing import DTYPES, Target, all_targets, supports, unavailable_reason


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        choices=_backend.BACKENDS,
        metavar="NAME",
        help="fail, instead of skipping, what needs this backend where it is missing (repeatable)",
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise the fixtures ``target``, ``twin`` and ``dtype``.

    ``target`` is every backend and device that runs here, ``twin`` the same without the reference
    on the CPU, for tests that compare with it. What is missing here is named once, by
    tests/kernels/test_backends_present.py, and not by every test of the matrix.
    """
    names = metafunc.fixturenames
    usable = [t for t in all_targets() if unavailable_reason(t) is None]
    key = "twin" if "twin" in names else "target"
    if key == "twin":
        usable.remove(Target("reference", "cpu"))
    if key in names and "dtype" in names:
        pairs = [(t, d) for t in usable for d in DTYPES if supports(t, d)]
        ids = [f"{t}-{_dtype_name(d)}" for t, d in pairs]
        metafunc.parametrize((key, "dtype"), pairs, ids=ids)
    elif key in names:
        metafunc.parametrize(key, usable, ids=str)
    elif "dtype" in names:
        metafunc.parametrize("dtype", DTYPES, ids=_dtype_name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn the skip of a test that is marked with a required backend's name into a failure."""
    report = yield
    required = item.config.getoption("--require-backend")
    marker = item.get_closest_marker("needs_backend")
    if report.skipped and marker is not None and marker.args[0] in required:
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"--require-backend {marker.args[0]}: {reason}"
    return report


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs_backend(name): skips without this backend; see --require-backend"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests that passed have to say: ``record_property("note", text)``."""
    for report in terminalreporter.getreports("passed"):
        for key, value in report.user_properties:
            if key == "note":
                terminalreporter.write_line(f"NOTE {value}")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Most tensors here are tiny, and on a busy machine the pool costs more than the tests.

    For the session: modules train in fixtures of their own. Tests of threading ask for the counts
    they compare.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same seed and backend for every test, whatever ran before; threads come back."""
    monkeypatch.delenv("SPARSE_KERNELS_BACKEND", raising=False)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)
