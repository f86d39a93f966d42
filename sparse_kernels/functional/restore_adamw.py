"""Restore and the Adam or AdamW step in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._check import (
    ListArg,
    bump_versions,
    check_lists,
    check_scalar,
    grouped,
    opmath_dtype,
)
from .._group import checked_by_kernel
from ._backup import BackupArgs
from ._scalars import Scalar, check_hyper, device_scalars, host_number, wide
from .restore_sgd import gates_for


@checked_by_kernel
def restore_adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    backup: Sequence[Tensor] | Tensor,
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step_sizes: Tensor,
    bias2_sqrts: Tensor,
    masks: Sequence[Tensor] | None = None,
    *,
    ranks: Sequence[Tensor] | None = None,
    lr: Scalar,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    maximize: bool = False,
    skip: Tensor | None = None,
    inv_scale: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Step from the unperturbed parameters with the gradients at the perturbed point, in one pass.

    With w the bits that ``restore_`` would copy back: ``a += (1 - beta1)(g - a)``,
    ``u = beta2 u + (1 - beta2) g^2``, ``params = w - step_size a / (sqrt(u) / bias2_sqrt + eps)``;
    w is first scaled by ``1 - lr weight_decay`` (decoupled), or ``g += weight_decay w``.

    Args:
        params: tensors (mutated); float32, bfloat16, float16 or float64.
        grads: tensors like ``params``.
        backup: as for ``restore_``.
        exp_avgs, exp_avg_sqs: first and second moments, tensors like ``params`` (mutated).
        step_sizes: [tensors], ``lr / (1 - beta1^t)`` for each tensor's step t; read on the device.
        bias2_sqrts: [tensors], ``sqrt(1 - beta2^t)``; read on the device.
        masks: int32 bit masks; entries with bit 1 come from the backup, the others are in
            ``params``. None: all come from the backup.
        ranks: as for ``restore_``.
        lr: learning rate of the weight decay, >= 0; or a tensor with one element, read on the
            device.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0.
        decoupled: AdamW; False is Adam, whose decay is added to the gradient.
        maximize: ascend.
        skip, inv_scale: as for ``restore_sgd_``.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: lists do not fit, a scalar is out of range, a tensor requires grad in grad
            mode, two are the same memory.
        BackendUnavailableError: the backend asked for is not there.

    Note:
        Elementwise in float32 (float64 for float64), one rounding on store; float32 results are
        bit-equal on every backend. ``torch.optim.AdamW`` rounds differently in the last place.

    Source: AdamW, arXiv 1711.05101, fused with the restore of SAM (arXiv 2010.01412).

    Example:
        >>> w, saved, g = torch.ones(2), torch.zeros(2), torch.ones(2)
        >>> a, u, one = torch.zeros(2), torch.zeros(2), torch.ones(1)
        >>> sizes, roots = 0.1 / (1 - 0.9 * one), (1 - 0.999 * one).sqrt()
        >>> restore_adamw_([w], [g], [saved], [a], [u], sizes, roots, lr=0.1)
        >>> w
        tensor([-0.1000, -0.1000])
    """
    op = "restore_adamw_"
    kept = BackupArgs(op, masks, backup, ranks, mutated=False, optional=False)
    args = [
        ListArg("params", params, mutated=True),
        ListArg("grads", grads, optional=False),
        ListArg("exp_avgs", exp_avgs, mutated=True, optional=False),
        ListArg("exp_avg_sqs", exp_avg_sqs, mutated=True, optional=False),
        *kept.lists,
    ]
    whole = check_lists(op, args)
    kept.check(params)
    check_hyper(op, "lr", lr, 0.0)
    for name, value in (("eps", eps), ("weight_decay", weight_decay)):
        check_scalar(op, name, value, 0.0)
    for i, beta in enumerate(betas):
        check_scalar(op, f"betas[{i}]", beta, 0.0)
        if beta >= 1.0:
            raise ValueError(f"{op}: betas[{i}] must be < 1, got {beta}")
    for name, table in (("step_sizes", step_sizes), ("bias2_sqrts", bias2_sqrts)):
        if not isinstance(table, Tensor) or table.shape != (len(params),):
            raise ValueError(f"{op}: {name} must be a tensor [{len(params)}], one per parameter")
    gates = gates_for(op, skip, inv_scale)
    for g in grouped(op, backend, args, ordered=False, whole=whole):
        dtype = opmath_dtype(g.dtype)
        tables = [
            (t if g is whole else t[g.indices]).to(device=g.device, dtype=dtype).contiguous()
            for t in (step_sizes, bias2_sqrts)
        ]
        on_device = [
            None if v is None else v.reshape(()).to(device=g.device, dtype=dtype) for _, v in gates
        ]
        shrink = None  # the only thing made of lr
        if isinstance(lr, Tensor) and decoupled and weight_decay != 0.0:
            shrink = device_scalars([1.0 - wide(lr, g.device) * weight_decay], dtype, g.device)
        lists = g.lists
        g.run(
            lists["params"], lists["grads"], lists["exp_avgs"], lists["exp_avg_sqs"], *kept.of(g),
            *tables, host_number(lr), *betas, eps, weight_decay, decoupled, maximize, *on_device,
            shrink,
        )  # fmt: skip
    bump_versions(args)
