"""Command line of ``study-zo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import arguments, zo_command, zo_cosine, zo_study


def _shown(values: Sequence[Any]) -> str:
    return ",".join(str(v) for v in values)


def add_study(commands: Any) -> None:
    """Add the command."""
    zo = commands.add_parser(
        "study-zo", allow_abbrev=False,
        help="what ZO-SAM buys: against SGD, SAM and a random sign, on handwritten digits",
        description="Trains a CNN on scikit-learn's handwritten digits under sparse training "
        "methods with SGD, SAM, SAM in every fifth step, ZO-SAM, and ZO-SAM's control with a "
        "random sign and no probes: once for equally many epochs and once for as many steps as "
        "fit into SGD's time, measured before. Then other radii, and the cosine of ZO-SAM's "
        "estimate with the gradient. No method is tuned. Prints tables and writes them as CSV, "
        "with every single run and pictures.",
    )  # fmt: skip
    add = zo.add_argument
    add(
        "--out", type=Path, default=Path("out/study-zo"), metavar="FOLDER",
        help="where the tables and pictures go (default out/study-zo)",
    )  # fmt: skip
    add(
        "--parts", type=arguments.list_of(arguments.one_of(zo_command.PARTS)),
        default=zo_command.PARTS, metavar="NAME,NAME",
        help=f"of {', '.join(zo_command.PARTS)} (default all)",
    )  # fmt: skip
    add("--seeds", type=arguments.integer(1), default=3, metavar="N", help="0 to N-1 (default 3)")
    add(
        "--epochs", type=arguments.integer(1), default=zo_study.DEFAULT_EPOCHS, metavar="N",
        help=f"default {zo_study.DEFAULT_EPOCHS}, on one thread about a quarter of an hour in all",
    )  # fmt: skip
    add(
        "--sparse-methods", type=arguments.sparse_methods, default=zo_study.SPARSE_METHODS,
        metavar="NAME,NAME",
        help=f"default {_shown(zo_study.SPARSE_METHODS)}; the radii take the first",
    )  # fmt: skip
    add(
        "--sparsities", type=arguments.list_of(arguments.below_one), default=zo_study.SPARSITIES,
        metavar="X,X",
        help=f"fractions of zero weights (default {_shown(zo_study.SPARSITIES)}); the speed is "
        "measured at the first, which the radii take too",
    )  # fmt: skip
    add(
        "--rhos", type=arguments.list_of(arguments.number(0.0, strict=True)),
        default=zo_study.RHOS, metavar="X,X", help=f"radii (default {_shown(zo_study.RHOS)})",
    )  # fmt: skip
    add(
        "--directions", type=arguments.list_of(arguments.integer(1)),
        default=zo_cosine.DIRECTIONS, metavar="N,N",
        help=f"per estimate, for its cosine (default {_shown(zo_cosine.DIRECTIONS)})",
    )  # fmt: skip
    add("--downhill", action="store_true", help="a control more: the side with the lower loss")
    arguments.add_threads(zo)
    arguments.add_place(zo, "of the optimizers' kernels (default auto: the fastest there is)")
