"""Linearised Bregman steps: dual step, soft-threshold readout and live count in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
from ._bias_corrections import MOST_ROWS, corrections_at, table_rows, tables
from ._scalars import Scalar, check_hyper, device_scalars, host_number, wide

MOMENTUM_FORMS = ("sgd", "ema")


def _check_hyper(
    op: str,
    duals: Sequence[Tensor] | None,
    lr: Scalar,
    lam: Scalar,
    delta: float,
    weight_decay: float,
    readout: bool,
    dual_leak: float,
    fine_scale: float,
) -> None:
    check_hyper(op, "lr", lr, 0.0)
    check_hyper(op, "lam", lam, 0.0)
    check_scalar(op, "delta", delta, 0.0, strict=True)
    check_scalar(op, "weight_decay", weight_decay, 0.0)
    check_scalar(op, "dual_leak", dual_leak, 0.0)
    check_scalar(op, "fine_scale", fine_scale, 1.0)
    if duals is None and (not readout or dual_leak != 0.0 or fine_scale != 1.0):
        raise ValueError(f"{op}: readout=False, dual_leak and fine_scale need duals")
    if not readout and fine_scale != 1.0:
        raise ValueError(f"{op}: fine_scale needs the readout, its cap is lam")


def _check_beta(op: str, name: str, beta: float) -> None:
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"{op}: {name} must be in [0, 1), got {beta}")


def _scatter_live(parts: list[tuple[list[int], Tensor]], count: int) -> Tensor:
    """Live counts of the groups, back in list order, on the first group's device."""
    if len(parts) == 1:
        return parts[0][1]
    device = parts[0][1].device if parts else torch.device("cpu")
    live = torch.zeros(count, dtype=torch.int64, device=device)
    for indices, part in parts:
        live[indices] = part.to(device)
    return live


@checked_by_kernel
def linbreg_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    duals: Sequence[Tensor] | None,
    lr: Scalar,
    lam: Scalar,
    delta: float = 1.0,
    momentum: float = 0.0,
    momentum_buffers: Sequence[Tensor] | None = None,
    *,
    momentum_form: str = "sgd",
    nesterov: bool = False,
    weight_decay: float = 0.0,
    active: Sequence[Tensor] | None = None,
    maximize: bool = False,
    nonnegative: bool = False,
    readout: bool = True,
    dual_leak: float = 0.0,
    fine_scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Take one linearised Bregman step and return the live counts.

    ``d = g``, or with momentum "sgd": ``b = beta b + g; d = b`` (nesterov ``d = g + beta b``),
    "ema": ``b = beta b + (1 - beta) lr g`` and the dual moves by b itself; then

    ``dual = dual - lr * d - lr * weight_decay * param``, ``param = delta * shrink(dual, lam)``,
    ``shrink(v, lam) = v - clamp(v, -lam, lam)``.

    Args:
        params: tensors (mutated); float32, bfloat16, float16 or float64. With duals they are
            written only: their value is ``delta * shrink(dual, lam)``. With ``readout=False`` they
            are read only.
        grads: tensors like ``params``.
        duals: tensors (mutated) shaped like ``params``, float32 (float64 for float64). None: each
            parameter is its own dual, ``delta`` scales the step, and ``shrink(param - ..., lam)``
            is a proximal gradient step: with lam = lr * weight proximal SGD, with lam = 0 plain
            (momentum) gradient descent.
        lr: step size tau, >= 0; or a tensor with one element, read on the device, for CUDA graphs
            and schedules: the bits are those of the same number.
        lam: threshold of the dual, >= 0; or a tensor likewise.
        delta: elastic parameter, > 0.
        momentum: beta in [0, 1); needs ``momentum_buffers`` if not 0.
        momentum_buffers: tensors (mutated) like ``duals``; start at 0.
        momentum_form: "sgd" (lr outside the buffer) or "ema" (inside).
        nesterov: only with the "sgd" form.
        weight_decay: decoupled decay mu in the dual, >= 0.
        active: int32 bit masks; entries with bit 0 keep every bit of param, dual and buffer,
            whatever their gradient, and are not counted.
        maximize: ascend instead.
        nonnegative: of the l1 norm on params >= 0: ``shrink(v, lam) = v - clamp(v, -inf, lam)``,
            that is max(v - lam, 0).
        readout: False moves the dual and leaves ``params`` as they are, for regularisers whose
            readout is another kernel; needs duals. ``lam`` and ``nonnegative`` have no part in it.
        dual_leak: gamma >= 0; inactive entries (param 0 before the step, that is |dual| <= lam)
            lose ``gamma * dual`` of the dual before the step, too. Needs duals.
        fine_scale: sigma >= 1; factor of ``lr * d`` of inactive entries. If not 1 their dual is
            then capped at ``lam + |lr * d|`` on either side (below only where there is a bound).
            Needs duals and their readout.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        int64 tensor [len(params)]: entries with ``|dual| > lam`` (of the active ones) per tensor;
        ``dual > lam`` where nonnegative; 0 without readout.

    Raises:
        ValueError: lists do not fit, a hyper-parameter is out of range, a tensor requires grad.
        BackendUnavailableError: the backend asked for is not there.

    Note:
        Math in float32 (float64 for float64), one rounding on store; float32 results are bit-equal
        on every backend. NaN propagates. |dual| == lam gives +0.0, and so does a dual of -inf where
        nonnegative.

    Source: Bungert, Roith, Tenbrinck, Burger, arXiv 2105.04319, algorithm 1 (LinBreg); without
        duals Combettes, Wajs, doi 10.1137/050626090. ``dual_leak`` and ``fine_scale`` are ours.

    Example:
        >>> w, v, g = torch.zeros(2), torch.zeros(2), torch.tensor([1.0, -8.0])
        >>> linbreg_step_([w], [g], [v], lr=0.25, lam=0.5)
        tensor([1])
        >>> w, v
        (tensor([0.0000, 1.5000]), tensor([-0.2500,  2.0000]))
    """
    op = "linbreg_step_"
    args = [
        ListArg("params", params, mutated=readout),
        ListArg("grads", grads, optional=False),
        ListArg("duals", duals, mutated=True, kind="opmath"),
        ListArg("momentum_buffers", momentum_buffers, mutated=True, kind="opmath"),
        ListArg("active", active, kind="words"),
    ]
    whole = check_lists(op, args)
    _check_hyper(op, duals, lr, lam, delta, weight_decay, readout, dual_leak, fine_scale)
    _check_beta(op, "momentum", momentum)
    if momentum_form not in MOMENTUM_FORMS:
        raise ValueError(f"{op}: momentum_form must be 'sgd' or 'ema', got {momentum_form!r}")
    if momentum != 0.0 and momentum_buffers is None:
        raise ValueError(f"{op}: momentum {momentum} needs momentum_buffers")
    if nesterov and (momentum_form != "sgd" or momentum == 0.0):
        raise ValueError(f"{op}: nesterov needs momentum and the 'sgd' form")
    parts = []
    for g in grouped(op, backend, args, ordered=False, whole=whole):
        lists = g.lists
        scalars = None
        if isinstance(lr, Tensor) or isinstance(lam, Tensor):
            tau, scale = wide(lr, g.device), 1.0 if duals is not None else delta
            ema = momentum_form == "ema" and momentum_buffers is not None
            step, gain = (scale, (1.0 - momentum) * tau) if ema else (tau * scale, 1.0)
            rows = (lam, tau * weight_decay * scale, step, gain)
            scalars = device_scalars(rows, opmath_dtype(g.dtype), g.device)
        live = g.run(
            lists["params"], lists["grads"], lists["duals"], lists["momentum_buffers"],
            lists["active"], host_number(lr), host_number(lam), delta, momentum, momentum_form,
            nesterov, weight_decay, maximize, nonnegative, readout, dual_leak, fine_scale, scalars,
        )  # fmt: skip
        parts.append((g.indices, live))
    bump_versions(args)
    return _scatter_live(parts, len(params))


@checked_by_kernel
def adabreg_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    duals: Sequence[Tensor] | None,
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    lr: Scalar,
    lam: Scalar,
    delta: float = 1.0,
    *,
    step: int | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    counts: Sequence[Tensor] | None = None,
    active: Sequence[Tensor] | None = None,
    maximize: bool = False,
    nonnegative: bool = False,
    readout: bool = True,
    dual_leak: float = 0.0,
    fine_scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Take one AdaBreg step (Adam in the dual) and return the live counts.

    ``a = a + (1 - beta1)(g - a)``, ``u = beta2 u + (1 - beta2) g^2``,
    ``dual = dual - lr * weight_decay * param
    - lr / (1 - beta1^n) * a / (sqrt(u) / sqrt(1 - beta2^n) + eps)``,
    ``param = delta * shrink(dual, lam)``.

    Args:
        params, grads, duals, lr, lam, delta, weight_decay, active, maximize, nonnegative, readout,
            dual_leak, backend: as in ``linbreg_step_``.
        exp_avgs: first moments a (mutated), float32 (float64 for float64); start at 0.
        exp_avg_sqs: second moments u (mutated), likewise.
        step: number n of this update, >= 1; with ``counts`` an upper bound of every new count. Or
            a tensor with one element, read on the device in a table of the corrections: betas up
            to about 0.99999 then.
        betas: (beta1, beta2), each in [0, 1).
        eps: added outside the root, after the bias correction, >= 0.
        counts: int32 tensors (mutated) shaped like ``params``: updates each coordinate has had;
            each written entry is counted up and n is its own count ("coordinate" time).
        fine_scale: as in ``linbreg_step_``, of the whole step but for the decay.

    Returns:
        int64 tensor [len(params)]: live counts as of ``linbreg_step_``.

    Raises:
        ValueError: lists do not fit, a hyper-parameter is out of range, a tensor requires grad.
        BackendUnavailableError: the backend asked for is not there.

    Note:
        As ``linbreg_step_``. The square root is correctly rounded on every backend; results equal
        Adam's (lam = 0, delta = 1) to rounding.

    Source: arXiv 2105.04319, algorithm 3 (AdaBreg), with both bias corrections of Adam.

    Example:
        >>> w, v, g = torch.zeros(2), torch.zeros(2), torch.tensor([1.0, -8.0])
        >>> a, u = torch.zeros(2), torch.zeros(2)
        >>> adabreg_step_([w], [g], [v], [a], [u], lr=0.25, lam=0.125, step=1)
        tensor([2])
        >>> w
        tensor([-0.1250,  0.1250])
    """
    op = "adabreg_step_"
    args = [
        ListArg("params", params, mutated=readout),
        ListArg("grads", grads, optional=False),
        ListArg("duals", duals, mutated=True, kind="opmath"),
        ListArg("exp_avgs", exp_avgs, mutated=True, kind="opmath", optional=False),
        ListArg("exp_avg_sqs", exp_avg_sqs, mutated=True, kind="opmath", optional=False),
        ListArg("counts", counts, mutated=True, kind=torch.int32),
        ListArg("active", active, kind="words"),
    ]
    whole = check_lists(op, args)
    _check_hyper(op, duals, lr, lam, delta, weight_decay, readout, dual_leak, fine_scale)
    check_scalar(op, "eps", eps, 0.0)
    for i, beta in enumerate(betas):
        _check_beta(op, f"betas[{i}]", beta)
    if isinstance(step, Tensor):
        check_scalar_tensor(op, "step", step)
        if table_rows(None, betas) > MOST_ROWS:
            raise ValueError(f"{op}: betas {betas} are too close to 1 for a step that is a tensor")
    elif step < 1:
        raise ValueError(f"{op}: step must be >= 1, got {step}")
    known = None if isinstance(step, Tensor) else step
    changing = any(isinstance(v, Tensor) for v in (lr, lam, step))
    parts = []
    for g in grouped(op, backend, args, ordered=False, whole=whole):
        step_sizes = bias2_sqrts = None
        dtype, scale = opmath_dtype(g.dtype), 1.0 if duals is not None else delta
        if counts is not None:
            bias1, bias2 = tables(known, betas, g.device)
            # a tensor: a number over a tensor would be multiplied by its rounded reciprocal
            step_sizes = (wide(lr, g.device) * scale / bias1).to(dtype)
            bias2_sqrts = bias2.to(dtype)
        scalars = None
        if changing:
            tau = wide(lr, g.device)
            now: tuple[Scalar, Scalar] = (1.0, 1.0)  # with counts the tables are read
            if counts is None:
                first, second = corrections_at(step, betas, g.device)
                now = (tau * scale / first, second)
            scalars = device_scalars((lam, tau * weight_decay * scale, *now), dtype, g.device)
        lists = g.lists
        live = g.run(
            lists["params"], lists["grads"], lists["duals"], lists["exp_avgs"],
            lists["exp_avg_sqs"], lists["counts"], lists["active"], host_number(lr),
            host_number(lam), delta, *betas, eps, weight_decay, maximize, nonnegative, readout,
            dual_leak, fine_scale, known or 1, step_sizes, bias2_sqrts, scalars,
        )  # fmt: skip
        parts.append((g.indices, live))
    bump_versions(args)
    return _scatter_live(parts, len(params))
