"""The ``sparse-optim`` command: ``demo``, ``train``, ``export`` and the studies."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .demo import arguments, bregman_arguments, export_command, mezo_arguments, zo_arguments

PROGRAM = "sparse-optim"
FAILED = 2  # exit code for anything the user can put right


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse alone prints the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        _complain(message)
        sys.exit(FAILED)


def _complain(message: str) -> None:
    """One line on stderr, whatever the message."""
    print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", allow_abbrev=False,
        help="train with every method on handwritten digits, reference against fused",
        description="Trains a small CNN and a two-layer MLP of about a million weights on "
        "scikit-learn's handwritten digits with SGD, SAM, SSAM, ZO-SAM, LinBreg and AdaBreg, each "
        "with the reference backend and with the fused one from the same seed. Prints a table and "
        "writes it as CSV, with pictures.",
    )  # fmt: skip
    demo.add_argument(
        "--out", type=Path, default=Path("out/demo"), metavar="FOLDER",
        help="where results.csv and the pictures go (default out/demo)",
    )  # fmt: skip
    demo.add_argument(
        "--epochs", type=arguments.integer(1), metavar="N",
        help="of every run (default: what the recipe of each model says)",
    )  # fmt: skip
    arguments.add_threads(demo)
    arguments.add_place(demo, "of the fused runs (default auto: the fastest there is)")
    arguments.add_seed(demo)
    arguments.add_choices(demo)


def _add_train(commands: Any) -> None:
    from .demo.data import DATASETS
    from .demo.methods import OPTIMIZERS
    from .demo.models import MODELS

    train = commands.add_parser(
        "train", allow_abbrev=False, help="train one model with one optimizer",
        description="Trains one model with one optimizer on scikit-learn's digits, on CIFAR-10, "
        "CIFAR-100 (python version) or MNIST files that you have, or, character by character, on "
        "the source of Python's standard library. Prints a line per epoch.",
    )  # fmt: skip
    add = train.add_argument
    add("--data", choices=DATASETS, default="digits", help="data set (default digits)")
    add("--data-dir", metavar="FOLDER", help="folder with the CIFAR or MNIST files")
    arguments.add_text(train)
    add(
        "--model", choices=MODELS,
        help="default cnn, for --data stdlib transformer; resnet is a ResNet-20",
    )  # fmt: skip
    arguments.add_sizes(train, "resnet 16 and 3, transformer 256 and 4")
    add(
        "--optimizer", choices=OPTIMIZERS, default="sgd",
        help="default sgd: the fused LinBreg step without regulariser, or torch.optim.SGD with "
        "--backend reference",
    )  # fmt: skip
    add("--epochs", type=arguments.integer(1), default=10, metavar="N", help="default 10")
    add("--batch-size", type=arguments.integer(1), default=64, metavar="N", help="default 64")
    add("--load", type=Path, metavar="FILE", help="start from the model that --save wrote here")
    add("--save", type=Path, metavar="FILE", help="write model, optimizer state and options here")
    add(
        "--log-layers", action="store_true",
        help="print the nonzero weights of every layer after every epoch",
    )  # fmt: skip
    arguments.add_place(train, "of the optimizer's kernels (default auto: the fastest there is)")
    arguments.add_seed(train)
    group = train.add_argument_group(
        "options of the optimizers",
        "In brackets: the optimizers that have the option, and defaults.",
    )
    arguments.add_options(group)


def _add_study(commands: Any) -> None:
    from .demo.study import SPARSITIES
    from .sparse_training import DISTRIBUTIONS

    study = commands.add_parser(
        "study", allow_abbrev=False, help="accuracy over sparsity on handwritten digits",
        description="Trains a model on scikit-learn's handwritten digits with SGD, SAM and Sparse "
        "SAM (Fisher and dynamic masks, rows and 2:4) at several sparsities and seeds, and with "
        "sparse training methods around SGD and SAM if asked to. Prints mean and spread of the "
        "test accuracy and writes them as CSV, with every single run and a picture.",
    )  # fmt: skip
    add, default = study.add_argument, ",".join(f"{s:g}" for s in SPARSITIES)
    add(
        "--out", type=Path, default=Path("out/study"), metavar="FOLDER",
        help="where the tables and the picture go (default out/study)",
    )  # fmt: skip
    add("--seeds", type=arguments.integer(1), default=3, metavar="N", help="0 to N-1 (default 3)")
    add("--model", choices=("cnn", "mlp"), default="cnn", help="default cnn")
    add("--epochs", type=arguments.integer(1), metavar="N", help="default: the demo's")
    add(
        "--sparsities", type=arguments.list_of(arguments.number(0.0, 1.0)), default=SPARSITIES,
        metavar="X,X", help=f"fractions not perturbed (default {default}; 2:4 has its own)",
    )  # fmt: skip
    add(
        "--sparse-methods", type=arguments.sparse_methods, default=(),
        metavar="NAME,NAME", help=f"of {', '.join(arguments.METHODS[1:])} (default none of them)",
    )  # fmt: skip
    add(
        "--weight-sparsity", type=arguments.below_one, metavar="X",
        help="fraction of zero weights of the sparse methods (default 0.9)",
    )  # fmt: skip
    add(
        "--weight-distribution", choices=DISTRIBUTIONS,
        help="of the live weights among the layers, for set, dsr, rigl and mest (default erk)",
    )  # fmt: skip
    arguments.add_threads(study)
    arguments.add_place(study, "of the optimizers' kernels (default auto: the fastest there is)")


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from sparse_kernels import __version__

    parser = _Parser(
        prog=PROGRAM, allow_abbrev=False,
        description="Optimizers for sparse training on fused kernels: sparse SAM, zero-order "
        "steps, linearised Bregman iterations.",
        epilog=f"`{PROGRAM} COMMAND --help` explains the options of a command.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    export_command.add_export(commands)
    _add_study(commands)
    zo_arguments.add_study(commands)
    mezo_arguments.add_study(commands, PROGRAM)
    bregman_arguments.add_study(commands)
    return parser


def _train_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Any:
    """Sort the arguments; an option that the optimizer or data set does not have is an error."""
    from .demo.commands import TrainOptions
    from .demo.methods import OPTIONS, Recipe

    own, given = OPTIONS[args.optimizer], arguments.given_options(args)
    for name in given:
        if name not in own:
            has = ", ".join("--" + k.replace("_", "-") for k in own)
            parser.error(
                f"--{name.replace('_', '-')} is no option of --optimizer {args.optimizer}, "
                f"which has {has}"
            )
    return TrainOptions(
        recipe=Recipe(args.optimizer, args.optimizer, given), data=args.data,
        data_dir=args.data_dir, package=args.package, window=args.window,
        epoch_steps=args.epoch_steps, model=args.model, sizes=arguments.given_sizes(args),
        epochs=args.epochs, batch_size=args.batch_size, device=args.device, backend=args.backend,
        seed=args.seed, load=args.load, save=args.save, log_layers=args.log_layers,
    )  # fmt: skip


def _study_options(parser: argparse.ArgumentParser, args: argparse.Namespace, line: str) -> Any:
    from .demo.study_command import StudyOptions

    given = arguments.given_options(args)
    for name in given:
        if not args.sparse_methods:
            parser.error(f"--{name.replace('_', '-')} needs --sparse-methods")
    return StudyOptions(
        out=args.out, command=line, seeds=args.seeds, model=args.model, epochs=args.epochs,
        sparsities=args.sparsities, sparse_methods=args.sparse_methods,
        device=args.device, backend=args.backend, threads=args.threads, **given,
    )  # fmt: skip


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    from .demo import bregman_command, commands, mezo_study, study_command, zo_command

    line = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    if args.command == "demo":
        commands.run_demo(
            commands.DemoOptions(
                out=args.out, seed=args.seed, epochs=args.epochs, device=args.device,
                backend=args.backend, threads=args.threads,
                choices=arguments.given_options(args),
            )
        )  # fmt: skip
    elif args.command == "train":
        commands.run_train(_train_options(parser, args))
    elif args.command == "study-bregman":
        given = {name: value for name, value in vars(args).items() if name != "command"}
        bregman_command.run_bregman_study(
            bregman_command.BregmanStudyOptions(command=line, **given)
        )
    elif args.command == "export":
        given = {name: value for name, value in vars(args).items() if name != "command"}
        export_command.run_export(export_command.ExportOptions(**given))
    elif args.command == "study-zo":
        given = {name: value for name, value in vars(args).items() if name != "command"}
        zo_command.run_zo_study(zo_command.ZoStudyOptions(command=line, **given))
    elif args.command == "study-mezo":
        mezo_study.run_mezo_study(mezo_arguments.study_options(args, line))
    else:
        study_command.run_study(_study_options(parser, args, line))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default ``sys.argv[1:]``.

    Returns:
        Exit code: 0, or 2 with one line on stderr if an option, a value, a folder, a file, a
        package or a backend is wrong or missing. ``--help`` and errors of the command line itself
        raise ``SystemExit`` with 0 and 2.
    """
    from sparse_kernels import BackendUnavailableError

    from .demo._support import UserError

    try:
        _run(argv)
    except (UserError, BackendUnavailableError) as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130  # the shell's code for it
    return 0
