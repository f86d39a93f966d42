"""Copy a backup back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._check import ListArg, bump_versions, check_lists, grouped


def restore_(
    params: Sequence[Tensor],
    backup: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
    *,
    backend: str | None = None,
) -> None:
    """Copy the backup's bits into the parameters: ``params = backup`` where the mask bit is 1.

    Args:
        params: tensors (mutated); float32, bfloat16, float16 or float64.
        backup: tensors like ``params``, as ``masked_perturb_`` or ``zo_combine_`` filled them.
        masks: int32 bit masks (``pack_mask``); None restores every entry.
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
    args = [
        ListArg("params", params, mutated=True),
        ListArg("backup", backup, optional=False),
        ListArg("masks", masks, kind="words"),
    ]
    whole = check_lists("restore_", args)
    for g in grouped("restore_", backend, args, ordered=False, whole=whole):
        g.run(g.lists["params"], g.lists["backup"], g.lists["masks"])
    bump_versions(args)
