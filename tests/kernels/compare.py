"""Runs an operation on a target and on the CPU reference and compares every bit of the lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparse_kernels.testing import Target, assert_bit_equal, whole_storage

Lists = dict[str, Any]


def run_both(
    twin: Target, build: Callable[[str], Lists], run: Callable[[Lists, str], Any]
) -> tuple[Lists, Lists, Any, Any]:
    """``build(device)`` makes the inputs anew, ``run(lists, backend)`` calls the operation.

    Returns:
        The lists and the result on ``twin``, then on the reference, in the order
        (twin lists, reference lists, twin result, reference result).
    """
    ours, theirs = build(twin.device), build("cpu")
    return ours, theirs, run(ours, twin.backend), run(theirs, "reference")


def assert_same_lists(ours: Lists, theirs: Lists, payloads: bool = False) -> None:
    """Every list bit-equal, in the whole memory behind it: gaps between elements included."""
    for name, expected in theirs.items():
        if isinstance(expected, list) and expected and isinstance(expected[0], Tensor):
            # memory first holds what lies between the elements of a view, and what was not written
            a = [whole_storage(t) for t in ours[name]]
            e = [whole_storage(t) for t in expected]
            assert_bit_equal(a, e, f"{name} (memory)", payloads=payloads)


def assert_gaps_untouched(before: list[Tensor], after: list[Tensor]) -> None:
    """What lies between the elements of views is as it was."""
    for b, a in zip(before, after, strict=True):
        gaps = whole_storage(b).new_ones(whole_storage(b).shape)
        gaps.as_strided(b.shape, b.stride(), b.storage_offset()).zero_()
        assert_bit_equal(whole_storage(a)[gaps == 1], whole_storage(b)[gaps == 1], "gaps")
