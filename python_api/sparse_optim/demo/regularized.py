"""The optimizers with a regulariser as recipes have them: start, groups, control of sparsity."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .. import (
    AdaBreg,
    FeedbackLambda,
    LinBreg,
    ProxSGD,
    QuantileLambda,
    bregman_param_groups,
    sparse_init_,
)

REGULARIZERS = ("l1", "l1_pos", "l1_l2", "sparse_group", "nuclear")
GROUPED = ("l1_l2", "sparse_group")
KINDS = ("rows", "kernels", "filters", "blocks")
CONTROLS = ("quantile", "feedback")
DENSITY = 0.05  # at the start, where neither it nor a target is given
# Full steps from one change of lam to the next; with coarse steps every one. Set by hand on digits
# at 99 %, LinBreg, seed 0: ranks at every step churn and end 6 points lower than every 10 steps,
# feedback another 2 higher; with gain 1 it ends at 98.7 % instead of 99.0.
CONTROL_EVERY, FEEDBACK_GAIN = 10, 5.0  # of 100 changes; fewer want a larger gain

Control = QuantileLambda | FeedbackLambda


def start_sparse(model: nn.Module, o: dict[str, Any], seed: int) -> None:
    """Draw sparse weights that suit the regulariser; with a target, as sparse as that."""
    density, target = o["density"], o["target_sparsity"]
    if density is None:
        density = DENSITY if target is None else 1.0 - target
    groups = (o["groups"] or "auto") if o["reg"] in GROUPED else None
    sparse_init_(
        model, density, groups, gain=o["init_gain"], block=o["block"],
        nonnegative=o["reg"] == "l1_pos", generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def build(model: nn.Module, kind: str, o: dict[str, Any], backend: str) -> Optimizer:
    """Make "linbreg", "adabreg" or "proxsgd" with all options.

    Raises:
        ValueError: an option is out of range, or the regulariser does not fit a weight.
    """
    own = {"block": o["block"], "l1_ratio": o["l1_ratio"]} if o["reg"] in GROUPED else {}
    groups = bregman_param_groups(model, o["reg"], o["lam"], o["groups"], **own)
    shared = {k: o[k] for k in ("lr", "weight_decay", "delta", "coarse_steps") if k in o}
    if kind == "adabreg":
        return AdaBreg(groups, **shared, backend=backend)
    make = LinBreg if kind == "linbreg" else ProxSGD
    return make(groups, momentum=o["momentum"], **shared, backend=backend)


def build_control(optimizer: Optimizer, o: dict[str, Any]) -> Control | None:
    """What holds the target sparsity; None without one.

    Raises:
        ValueError: the controller asked for cannot control this optimizer.
    """
    target = o.get("target_sparsity")
    if target is None:
        return None
    assert isinstance(optimizer, LinBreg | AdaBreg | ProxSGD)
    every = 1 if o.get("coarse_steps") else CONTROL_EVERY
    if o["control"] == "quantile":
        return QuantileLambda(optimizer, target, every)
    return FeedbackLambda(optimizer, target, every, o["feedback_gain"])
