"""Names the backends that are missing here; --require-backend NAME makes that a failure."""

import pytest

from sparse_kernels._backend import BACKENDS
from sparse_kernels.testing import all_targets, unavailable_reason


@pytest.mark.parametrize(
    "backend", [pytest.param(b, marks=pytest.mark.needs_backend(b)) for b in BACKENDS]
)
def test_backend_is_present(backend):
    reasons = [unavailable_reason(t) for t in all_targets() if t.backend == backend]
    if None not in reasons:
        pytest.skip("; ".join(reasons))
