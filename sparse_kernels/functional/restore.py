"""Copy a backup back."""

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
from ._backup import BackupArgs


@checked_by_kernel
def restore_(
    params: Sequence[Tensor],
    backup: Sequence[Tensor] | Tensor,
    masks: Sequence[Tensor] | None = None,
    *,
    ranks: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> None:
    """Copy the backup's bits into the parameters: ``params = backup`` where the mask bit is 1.

    Args:
        params: tensors (mutated); float32, bfloat16, float16 or float64.
        backup: tensors like ``params``, as ``masked_perturb_`` or ``zo_combine_`` filled them; with
            ``ranks`` the one flat tensor that holds the entries with bit 1.
        masks: int32 bit masks (``pack_mask``); None restores every entry.
        ranks: as given to ``masked_perturb_``.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: lists do not fit, a tensor requires grad in grad mode, two are the same memory.
        BackendUnavailableError: the backend asked for is not there.

    Note:
        A copy of bits: NaN payloads, infinities, denormals and -0.0 come back as they were.

    Example:
        >>> w, saved = torch.ones(2), torch.zeros(2)
        >>> restore_([w], [saved])
        >>> w
        tensor([0., 0.])
    """
    op = "restore_"
    kept = BackupArgs(op, masks, backup, ranks, mutated=False, optional=False)
    args = [ListArg("params", params, mutated=True), *kept.lists]
    whole = check_lists(op, args)
    kept.check(params)
    for g in grouped(op, backend, args, ordered=False, whole=whole):
        g.run(g.lists["params"], *kept.of(g))
    bump_versions(args)
