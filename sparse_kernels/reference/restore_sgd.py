"""restore_sgd_: the SGD step from the unperturbed parameters, with the gradient at w + e.

Bit for bit the step of ``torch.optim.SGD``, which multiplies and adds in one rounding
(``torch.add(x, y, alpha=a)`` is fma(a, y, x)): so do the compiled kernels, by an explicit fma for
every ``torch.add`` below.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._backup import unperturbed
from ._common import opmath_dtype, rounded, store, to_opmath


def gate(skip: Tensor | None, like: Tensor) -> Tensor:
    """Bool tensor of the shape of ``like``: True where the update happens."""
    if skip is None:
        return torch.ones_like(like, dtype=torch.bool)
    return (skip == 0).expand(like.shape)


def direction(grad: Tensor, inv_scale: Tensor | None, maximize: bool) -> Tensor:
    g = to_opmath(grad)
    if inv_scale is not None:
        g = g * inv_scale
    return -g if maximize else g


def restore_sgd_ref(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    masks: list[Tensor],
    backup: list[Tensor],
    ranks: list[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    first: bool,
    skip: Tensor | None,
    inv_scale: Tensor | None,
    device_lr: Tensor | None = None,
) -> None:
    if device_lr is not None:
        lr = float(device_lr)
    decay = rounded(weight_decay, opmath_dtype(params[0].dtype))
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        original = unperturbed(param, i, masks, backup, ranks)
        w, g = to_opmath(original), direction(grad, inv_scale, maximize)
        keep = gate(skip, w)
        if decay != 0.0:
            g = torch.add(g, w, alpha=weight_decay)
        if momentum_buffers:
            buffer = g
            if not first:
                buffer = to_opmath(momentum_buffers[i]) * momentum
                buffer = torch.add(buffer, g, alpha=1.0 - dampening)
            store(momentum_buffers[i], buffer, keep)
            g = torch.add(g, buffer, alpha=momentum) if nesterov else buffer
        param.copy_(original)
        store(param, torch.add(w, g, alpha=-lr), keep)
