"""Which options go together, and the demo's recipes with other choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .. import Pattern
from ._support import UserError
from .methods import OPTIONS, WEIGHT_ONLY_MASKS, Plan, Recipe
from .regularized import GROUPED
from .sparse import DYNAMIC, MOVING

CHOICES = (
    "sparsity", "mask", "pattern", "axis", "form", "norm", "sparse_method", "weight_sparsity",
    "weight_distribution",
)  # fmt: skip

Test = Callable[[dict[str, Any]], bool]


def _grouped(o: dict[str, Any]) -> bool:
    return bool(Pattern(o.get("pattern", "unstructured")).m)


# option, whether the others allow it, why not
_NEEDS: tuple[tuple[str, Test, str], ...] = (
    ("axis", _grouped, "goes with n:m patterns such as --pattern 2:4"),
    (
        "sparsity",
        lambda o: not _grouped(o),
        "is no option of --pattern {pattern}, which says itself how many are perturbed",
    ),
    ("sparsity", lambda o: o["mask"] is not None, "needs --mask"),
    (
        "norm",
        lambda o: o["form"] == "explicit",
        "is no option of --form implicit, whose perturbation is dense",
    ),
    (
        "weight_sparsity",
        lambda o: o["sparse_method"] != "none",
        "needs --sparse-method",
    ),
    (
        "weight_distribution",
        lambda o: o["sparse_method"] in DYNAMIC,
        f"needs --sparse-method {', '.join(DYNAMIC)}; others choose over all layers together",
    ),
    (
        "weight_distribution",
        lambda o: o["weight_distribution"] != "global" or o["sparse_method"] == "gmp",
        "global needs --sparse-method gmp",
    ),
    (
        "sparse_start",
        lambda o: o["sparse_method"] in MOVING,
        f"needs --sparse-method {', '.join(MOVING)}",
    ),
    ("groups", lambda o: o["reg"] in GROUPED, f"needs --reg {' or '.join(GROUPED)}"),
    ("block", lambda o: o["groups"] == "blocks", "needs --groups blocks"),
    ("l1_ratio", lambda o: o["reg"] == "sparse_group", "needs --reg sparse_group"),
    ("control", lambda o: o["target_sparsity"] is not None, "needs --target-sparsity"),
    (
        "feedback_gain",
        lambda o: o["target_sparsity"] is not None and o["control"] == "feedback",
        "needs --target-sparsity and --control feedback",
    ),
)


def check_recipe(recipe: Recipe) -> Recipe:
    """Return ``recipe``.

    Raises:
        UserError: two of its options do not go together.
    """
    o = recipe.all_options()
    for option, allows, why in _NEEDS:
        if option in recipe.options and option in OPTIONS[recipe.optimizer] and not allows(o):
            raise UserError(f"--{option.replace('_', '-')} {why.format(**o)}")
    if recipe.optimizer == "mezo" and o["mask"] not in (None, *WEIGHT_ONLY_MASKS):
        raise UserError(
            f"--mask {o['mask']} scores with gradients, and --optimizer mezo takes none: choose "
            f"{', '.join(WEIGHT_ONLY_MASKS)}"
        )
    if o.get("mask") == "dynamic" and o["pattern"] != "unstructured":
        raise UserError(
            f"--mask dynamic exchanges single entries: it has no --pattern {o['pattern']}"
        )
    if o.get("mask") == "dynamic" and o["form"] == "implicit":
        raise UserError("--mask dynamic has no implicit form: it scores with the gradient at w")
    return recipe


def label_of(options: dict[str, Any]) -> str:
    """Name of a Sparse SAM in tables.

    Example:
        >>> label_of({**OPTIONS["ssam"], "mask": "dynamic", "sparsity": 0.9})
        'SSAM dynamic 90 %'
        >>> label_of({**OPTIONS["ssam"], "pattern": "2:4", "form": "implicit"})
        'SSAM 2:4 implicit'
    """
    words = ["SSAM"]
    if options["mask"] != "fisher":
        words.append(options["mask"])
    if options["pattern"] != "unstructured":
        words.append(options["pattern"])
    if not _grouped(options):
        words.append(f"{100 * options['sparsity']:g} %")
    if options["form"] != "explicit":
        words.append(options["form"])
    return " ".join(words)


def with_choices(plan: Plan, choices: dict[str, Any]) -> Plan:
    """A plan whose Sparse SAM and sparse training are as chosen.

    Args:
        plan: a plan.
        choices: options of ``CHOICES``; those of sparse training act on SAM, SSAM and ZO-SAM.

    Returns:
        The plan; without choices the same one.

    Raises:
        UserError: two choices do not go together.
    """
    recipes = []
    for recipe in plan.recipes:
        own = OPTIONS[recipe.optimizer]
        acting = {k: v for k, v in choices.items() if k in own and "rho" in own}
        options = {**recipe.options, **acting}
        if "pattern" in acting and "sparsity" not in acting and _grouped({**own, **options}):
            options.pop("sparsity", None)  # the plan's, not asked for
        changed = check_recipe(replace(recipe, options=options))
        label = recipe.label
        if acting and recipe.optimizer == "ssam":
            label = label_of(changed.all_options())
        if acting and changed.option("sparse_method") != "none":
            label += f" + {changed.option('sparse_method')}"
        recipes.append(replace(changed, label=label))
    return replace(plan, recipes=tuple(recipes))
