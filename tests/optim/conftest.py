"""Fixtures of the optimizer tests."""

import pytest


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    return request.param
