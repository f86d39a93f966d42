"""Which parameters of a model are regularised, by the type of their module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ._regularizers import GROUPED
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


def usual_groups(p: Tensor) -> str:
    """Groups of a weight by its dimensions: rows, 2-D kernels, else filters."""
    return {2: "rows", 4: "kernels"}.get(p.dim(), "filters")


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
            own = {n: p for n, p in module.named_parameters(recurse=False) if n == "weight"}
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
    model: nn.Module,
    reg: str = "l1",
    lam: float = 0.0,
    groups: str | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Sort a model's parameters by module type into regularised groups and a plain one.

    Regularised: weights of linear, convolution, recurrent and attention layers. Plain
    (``reg="none"``): biases, parameters of normalisation layers, embeddings (and weights tied to
    them) and everything of other module types.

    Args:
        model: the model; frozen parameters are left out.
        reg: regulariser of the first groups, a name as in ``LinBreg``.
        lam: their threshold, >= 0.
        groups: of "l1_l2" and "sparse_group", as in ``LinBreg``; None: the 2-D kernels of 2-D
            convolutions, the rows of 2-D weights and the filters of all others, in groups of their
            own.
        options: for all groups, such as ``delta`` or ``lr``; ``block`` and ``l1_ratio`` for the
            regularised ones.

    Returns:
        One or more groups (those that would be empty are left out) for ``LinBreg``, ``AdaBreg`` or
        ``ProxSGD``.

    Raises:
        ValueError: ``lam`` is out of range or the model has no trainable parameter.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        >>> [(g["reg"], len(g["params"])) for g in bregman_param_groups(model, lam=0.1)]
        [('l1', 1), ('none', 3)]
    """
    check_number("lam", lam, 0.0)
    weights = list(regularized_weights(model).values())
    chosen = {id(p) for p in weights}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    own = {name: options.pop(name) for name in ("block", "l1_ratio") if name in options}
    by_kind: dict[str | None, list[Tensor]] = {groups: weights}
    if reg in GROUPED and groups is None:
        by_kind = {}
        for p in weights:
            by_kind.setdefault(usual_groups(p), []).append(p)
    filled = [
        {"params": params, "reg": reg, "lam": lam, **own, **options, "groups": kind}
        for kind, params in by_kind.items()
        if params
    ]
    if not any(g["groups"] for g in filled):
        for g in filled:
            del g["groups"]
    if rest:
        filled.append({"params": rest, "reg": "none", **options})
    if not filled:
        raise ValueError("bregman_param_groups: the model has no trainable parameter")
    return filled
