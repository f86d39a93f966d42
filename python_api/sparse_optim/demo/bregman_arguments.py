"""The command line of ``study-bregman``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import arguments
from .bregman_command import PARTS
from .bregman_study import CONTROL, DATA, PLANS, SPARSITIES
from .regularized import CONTROLS


def add_study(commands: Any) -> None:
    """Add the command."""
    study = commands.add_parser(
        "study-bregman", allow_abbrev=False,
        help="Bregman training against dense training, pruning and RigL at equal sparsity",
        description="Trains a CNN on scikit-learn's handwritten digits, or a small transformer on "
        "the source of Python's standard library, with LinBreg, AdaBreg, their multilevel form, "
        "gradual magnitude pruning and RigL at equal sparsities and dense beside them; then "
        "LinBreg over m and lam; then follows some runs step by step. Prints tables and writes "
        "them as CSV, with every single run and a picture.",
    )  # fmt: skip
    add, epochs = study.add_argument, ", ".join(f"{n} {p.epochs}" for n, p in PLANS.items())
    add(
        "--out", type=Path, default=Path("out/study-bregman"), metavar="FOLDER",
        help="where the tables and the picture go (default out/study-bregman)",
    )  # fmt: skip
    add("--data", choices=DATA, default="digits", help="default digits")
    add(
        "--parts", type=arguments.list_of(arguments.one_of(PARTS)), default=PARTS,
        metavar="NAME,NAME", help=f"of {', '.join(PARTS)} (default all)",
    )  # fmt: skip
    add("--seeds", type=arguments.integer(1), default=3, metavar="N", help="0 to N-1 (default 3)")
    add(
        "--epochs", type=arguments.integer(1), metavar="N",
        help=f"default {epochs}, on one thread about half an hour in all for each",
    )  # fmt: skip
    add(
        "--sparsities", type=arguments.list_of(arguments.below_one), default=SPARSITIES,
        metavar="X,X",
        help=f"fractions of zero weights (default {','.join(str(s) for s in SPARSITIES)})",
    )  # fmt: skip
    add(
        "--control", choices=CONTROLS, default=CONTROL,
        help=f"what holds Bregman runs at the sparsity (default {CONTROL})",
    )  # fmt: skip
    arguments.add_threads(study)
    arguments.add_place(study, "of the optimizers' kernels (default auto: the fastest there is)")
