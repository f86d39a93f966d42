"""grad_norm: global 2-norm of a list, dense, masked, or weighted by the parameters (ASAM)."""

from __future__ import annotations

from torch import Tensor

from ._common import chunk_sums, keep_bits, opmath_dtype, sequential_sum, to_opmath


def grad_norm_ref(
    grads: list[Tensor], masks: list[Tensor], weights: list[Tensor], eta: float, squared: bool
) -> Tensor:
    partials = []
    for i, grad in enumerate(grads):
        x = to_opmath(grad)
        if weights:
            x = (to_opmath(weights[i]).abs() + eta) * x
        x = x * x
        if masks:
            x = x.where(keep_bits(masks[i], x.numel()), x.new_zeros(()))
        partials.append(chunk_sums(x))
    total = sequential_sum(partials, grads[0].device)
    return total if squared else total.sqrt().to(opmath_dtype(grads[0].dtype))
