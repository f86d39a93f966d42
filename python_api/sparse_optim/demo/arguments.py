"""Values and options of the command line that several commands have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .. import Pattern
from .._support import BACKENDS
from ..sparse_training import DISTRIBUTIONS
from .methods import FORMS, MASKS, OPTIONS
from .regularized import CONTROL_EVERY, CONTROLS, DENSITY, KINDS, REGULARIZERS
from .sparse import METHODS, ROUNDS, STARTS, UPDATES
from .text import EPOCH_STEPS, WINDOW
from .variants import CHOICES
from .zo_controls import SIGNS


def number(low: float, high: float = math.inf, *, strict: bool = False) -> Callable[[str], float]:
    """Converter of a finite number in [low, high], or (low, high] if strict."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(value) or not low <= value <= high or (strict and value == low):
            bound = f"{'above' if strict else 'at least'} {low:g}"
            bound += f" and at most {high:g}" if high != math.inf else ""
            raise argparse.ArgumentTypeError(f"{text} must be finite and {bound}")
        return value

    return convert


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Converter of an integer in [low, high)."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if value < low or (high is not None and value >= high):
            bound = f"at least {low}" if high is None else f"in [{low}, {high})"
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    return convert


def below_one(text: str) -> float:
    """A number in [0, 1)."""
    value = number(0.0)(text)
    if value >= 1.0:
        raise argparse.ArgumentTypeError(f"{text} must be below 1")
    return value


def block(text: str) -> tuple[int, int]:
    """Rows and columns of a block, such as 4,4."""
    sizes = tuple(integer(1)(part) for part in text.split(","))
    if len(sizes) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWS,COLUMNS")
    return sizes


def pattern(text: str) -> str:
    """The name of a pattern."""
    try:
        return Pattern(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def list_of(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Converter of a list with commas; what comes twice is taken once."""

    def convert_all(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(convert(part.strip()) for part in text.split(",")))

    return convert_all


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Converter of one of some names."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return convert


sparse_methods = list_of(one_of(METHODS[1:]))  #: converter of names of sparse training methods


# option, converter, help; who has it and with which default stands in methods.py
OPTIMIZER_OPTIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("lr", {"type": number(0.0, strict=True)}, "step size at the start; a cosine takes it to 0"),
    ("momentum", {"type": below_one}, "in [0, 1)"),
    ("weight-decay", {"type": number(0.0)}, "decay of the weights"),
    ("rho", {"type": number(0.0)}, "radius of the perturbation"),
    ("adaptive", {"action": "store_const", "const": True},
     "scale the perturbation by the weights (wants a rho about ten times larger)"),
    ("interval", {"type": integer(1), "metavar": "N"}, "perturb in every N-th step only"),
    ("sparsity", {"type": number(0.0, 1.0)},
     "fraction of the weights that is not perturbed; of mezo: not touched, of every tensor"),
    ("mask", {"choices": MASKS},
     "what is perturbed; renewed at the start of every epoch, a dynamic mask exchanges a part. "
     "mezo: random, magnitude (the largest) or small (the smallest weights, as Sparse-MeZO has "
     "it), chosen once, at the start"),
    ("pattern", {"type": pattern, "metavar": "NAME"},
     "sets of entries that are perturbed: unstructured, row, filter, tensor or n:m such as 2:4"),
    ("axis", {"choices": ("in", "out")}, "of the groups of an n:m pattern"),
    ("form", {"choices": FORMS},
     "explicit: the perturbation is masked; implicit: the weights are, in the input gradients of "
     "the first backward"),
    ("norm", {"choices": ("dense", "masked")}, "of the explicit perturbation"),
    ("smoothing", {"type": number(0.0, strict=True)}, "length of the finite difference"),
    ("num-directions", {"type": integer(1), "metavar": "N"}, "random directions per step"),
    ("distribution", {"choices": ("normal", "rademacher", "sphere")}, "of the random directions"),
    ("restore", {"choices": ("exact", "replay")},
     "how the weights come back: from a copy, or by drawing the moves again, which takes no memory "
     "and lets float32 weights drift by rounding"),
    ("forward-difference", {"action": "store_const", "const": True},
     "slopes from the losses at w and on one side: N + 1 forwards instead of 2 N"),
    ("sign", {"choices": tuple(SIGNS)},
     "of the perturbation: uphill as probed; downhill and random (no probes) are controls"),
    ("sparse-method", {"choices": METHODS},
     "train with zero weights. snip, grasp: chosen before the first step; set, dsr, rigl, mest: "
     f"moved about {UPDATES} times in the first three quarters of the steps; gmp: pruned as often, "
     f"from dense to the sparsity asked for; lth: {ROUNDS} rounds "
     "of equally many steps within the epochs given, each from the initial weights with a new "
     f"learning rate schedule, {ROUNDS - 1} prunings between them"),
    ("weight-sparsity", {"type": below_one},
     "fraction of the convolution and linear weights that a sparse method makes zero"),
    ("weight-distribution", {"choices": (*DISTRIBUTIONS, "global")},
     "of the live weights among the layers, for set, dsr, rigl, mest and gmp, which alone has "
     "global: the largest weights of all layers"),
    ("sparse-start", {"choices": STARTS},
     "of set, dsr, rigl and mest: masked: the dense start under the mask; scaled: its live weights "
     "divided by the root of the layer's density, so that outputs vary as they do densely"),
    ("reg", {"choices": REGULARIZERS},
     "regulariser of the convolution and linear weights; l1 and l1_pos (weights >= 0) make single "
     "entries zero, l1_l2 whole groups, sparse_group both, nuclear singular values"),
    ("groups", {"choices": KINDS}, "of l1_l2 and sparse_group"),
    ("block", {"type": block, "metavar": "ROWS,COLUMNS"}, "size of the blocks"),
    ("l1-ratio", {"type": number(0.0, 1.0)}, "share of lam on single entries, of sparse_group"),
    ("lam", {"type": number(0.0)}, "threshold a zero weight must pass; larger is sparser"),
    ("target-sparsity", {"type": below_one},
     "fraction of the regularised weights that is kept zero, by changing lam"),
    ("control", {"choices": CONTROLS},
     f"of lam, every {CONTROL_EVERY} steps, with coarse steps after each phase: quantile chooses "
     "it for exactly the wanted number of weights; feedback raises it while there are too many and "
     "lowers it while there are too few"),
    ("feedback-gain", {"type": number(0.0, strict=True)},
     "of feedback: lam changes by the factor 1 + gain |gap|"),
    ("delta", {"type": number(0.0, strict=True)}, "step size factor of the nonzero weights"),
    ("coarse-steps", {"type": integer(0), "metavar": "N"},
     "steps on the nonzero weights per full step"),
    ("density", {"type": number(0.0, 1.0, strict=True)},
     "fraction of nonzero weights at the start"),
    ("init-gain", {"type": number(0.0, strict=True)}, "factor on the weights at the start"),
)  # fmt: skip

_DEFAULT_WORDS = {
    "smoothing": "rho / sqrt(number of weights)",
    "axis": "in; out for the implicit form",
    "weight_distribution": "erk for set and rigl, uniform for dsr and mest, global for gmp",
    "groups": "2-D kernels of convolutions, rows of linear weights",
    "block": "needed with blocks",
    "target_sparsity": "lam stays as it is",
    "density": f"{DENSITY:g}, with a target 1 - target",
    "adaptive": "off",
    "forward_difference": "off",
    "mask": "all weights",
}


def key(option: str) -> str:
    """Name of an option as a variable."""
    return option.replace("-", "_")


def _who_has(option: str) -> str:
    """ "sgd, sam: 0.1; mezo: 0.001" for the help text."""
    by_value: dict[str, list[str]] = {}
    for optimizer, options in OPTIONS.items():
        if key(option) in options:
            value = options[key(option)]
            shown = str(value) if value else _DEFAULT_WORDS.get(key(option), str(value))
            by_value.setdefault(shown, []).append(optimizer)
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in by_value.items())


def add_options(group: Any, names: Iterable[str] | None = None) -> None:
    """Add the optimizers' options, or those named, to a parser or a group of it."""
    wanted = None if names is None else set(names)
    for option, how, text in OPTIMIZER_OPTIONS:
        if wanted is None or key(option) in wanted:
            if "type" in how:
                how = {"metavar": "X", **how}
            group.add_argument(f"--{option}", **how, help=f"{text} [{_who_has(option)}]")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The optimizers' options that were given, by variable name."""
    values = {key(option): getattr(args, key(option), None) for option, _, _ in OPTIMIZER_OPTIONS}
    return {name: value for name, value in values.items() if value is not None}


def add_place(parser: argparse.ArgumentParser, backend_help: str) -> None:
    """Add where to compute."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default cpu)"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help=backend_help)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the seed of one run."""
    parser.add_argument(
        "--seed", type=integer(0, 2**63), default=0, metavar="N",
        help="of weights, data order and random directions (default 0)",
    )  # fmt: skip


def add_text(parser: argparse.ArgumentParser, package: str | None = None) -> None:
    """Add how the text of the standard library is read; ``package`` is the default one."""
    shown = f"default {package}" if package else "default: the modules that are in no package"
    add = parser.add_argument
    add(
        "--package", metavar="NAME", default=package,
        help=f"of the standard library, such as encodings ({shown})",
    )  # fmt: skip
    add(
        "--window", type=integer(1), metavar="N",
        help=f"characters that the transformer sees at once (default {WINDOW})",
    )  # fmt: skip
    add(
        "--epoch-steps", type=integer(1), metavar="N",
        help=f"steps that text counts as an epoch (default {EPOCH_STEPS})",
    )  # fmt: skip


def add_sizes(parser: argparse.ArgumentParser, defaults: str) -> None:
    """Add width and depth of a model."""
    for name, what in (("width", "channels of the first stage, or of the transformer"),
                       ("depth", "blocks of a stage, or layers of the transformer")):  # fmt: skip
        parser.add_argument(
            f"--{name}", type=integer(1), metavar="N", help=f"{what} (width and depth: {defaults})"
        )


def given_sizes(args: argparse.Namespace) -> dict[str, int]:
    """Width and depth, where they were given."""
    values = {name: getattr(args, name) for name in ("width", "depth")}
    return {name: value for name, value in values.items() if value is not None}


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the number of threads."""
    parser.add_argument(
        "--threads", type=integer(1), default=1, metavar="N",
        help="CPU threads (default 1: the models are small, and waiting threads disturb timing)",
    )  # fmt: skip


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add what the demo lets choose."""
    group = parser.add_argument_group(
        "choices for the SAM family",
        "Act on the runs of Sparse SAM; those of sparse training on SAM, SSAM and ZO-SAM. In "
        "brackets: defaults.",
    )
    add_options(group, CHOICES)
