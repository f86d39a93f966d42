"""Bregman training at equal sparsity with dense training, pruning and moving masks.

All methods have the same epochs, batches and cosine schedule of the learning rate. Bregman runs
start sparse (``sparse_init_``) and are held at the target by a controller of lam; gradual magnitude
pruning starts dense, RigL with a random mask over the dense start, scaled as Bregman starts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .methods import Plan
from .study import Case, make_case

DATA = ("digits", "stdlib")
SPARSITIES = (0.9, 0.95, 0.99)
# Of both, tried on seed 0: feedback ends 2 points higher on digits at 99 %, at equal sparsity.
CONTROL = "feedback"
#: what is trained: 3,036 and 2,000 steps, so that m = 99 has 30 and 20 full ones
PLANS = {
    "digits": Plan("cnn", "CNN", 69, 32, ()),
    "stdlib": Plan("transformer", "transformer", 20, 8, (), {"width": 64, "depth": 2}),
}
WINDOW = 64  # characters that the transformer sees at once

_SCALED = {"sparse_start": "scaled"}  # else RigL learns nothing on digits at 99 %
# Learning rates and lam at the start: one short search by hand per method, on seed 0.
_METHODS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "digits": {
        "SGD": ("sgd", {"lr": 0.05}),
        "LinBreg": ("linbreg", {"lr": 0.1, "lam": 0.1}),
        "AdaBreg": ("adabreg", {"lr": 0.02, "lam": 0.1}),
        "LinBreg m=9": ("linbreg", {"lr": 0.05, "lam": 0.03, "coarse_steps": 9}),
        "LinBreg m=99": ("linbreg", {"lr": 0.05, "lam": 0.01, "coarse_steps": 99}),
        "SGD + GMP": ("sgd", {"lr": 0.05, "sparse_method": "gmp"}),
        "SGD + RigL": ("sgd", {"lr": 0.05, "sparse_method": "rigl", **_SCALED}),
    },
    "stdlib": {
        "AdamW": ("adamw", {"lr": 3e-3}),
        "LinBreg": ("linbreg", {"lr": 0.2, "lam": 0.01}),
        "AdaBreg": ("adabreg", {"lr": 3e-3, "lam": 0.01}),
        "LinBreg m=9": ("linbreg", {"lr": 0.2, "lam": 0.01, "coarse_steps": 9}),
        "LinBreg m=99": ("linbreg", {"lr": 0.2, "lam": 0.01, "coarse_steps": 99}),
        "AdaBreg m=9": ("adabreg", {"lr": 3e-3, "lam": 0.01, "coarse_steps": 9}),
        "AdamW + GMP": ("adamw", {"lr": 3e-3, "sparse_method": "gmp"}),
        "AdamW + RigL": ("adamw", {"lr": 0.01, "sparse_method": "rigl", **_SCALED}),
    },
}

# The table of m and lam: LinBreg without a controller, lam over two decades.
COARSE_STEPS = (0, 4, 9, 49, 99)
LAMS = {"digits": (0.01, 0.03, 0.1, 0.3, 1.0), "stdlib": (0.01, 0.03, 0.1, 0.3, 1.0)}
DENSITY = 0.05  # at the start of the runs without a controller

# lam of the curves, by hand on seed 0: a zero weight collects every (m + 1)-th gradient only
CURVES = {
    "digits": {"LinBreg": 0.3, "AdaBreg": 0.3, "LinBreg m=9": 0.03, "LinBreg m=99": 0.01},
    "stdlib": {"LinBreg": 0.3, "AdaBreg": 0.3, "LinBreg m=9": 0.03, "LinBreg m=99": 0.01},
}


def plan_of(data: str, epochs: int | None) -> Plan:
    """What is trained on the data, with its number of epochs or another one."""
    plan = PLANS[data]
    return plan if epochs is None else replace(plan, epochs=epochs)


def _case(data: str, method: str, own: dict[str, Any], sparsity: float | None = None) -> Case:
    optimizer, options = _METHODS[data][method]
    options = {**options, **own}
    return make_case(method, optimizer, options.pop("lr"), options, sparsity)


def method_cases(data: str, sparsities: Sequence[float], control: str = CONTROL) -> list[Case]:
    """Dense training, then every method at every sparsity."""
    dense, *others = _METHODS[data]
    cases = [_case(data, dense, {})]
    for sparsity in sparsities:
        for method in others:
            if _METHODS[data][method][0].endswith("breg"):
                own = {"target_sparsity": sparsity, "control": control}
            else:
                own = {"weight_sparsity": sparsity}
            cases.append(_case(data, method, own, sparsity))
    return cases


def sensitivity_cases(data: str) -> list[Case]:
    """LinBreg with every m and lam, at one learning rate."""
    return [
        _case(data, "LinBreg", {"coarse_steps": m, "lam": lam, "density": DENSITY})
        for m in COARSE_STEPS
        for lam in LAMS[data]
    ]


def curve_cases(data: str) -> list[Case]:
    """The runs that are followed step by step: lam is fixed, so that weights are born and die."""
    return [
        _case(data, method, {"lam": lam, "density": DENSITY})
        for method, lam in CURVES[data].items()
    ]
