"""Restore and the SGD step in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._check import (
    ListArg,
    bump_versions,
    check_lists,
    check_scalar,
    check_scalar_tensor,
    grouped,
    opmath_dtype,
)
from .._group import checked_by_kernel
from ._backup import BackupArgs
from ._scalars import Scalar, check_hyper, device_scalars, host_number


def gates_for(
    op: str, skip: Tensor | None, inv_scale: Tensor | None
) -> list[tuple[str, Tensor | None]]:
    """Check the two device scalars that a base step reads."""
    gates = [("skip", skip), ("inv_scale", inv_scale)]
    for name, value in gates:
        if value is not None:
            check_scalar_tensor(op, name, value)
    return gates


@checked_by_kernel
def restore_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    backup: Sequence[Tensor] | Tensor,
    momentum_buffers: Sequence[Tensor] | None = None,
    masks: Sequence[Tensor] | None = None,
    *,
    ranks: Sequence[Tensor] | None = None,
    lr: Scalar,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
    first: bool = False,
    skip: Tensor | None = None,
    inv_scale: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Step from the unperturbed parameters with the gradients at the perturbed point, in one pass.

    With w the bits that ``restore_`` would copy back: ``g = grads + weight_decay w``,
    ``b = momentum b + (1 - dampening) g`` (at the first step ``b = g``), ``params = w - lr b``
    (nesterov: ``w - lr (g + momentum b)``).

    Args:
        params: tensors (mutated); float32, bfloat16, float16 or float64.
        grads: tensors like ``params``.
        backup: as for ``restore_``.
        momentum_buffers: tensors like ``params`` (mutated); None without momentum.
        masks: int32 bit masks; entries with bit 1 come from the backup, the others are in
            ``params``. None: all come from the backup.
        ranks: as for ``restore_``.
        lr: learning rate, >= 0; or a tensor with one element, read on the device.
        momentum: >= 0.
        dampening: of the gradient in the buffer.
        nesterov: step along ``g + momentum b``.
        weight_decay: added to the gradient, >= 0.
        maximize: ascend.
        first: the buffers hold nothing yet.
        skip: 0-dim tensor, read on the device; where it is not 0, parameters are restored and
            nothing is updated.
        inv_scale: 0-dim tensor that multiplies the gradients; read on the device.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: lists do not fit, a scalar is out of range, a tensor requires grad in grad
            mode, two are the same memory.
        BackendUnavailableError: the backend asked for is not there.

    Note:
        Elementwise in float32 (float64 for float64), one rounding on store; float32 results are
        bit-equal on every backend, and to ``torch.optim.SGD`` after ``restore_``.

    Source: the step of ``torch.optim.SGD``, fused with the restore of SAM (arXiv 2010.01412).

    Example:
        >>> w, saved, g = torch.ones(2), torch.tensor([0.0, 0.5]), torch.ones(2)
        >>> restore_sgd_([w], [g], [saved], lr=0.5)
        >>> w
        tensor([-0.5000,  0.0000])
    """
    op = "restore_sgd_"
    kept = BackupArgs(op, masks, backup, ranks, mutated=False, optional=False)
    args = [
        ListArg("params", params, mutated=True),
        ListArg("grads", grads, optional=False),
        ListArg("momentum_buffers", momentum_buffers, mutated=True),
        *kept.lists,
    ]
    whole = check_lists(op, args)
    kept.check(params)
    check_hyper(op, "lr", lr, 0.0)
    for name, value in (("momentum", momentum), ("weight_decay", weight_decay)):
        check_scalar(op, name, value, 0.0)
    check_scalar(op, "dampening", dampening, -float("inf"))
    if momentum != 0.0 and momentum_buffers is None:
        raise ValueError(f"{op}: momentum needs momentum_buffers")
    gates = gates_for(op, skip, inv_scale)
    for g in grouped(op, backend, args, ordered=False, whole=whole):
        on_device = [
            None if v is None else v.reshape(()).to(device=g.device, dtype=opmath_dtype(g.dtype))
            for _, v in gates
        ]
        lists = g.lists
        g.run(
            lists["params"], lists["grads"], lists["momentum_buffers"], *kept.of(g),
            host_number(lr), momentum, dampening, nesterov, weight_decay, maximize, first,
            *on_device, device_scalars([lr], opmath_dtype(g.dtype), g.device),
        )  # fmt: skip
    bump_versions(args)
