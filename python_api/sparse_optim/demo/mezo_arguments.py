"""The command line of ``study-mezo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import arguments
from .commands import TrainOptions
from .methods import Recipe
from .mezo_study import LR, MezoStudyOptions


def add_study(commands: Any, program: str) -> None:
    """Add the command and its options."""
    study = commands.add_parser(
        "study-mezo", allow_abbrev=False, help="fine-tuning of a transformer without gradients",
        description="Fine-tunes a pretrained character model on a package of the standard library "
        "with MeZO on all weights, on the smallest of each tensor (Sparse-MeZO), without a copy of "
        "the weights (replay), and with the published implementation, each from the same weights "
        "on the same windows. Prints held-out loss, time and memory, and writes them as CSV, with "
        "a picture. The weights come from "
        f"`{program} train --data stdlib --optimizer adamw --save FILE`.",
    )  # fmt: skip
    add = study.add_argument
    add("--load", type=Path, required=True, metavar="FILE", help="the pretrained model")
    add(
        "--out", type=Path, default=Path("out/study-mezo"), metavar="FOLDER",
        help="where the tables and the picture go (default out/study-mezo)",
    )  # fmt: skip
    add("--seeds", type=arguments.integer(1), default=1, metavar="N", help="0 to N-1 (default 1)")
    arguments.add_text(study, package="encodings")
    arguments.add_sizes(study, "those of FILE; default 256 and 4")
    add("--epochs", type=arguments.integer(1), default=5, metavar="N", help="default 5")
    add("--batch-size", type=arguments.integer(1), default=8, metavar="N", help="default 8")
    add(
        "--lr", type=arguments.number(0.0, strict=True), default=LR, metavar="X",
        help=f"step size at the start; a cosine takes it to 0 (default {LR:g})",
    )  # fmt: skip
    arguments.add_options(study, ("smoothing",))
    add(
        "--sparsity", type=arguments.number(0.0, 1.0), default=0.5, metavar="X",
        help="fraction of every tensor that the masked runs leave alone (default 0.5)",
    )  # fmt: skip
    add("--threads", type=arguments.integer(1), metavar="N", help="CPU threads (default: torch's)")
    arguments.add_place(study, "of the fused runs (default auto: the fastest there is)")


def study_options(args: argparse.Namespace, line: str) -> MezoStudyOptions:
    """Sort the arguments; ``line`` is the whole command."""
    given = {k: v for k, v in arguments.given_options(args).items() if k in ("lr", "smoothing")}
    shared = TrainOptions(
        recipe=Recipe("shared", "mezo", given), data="stdlib", package=args.package,
        window=args.window, epoch_steps=args.epoch_steps, sizes=arguments.given_sizes(args),
        epochs=args.epochs, batch_size=args.batch_size, device=args.device, backend=args.backend,
        load=args.load,
    )  # fmt: skip
    return MezoStudyOptions(
        out=args.out, command=line, shared=shared, sparsity=args.sparsity, seeds=args.seeds,
        threads=args.threads,
    )  # fmt: skip
