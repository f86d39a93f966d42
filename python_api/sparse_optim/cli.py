"""The ``sparse-optim`` command: ``demo`` and ``train``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = "sparse-optim"
BACKENDS = ("auto", "cuda", "triton", "cpp", "reference")
FAILED = 2  # exit code for anything the user can put right


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse alone prints the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        _complain(message)
        sys.exit(FAILED)


def _complain(message: str) -> None:
    """One line on stderr, whatever the message."""
    print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)


def _number(low: float, high: float = math.inf, *, strict: bool = False) -> Callable[[str], float]:
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


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
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


def _below_one(text: str) -> float:
    value = _number(0.0)(text)
    if value >= 1.0:
        raise argparse.ArgumentTypeError(f"{text} must be below 1")
    return value


# option, converter, help; who has it and with which default stands in demo/methods.py
_OPTIMIZER_OPTIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("lr", {"type": _number(0.0, strict=True)}, "step size at the start; a cosine takes it to 0"),
    ("momentum", {"type": _below_one}, "in [0, 1)"),
    ("weight-decay", {"type": _number(0.0)}, "decay of the weights"),
    ("rho", {"type": _number(0.0)}, "radius of the perturbation"),
    ("sparsity", {"type": _number(0.0, 1.0)}, "fraction of the weights that is not perturbed"),
    ("smoothing", {"type": _number(0.0, strict=True)}, "length of the finite difference"),
    ("num-directions", {"type": _integer(1)}, "random directions per step"),
    ("distribution", {"choices": ("normal", "rademacher")}, "of the random directions"),
    ("lam", {"type": _number(0.0)}, "threshold a zero weight must pass; larger is sparser"),
    ("delta", {"type": _number(0.0, strict=True)}, "step size factor of the nonzero weights"),
    ("coarse-steps", {"type": _integer(0)}, "steps on the nonzero weights per full step"),
    (
        "density",
        {"type": _number(0.0, 1.0, strict=True)},
        "fraction of nonzero weights at the start",
    ),
)


def _key(option: str) -> str:
    return option.replace("-", "_")


def _shown(value: Any) -> str:
    return "rho / sqrt(number of weights)" if value is None else str(value)


def _who_has(option: str, table: dict[str, dict[str, Any]]) -> str:
    """ "sgd, sam: 0.1; mezo: 0.001" for the help text."""
    by_value: dict[str, list[str]] = {}
    for optimizer, options in table.items():
        if _key(option) in options:
            by_value.setdefault(_shown(options[_key(option)]), []).append(optimizer)
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in by_value.items())


def _add_common(parser: argparse.ArgumentParser, backend_help: str) -> None:
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default cpu)"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help=backend_help)
    parser.add_argument(
        "--seed", type=_integer(0, 2**63), default=0, metavar="N",
        help="of weights, data order and random directions (default 0)",
    )  # fmt: skip


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
        "--epochs", type=_integer(1), metavar="N",
        help="of every run (default: what the recipe of each model says)",
    )  # fmt: skip
    demo.add_argument(
        "--threads", type=_integer(1), default=1, metavar="N",
        help="CPU threads (default 1: the models are small, and waiting threads disturb timing)",
    )  # fmt: skip
    _add_common(demo, "of the fused runs (default auto: the fastest there is)")


def _add_train(commands: Any) -> None:
    from .demo.data import DATASETS
    from .demo.methods import OPTIMIZERS, OPTIONS
    from .demo.models import MODELS

    train = commands.add_parser(
        "train", allow_abbrev=False, help="train one model with one optimizer",
        description="Trains one model with one optimizer on scikit-learn's digits, or on CIFAR-10, "
        "CIFAR-100 (python version) or MNIST files that you have. Prints a line per epoch.",
    )  # fmt: skip
    add = train.add_argument
    add("--data", choices=DATASETS, default="digits", help="data set (default digits)")
    add("--data-dir", metavar="FOLDER", help="folder with the CIFAR or MNIST files")
    add("--model", choices=MODELS, default="cnn", help="default cnn; resnet is a ResNet-20")
    add(
        "--optimizer", choices=OPTIMIZERS, default="sgd",
        help="default sgd: the fused LinBreg step without regulariser, or torch.optim.SGD with "
        "--backend reference",
    )  # fmt: skip
    add("--epochs", type=_integer(1), default=10, metavar="N", help="default 10")
    add("--batch-size", type=_integer(1), default=64, metavar="N", help="default 64")
    add("--save", type=Path, metavar="FILE", help="write model, optimizer state and options here")
    _add_common(train, "of the optimizer's kernels (default auto: the fastest there is)")
    group = train.add_argument_group(
        "options of the optimizers",
        "In brackets: the optimizers that have the option, and defaults.",
    )
    for option, how, text in _OPTIMIZER_OPTIONS:
        if "choices" not in how:
            how = {**how, "metavar": "N" if option in ("num-directions", "coarse-steps") else "X"}
        group.add_argument(f"--{option}", **how, help=f"{text} [{_who_has(option, OPTIONS)}]")


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
    return parser


def _train_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Any:
    """Sort the arguments; an option that the optimizer or data set does not have is an error."""
    from .demo.commands import TrainOptions
    from .demo.methods import OPTIONS, Recipe

    own = OPTIONS[args.optimizer]
    given = {}
    for option, _, _ in _OPTIMIZER_OPTIONS:
        value = getattr(args, _key(option))
        if value is None:
            continue
        if _key(option) not in own:
            has = ", ".join("--" + k.replace("_", "-") for k in own)
            parser.error(
                f"--{option} is no option of --optimizer {args.optimizer}, which has {has}"
            )
        given[_key(option)] = value
    if args.data == "digits" and args.data_dir is not None:
        parser.error("--data-dir is no option of --data digits, which scikit-learn brings along")
    return TrainOptions(
        recipe=Recipe(args.optimizer, args.optimizer, given), data=args.data,
        data_dir=args.data_dir, model=args.model, epochs=args.epochs, batch_size=args.batch_size,
        device=args.device, backend=args.backend, seed=args.seed, save=args.save,
    )  # fmt: skip


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    from .demo import commands

    if args.command == "demo":
        commands.run_demo(
            commands.DemoOptions(
                out=args.out, seed=args.seed, epochs=args.epochs, device=args.device,
                backend=args.backend, threads=args.threads,
            )
        )  # fmt: skip
    else:
        commands.run_train(_train_options(parser, args))


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
