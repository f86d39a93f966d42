"""Zero what a mask leaves out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._check import (
    ListArg,
    bump_versions,
    check_lists,
    grouped,
)
from .._group import checked_by_kernel


@checked_by_kernel
def mask_apply_(
    tensors: Sequence[Tensor], masks: Sequence[Tensor], *, backend: str | None = None
) -> None:
    """Write +0.0 where the mask bit is 0; the other entries keep their bits.

    Args:
        tensors: tensors (mutated); float32, bfloat16, float16 or float64.
        masks: int32 bit masks (``pack_mask``).
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: lists do not fit, a tensor requires grad in grad mode, two are the same memory.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> w = torch.tensor([1.0, -2.0])
        >>> mask_apply_([w], pack_mask([torch.tensor([True, False])]))
        >>> w
        tensor([1., 0.])
    """
    op = "mask_apply_"
    args = [
        ListArg("tensors", tensors, mutated=True),
        ListArg("masks", masks, kind="words", optional=False),
    ]
    whole = check_lists(op, args)
    for g in grouped(op, backend, args, ordered=False, whole=whole):
        g.run(g.lists["tensors"], g.lists["masks"])
    bump_versions(args)
