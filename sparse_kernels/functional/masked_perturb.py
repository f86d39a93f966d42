"""Ascent step of sharpness-aware minimisation, dense, masked or adaptive."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._check import (
    ListArg,
    bump_versions,
    check_lists,
    check_scalar_tensor,
    grouped,
    opmath_dtype,
)
from .._group import checked_by_kernel
from ._backup import BackupArgs
from ._scalars import Scalar, check_hyper, device_scalars, host_number


@checked_by_kernel
def masked_perturb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    norm: Tensor,
    rho: Scalar,
    masks: Sequence[Tensor] | None = None,
    backup: Sequence[Tensor] | Tensor | None = None,
    adaptive: bool = False,
    *,
    ranks: Sequence[Tensor] | None = None,
    eta: float = 0.0,
    eps: float = 1e-12,
    backend: str | None = None,
) -> None:
    """Move the parameters to the perturbed point, in one pass.

    ``params += m * rho * g / (norm + eps)``; adaptive: ``g`` becomes ``(|w| + eta)^2 * g``.

    Args:
        params: tensors (mutated); float32, bfloat16, float16 or float64.
        grads: tensors like ``params``.
        norm: 0-dim tensor, as ``grad_norm`` returns it; read on the device. Where ``norm`` or
            ``rho / (norm + eps)`` is not finite the parameters keep their bits.
        rho: perturbation radius, >= 0; or a tensor with one element, read on the device.
        masks: int32 bit masks (``pack_mask``); entries with bit 0 keep their bits.
        backup: tensors like ``params`` (mutated): the whole parameter's original bits, written in
            the same pass, for ``restore_``. With ``ranks`` one flat tensor (mutated) of the
            parameters' dtype that takes the entries with bit 1 alone.
        adaptive: adaptive SAM; ``norm`` is then the weighted norm.
        ranks: where each mask's entries stand in a packed backup (``mask_ranks``); all parameters
            are then of one dtype and device.
        eta: added to ``|w|`` in the adaptive form, >= 0.
        eps: added to the norm, >= 0.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: lists do not fit, a tensor requires grad in grad mode, two are the same memory.
        BackendUnavailableError: the backend asked for is not there.

    Note:
        Elementwise in float32 (float64 for float64), one rounding on store; float32 results are
        bit-equal on every backend.

    Source: SAM, arXiv 2010.01412, eq. (2); Sparse SAM, arXiv 2210.05177; ASAM, arXiv 2102.11600.

    Example:
        >>> w, g = torch.zeros(2), torch.tensor([3.0, 4.0])
        >>> masked_perturb_([w], [g], grad_norm([g]), rho=0.5)
        >>> w
        tensor([0.3000, 0.4000])
    """
    op = "masked_perturb_"
    kept = BackupArgs(op, masks, backup, ranks, mutated=True, optional=True)
    args = [
        ListArg("params", params, mutated=True),
        ListArg("grads", grads, optional=False),
        *kept.lists,
    ]
    whole = check_lists(op, args)
    kept.check(params)
    for name, value in (("rho", rho), ("eta", eta), ("eps", eps)):
        check_hyper(op, name, value, 0.0)
    check_scalar_tensor(op, "norm", norm)
    for g in grouped(op, backend, args, ordered=False, whole=whole):
        on_device = norm.reshape(()).to(device=g.device, dtype=opmath_dtype(g.dtype))
        g.run(
            g.lists["params"], g.lists["grads"], on_device, host_number(rho), *kept.of(g), adaptive,
            eta, eps, device_scalars([rho], opmath_dtype(g.dtype), g.device),
        )  # fmt: skip
    bump_versions([*args, *kept.mutated_lists()])
