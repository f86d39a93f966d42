"""Global 2-norm of a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._check import (
    ListArg,
    check_lists,
    check_scalar,
    grouped,
    opmath_dtype,
)
from .._group import checked_by_kernel


@checked_by_kernel
def grad_norm(
    grads: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
    *,
    weights: Sequence[Tensor] | None = None,
    eta: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Return the global 2-norm of a list of gradients, on their device, without a host sync.

    ``||g||``, with masks ``||m * g||``, with weights (adaptive SAM) ``||(|w| + eta) * g||``.

    Args:
        grads: tensors of any shapes; float32, bfloat16, float16 or float64; several devices or
            dtypes are allowed.
        masks: int32 bit masks as ``pack_mask`` returns them; 1 means "counts".
        weights: tensors like ``grads``, the parameters of the adaptive form.
        eta: added to ``|w|``, >= 0.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor on the device of ``grads[0]``: float64 if any gradient is, else float32.
        The sum of squares runs in float32 over chunks of 65,536 elements and in float64 over
        chunks, in a fixed order: equal bits for every launch geometry and thread count. NaN and
        infinite gradients give a norm that is not finite. An empty list gives 0.

    Raises:
        ValueError: lists differ in length, shape, dtype or device.
        BackendUnavailableError: the backend asked for is not there.

    Source: SAM, arXiv 2010.01412, eq. (2); ASAM, arXiv 2102.11600.

    Example:
        >>> grad_norm([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(5.)
    """
    args = [
        ListArg("grads", grads),
        ListArg("masks", masks, kind="words"),
        ListArg("weights", weights),
    ]
    whole = check_lists("grad_norm", args)
    check_scalar("grad_norm", "eta", eta, 0.0)
    groups = list(grouped("grad_norm", backend, args, ordered=False, whole=whole))
    if not groups:
        return torch.zeros(())

    def run(group_index: int, squared: bool) -> Tensor:
        g = groups[group_index]
        return g.run(g.lists["grads"], g.lists["masks"], g.lists["weights"], eta, squared)

    if len(groups) == 1:
        return run(0, False)
    total = torch.stack([run(i, True).to(groups[0].device) for i in range(len(groups))]).cumsum(0)[
        -1
    ]
    wide = any(g.dtype == torch.float64 for g in groups)
    return total.sqrt().to(torch.float64 if wide else opmath_dtype(torch.float32))
