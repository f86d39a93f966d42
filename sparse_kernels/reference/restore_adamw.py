"""restore_adamw_: the Adam(W) step from the unperturbed parameters, with the gradient at w + e."""

from __future__ import annotations

from torch import Tensor

from ._backup import unperturbed
from ._common import opmath_dtype, rounded, store, to_opmath
from .restore_sgd import direction, gate


def restore_adamw_ref(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masks: list[Tensor],
    backup: list[Tensor],
    ranks: list[Tensor],
    step_sizes: Tensor,
    bias2_sqrts: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    skip: Tensor | None,
    inv_scale: Tensor | None,
    device_shrink: Tensor | None = None,
) -> None:
    shrink = 1.0 - lr * weight_decay if device_shrink is None else device_shrink
    decay = rounded(weight_decay, opmath_dtype(params[0].dtype))
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        original = unperturbed(param, i, masks, backup, ranks)
        w, g = to_opmath(original), direction(grad, inv_scale, maximize)
        keep = gate(skip, w)
        if decay != 0.0 and decoupled:
            w = w * shrink
        elif decay != 0.0:
            g = g + decay * w
        a, u = to_opmath(exp_avgs[i]), to_opmath(exp_avg_sqs[i])
        a = a + (g - a) * (1.0 - beta1)
        u = u * beta2 + ((1.0 - beta2) * g) * g
        store(exp_avgs[i], a, keep)
        store(exp_avg_sqs[i], u, keep)
        # correctly rounded root: torch's own fp32 sqrt on the CPU is off by an ulp now and then
        root = u.double().sqrt().to(u.dtype)
        param.copy_(original)
        store(param, w - (step_sizes[i] * a) / (root / bias2_sqrts[i] + eps), keep)
