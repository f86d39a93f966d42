"""masked_perturb_: the ascent step of (sparse, adaptive) sharpness-aware minimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ._backup import save
from ._common import keep_bits, store, to_opmath


def masked_perturb_ref(
    params: list[Tensor],
    grads: list[Tensor],
    norm: Tensor,
    rho: float,
    masks: list[Tensor],
    backup: list[Tensor],
    ranks: list[Tensor],
    adaptive: bool,
    eta: float,
    eps: float,
    device_rho: Tensor | None = None,
) -> None:
    # rho is rounded to the math dtype before the division, as in the compiled kernels
    radius = torch.full_like(norm, rho) if device_rho is None else device_rho.reshape(norm.shape)
    scale = radius / (norm + eps)
    # a norm that is not finite leaves the parameters as they are; rho / inf alone would be finite
    finite = norm.isfinite() & scale.isfinite()
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        save(param, i, masks, backup, ranks)
        w, g = to_opmath(param), to_opmath(grad)
        if adaptive:
            t = w.abs() + eta
            g = (t * t) * g
        keep = finite.expand(w.shape)
        if masks:
            keep = keep & keep_bits(masks[i], w.numel())
        store(param, w + scale * g, keep)
