"""Which parameters of a model are regularised, by the type of their module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ._support import check_number

_WEIGHTED = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def regularized_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of linear and convolution layers by name, without any that an embedding shares."""
    embedded = {
        id(p)
        for m in model.modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag))
        for p in m.parameters(recurse=False)
    }
    chosen: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, _WEIGHTED):
            own = {"weight": module.weight}
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            own = {n: p for n, p in module.named_parameters(recurse=False) if p.dim() == 2}
        else:
            continue
        for name, p in own.items():
            if p.requires_grad and id(p) not in embedded and id(p) not in seen:
                seen.add(id(p))
                chosen[f"{prefix}.{name}" if prefix else name] = p
    return chosen


def bregman_param_groups(
    model: nn.Module, reg: str = "l1", lam: float = 0.0, **options: Any
) -> list[dict[str, Any]]:
    """Sort a model's parameters by module type into a regularised and a plain group.

    Regularised: weights of linear, convolution, recurrent and attention layers. Plain
    (``reg="none"``): biases, parameters of normalisation layers, embeddings (and weights tied to
    them) and everything of other module types.

    Args:
        model: the model; frozen parameters are left out.
        reg: regulariser of the first group, "l1" or "none".
        lam: threshold of the first group, >= 0.
        options: for both groups, such as ``delta`` or ``lr``.

    Returns:
        Two groups (one if a group would be empty) for ``LinBreg`` or ``AdaBreg``.

    Raises:
        ValueError: ``lam`` is out of range or the model has no trainable parameter.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        >>> [(g["reg"], len(g["params"])) for g in bregman_param_groups(model, lam=0.1)]
        [('l1', 1), ('none', 3)]
    """
    check_number("lam", lam, 0.0)
    weights = regularized_weights(model)
    chosen = {id(p) for p in weights.values()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [
        {"params": list(weights.values()), "reg": reg, "lam": lam, **options},
        {"params": rest, "reg": "none", **options},
    ]
    filled = [g for g in groups if g["params"]]
    if not filled:
        raise ValueError("bregman_param_groups: the model has no trainable parameter")
    return filled
