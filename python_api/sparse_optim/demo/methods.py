"""Optimizers by name, the options each has, and the demo's recipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparse_kernels import resolved_name

from .. import (
    SAM,
    SSAM,
    DynamicMask,
    FisherMask,
    ImplicitMask,
    LinBreg,
    MagnitudeMask,
    MaskPolicy,
    MeZO,
    Pattern,
    RandomMask,
    SmallMagnitudeMask,
)
from . import regularized
from ._support import UserError
from .eager_mezo import EagerMeZO
from .zo_controls import SIGNS

FISHER_SAMPLES = 128
MASKS = ("fisher", "dynamic", "random", "magnitude", "small")
WEIGHT_ONLY_MASKS = ("random", "magnitude", "small")  # those that take no gradient
FORMS = ("explicit", "implicit")
_OP_OF = {  # the operation that decides which backend a run is said to use
    "sgd": "linbreg_step_",
    "sam": "masked_perturb_",
    "ssam": "masked_perturb_",
    "zosam": "zo_combine_",
    "mezo": "zo_combine_",
    "linbreg": "linbreg_step_",
    "adabreg": "adabreg_step_",
    "proxsgd": "linbreg_step_",
}
_EAGER = ("adamw", "mezo-eager")  # plain torch, for comparison: they have no backend

# options of each optimizer with the defaults of `sparse-optim train`
_SPARSE = {
    "sparse_method": "none", "weight_sparsity": 0.9, "weight_distribution": None,
    "sparse_start": "masked",
}  # fmt: skip
_SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, **_SPARSE}
_SAM = {**_SGD, "rho": 0.05, "adaptive": False, "interval": 1}
_DIRECTIONS = {
    "smoothing": None, "num_directions": 1, "distribution": "normal", "restore": "exact",
}  # fmt: skip
_REGULARIZER = {
    "reg": "l1", "groups": None, "block": None, "l1_ratio": 0.5, "weight_decay": 0.0,
    "target_sparsity": None, "feedback_gain": regularized.FEEDBACK_GAIN,
}  # fmt: skip
_BREGMAN = {
    **_REGULARIZER, "control": "quantile", "delta": 1.0, "coarse_steps": 0, "density": None,
    "init_gain": 1.0,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": _SGD,
    "sam": _SAM,
    "ssam": {
        **_SAM, "sparsity": 0.5, "mask": "fisher", "pattern": "unstructured", "axis": None,
        "form": "explicit", "norm": "dense",
    },
    "zosam": {**_SGD, "rho": 0.05, "interval": 1, "sign": "uphill", **_DIRECTIONS},
    "mezo": {
        "lr": 1e-3, "weight_decay": 0.0, **_DIRECTIONS, "smoothing": 1e-3, "sparsity": 0.5,
        "mask": None, "forward_difference": False,
    },
    "mezo-eager": {"lr": 1e-3, "weight_decay": 0.0, "smoothing": 1e-3},
    "adamw": {"lr": 1e-3, "weight_decay": 0.01, **_SPARSE},
    "linbreg": {"lr": 0.1, "momentum": 0.9, "lam": 0.1, **_BREGMAN},
    "adabreg": {"lr": 2e-3, "lam": 0.02, **_BREGMAN},
    "proxsgd": {
        "lr": 0.1, "momentum": 0.9, "lam": 1e-3, **_REGULARIZER, "control": "feedback",
    },
}  # fmt: skip
OPTIMIZERS = tuple(OPTIONS)


@dataclass(frozen=True)
class Recipe:
    """An optimizer and its options; what is not given has the default of ``OPTIONS``."""

    label: str
    optimizer: str
    options: dict[str, Any] = field(default_factory=dict)

    def option(self, name: str) -> Any:
        """Value of one option."""
        return self.options.get(name, OPTIONS[self.optimizer][name])

    def all_options(self) -> dict[str, Any]:
        """Every option of the optimizer with its value."""
        return {**OPTIONS[self.optimizer], **self.options}


@dataclass(frozen=True)
class Plan:
    """What the demo does with one model."""

    model: str
    title: str
    epochs: int
    batch_size: int
    recipes: tuple[Recipe, ...]
    sizes: dict[str, int] = field(default_factory=dict)  # width and depth, if not the model's own


def _recipes(lr: float, bregman: dict[str, dict[str, Any]]) -> tuple[Recipe, ...]:
    return (
        Recipe("SGD", "sgd", {"lr": lr}),
        Recipe("SAM", "sam", {"lr": lr}),
        Recipe("SSAM 50 %", "ssam", {"lr": lr, "sparsity": 0.5}),
        Recipe("ZO-SAM", "zosam", {"lr": lr}),
        Recipe("LinBreg", "linbreg", bregman["linbreg"]),
        Recipe("AdaBreg", "adabreg", bregman["adabreg"]),
        Recipe("LinBreg m=4", "linbreg", bregman["multilevel"]),
    )


# Tuned by hand on seeds 0 to 2, for few epochs. The multilevel runs get a smaller lam because a
# zero weight collects only every fifth gradient.
PLANS: tuple[Plan, ...] = (
    Plan(
        "cnn", "CNN", 12, 32,
        _recipes(0.02, {
            "linbreg": {"lr": 0.05, "lam": 0.6, "density": 0.1},
            "adabreg": {"lr": 0.01, "lam": 0.6, "density": 0.1},
            "multilevel": {"lr": 0.03, "lam": 0.1, "density": 0.1, "coarse_steps": 4},
        }),
    ),
    Plan(
        "mlp", "MLP", 10, 64,
        _recipes(0.02, {
            "linbreg": {"lr": 0.02, "lam": 0.04, "density": 0.02},
            "adabreg": {"lr": 0.01, "lam": 0.3, "density": 0.02},
            "multilevel": {"lr": 0.03, "lam": 0.015, "density": 0.05, "coarse_steps": 4},
        }),
    ),
)  # fmt: skip


def backend_in_use(optimizer: str, backend: str, device: str) -> str:
    """Name of the backend an optimizer runs on.

    Raises:
        BackendUnavailableError: it cannot run here.
        UserError: a backend is asked for, and the optimizer has none.
    """
    if optimizer in _EAGER:
        if backend not in ("auto", "reference"):
            raise UserError(f"--optimizer {optimizer} is plain torch: it has no backend {backend}")
        return "torch"
    return resolved_name(_OP_OF[optimizer], backend, device, torch.float32)


def prepare_model(model: nn.Module, recipe: Recipe, seed: int) -> None:
    """Start a Bregman run sparse; leave the model of any other as it is."""
    if "density" not in recipe.all_options():
        return
    home = next(model.parameters()).device
    # drawn on the CPU, so that the start does not depend on the device
    model.cpu()
    regularized.start_sparse(model, recipe.all_options(), seed)
    model.to(home)


def build_optimizer(model: nn.Module, recipe: Recipe, backend: str, seed: int) -> Optimizer:
    """Make the optimizer of a recipe.

    "sgd" is ``torch.optim.SGD`` on the reference backend and ``LinBreg(reg="none")``, the same
    update in one pass, on the others.

    Args:
        model: its parameters are optimised.
        recipe: which optimizer, with which options.
        backend: as the optimizers take it.
        seed: of random directions.

    Raises:
        ValueError: an option is out of range.
        BackendUnavailableError: the backend cannot run here.
    """
    kind, o = recipe.optimizer, recipe.all_options()
    device = next(model.parameters()).device.type
    in_use = backend_in_use(kind, backend, device)
    params = model.parameters()
    sgd: dict[str, Any] = {k: o[k] for k in ("lr", "momentum", "weight_decay") if k in o}
    if kind == "sgd":
        if in_use == "reference":
            return torch.optim.SGD(params, **sgd)
        return LinBreg(params, **sgd, backend=backend)
    if kind == "adamw":
        return torch.optim.AdamW(params, lr=o["lr"], weight_decay=o["weight_decay"])
    if kind == "mezo-eager":
        return EagerMeZO(params, **o, seed=seed)
    if "reg" in o:
        return regularized.build(model, kind, o, backend)
    common: dict[str, Any] = {"bn_modules": model, "backend": backend}
    if kind == "mezo":
        return _mezo(model, o, seed, common)
    common.update(sgd, rho=o["rho"], interval=o["interval"])
    base = torch.optim.SGD
    if kind == "zosam":
        directions = {k: o[k] for k in _DIRECTIONS}
        return SIGNS[o["sign"]](params, base, seed=seed, **directions, **common)
    common["adaptive"] = o["adaptive"]
    if kind == "sam" or o["form"] == "implicit":
        return SAM(params, base, **common)
    form = {"axis": o["axis"] or "in", **{k: o[k] for k in ("sparsity", "pattern", "norm")}}
    return SSAM(params, base, mask=make_policy(o["mask"]), seed=seed, **form, **common)


def _mezo(model: nn.Module, o: dict[str, Any], seed: int, common: dict[str, Any]) -> MeZO:
    """With a mask every tensor has its share of moving weights, chosen once from those it has."""
    own = {k: v for k, v in o.items() if k not in ("sparsity", "mask")}
    mask = None
    if o["mask"] is not None:
        policy, pattern = make_policy(o["mask"]), Pattern(per_layer=True)
        mask = policy.compute(
            list(model.parameters()), o["sparsity"], seed=seed, pattern=pattern,
            names=[name for name, _ in model.named_parameters()],
        )  # fmt: skip
    return MeZO(model.parameters(), **own, seed=seed, weight_mask=mask, **common)


def make_policy(name: str) -> MaskPolicy:
    """A policy of ``MASKS``; the times of a dynamic one run from 0 to 1 over the training."""
    if name == "fisher":
        return FisherMask(num_samples=FISHER_SAMPLES)
    if name == "dynamic":
        return DynamicMask(end=1.0)
    if name == "small":
        return SmallMagnitudeMask()
    return RandomMask() if name == "random" else MagnitudeMask()


def build_implicit(
    model: nn.Module, recipe: Recipe, backend: str, seed: int
) -> ImplicitMask | None:
    """The masks of the implicit form; None for a recipe of another form.

    Raises:
        ValueError: an option is out of range.
    """
    o = recipe.all_options()
    if o.get("form") != "implicit":
        return None
    return ImplicitMask(
        model, make_policy(o["mask"]), o["sparsity"], o["pattern"], o["axis"] or "out", seed=seed,
        backend=backend,
    )  # fmt: skip
