"""``python -m bench``: every operation beside its baselines and the roofs of the machine.

All suites in one run unless --suite names one; ends with a table of targets, met or missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import sparse_kernels as sk

from . import _harness as harness
from . import _output as output
from . import (
    bregman_cases,
    host_cases,
    mask_cases,
    model_cases,
    model_shapes,
    sam_cases,
    zo_cases,
)
from ._measure import DTYPES, Setting, measure
from ._roofs import Roofs
from ._targets import ELEMENTS, verdicts
from .cases import Data, Make

Lists = Callable[[argparse.Namespace, torch.dtype], Iterator[Data]]


def one_size(args: argparse.Namespace, dtype: torch.dtype) -> Iterator[Data]:
    name = f"{args.tensors} x {args.elements}"
    yield Data.make([(args.elements,)] * args.tensors, dtype, args.device, name)


def small_tensors(args: argparse.Namespace, dtype: torch.dtype) -> Iterator[Data]:
    for name, shapes in host_cases.lists().items():
        yield Data.make(shapes, dtype, args.device, name)


def models(args: argparse.Namespace, dtype: torch.dtype) -> Iterator[Data]:
    names = args.model.split(",") if args.model else list(model_cases.DEFAULT[args.device])
    names = list(model_shapes.MODELS) if args.model == "all" else names
    for name in names:
        shapes = model_shapes.load(name)
        if args.longest is not None:
            shapes = model_shapes.clipped(shapes, args.longest)
        if model_cases.fits(name, shapes, args.device):
            yield Data.make(shapes, dtype, args.device, name)


@dataclass(frozen=True)
class Suite:
    """Cases, their lists, and the dtypes that a run takes unless told otherwise."""

    cases: Callable[[Data], list[Make]]
    lists: Lists = one_size
    dtypes: tuple[str, ...] = ("fp32",)


SUITES = {
    "sam": Suite(sam_cases.all_cases),
    "bregman": Suite(bregman_cases.all_cases),
    "zo": Suite(zo_cases.all_cases, dtypes=("fp32", "bf16")),
    "masks": Suite(mask_cases.all_cases),
    "host": Suite(host_cases.all_cases, small_tensors),
    "models": Suite(model_cases.all_cases, models),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--suite", choices=("all", *SUITES), default="all", help="which cases")
    parser.add_argument("--op", default="", help="only rows whose name contains this text")
    parser.add_argument("--backend", default="auto", help="auto, all, or a comma-separated list")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="instead of the suite's own")
    parser.add_argument("--tensors", type=int, default=1, help="tensors in the list")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="elements per tensor")
    parser.add_argument(
        "--model",
        default="",
        metavar="NAMES",
        help=f"all or some of {','.join(model_shapes.MODELS)}",
    )
    parser.add_argument(
        "--longest", type=int, help="cut the dimensions of models, to try the suite out"
    )
    parser.add_argument("--rounds", type=int, help="most timed rounds (default 11; host 51)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--warm", action="store_true", help="do not empty the caches between calls")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--reference", action="store_true", help="time the reference backend too")
    parser.add_argument(
        "--csv", metavar="FILE", help="append the rows; {suite} in the name stands for the suite"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write header and rows")
    parser.add_argument(
        "--stored", type=Path, nargs="+", metavar="FILE", help="targets of stored rows; no timing"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 for a missed target")
    args = parser.parse_args(argv)
    unknown = set(args.model.split(",")) - {"", "all", *model_shapes.MODELS}
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    args.suites = list(SUITES) if args.suite == "all" else [args.suite]
    return args


def backends_of(args: argparse.Namespace) -> list[str]:
    there = [b for b in sk.available_backends(args.device) if b != "reference"]
    if args.backend == "auto":
        return there[:1]
    return there if args.backend == "all" else args.backend.split(",")


def run_list(
    name: str, data: Data, dtype: str, args: argparse.Namespace, flush: harness.Flush | None
) -> list[output.Row]:
    """The rows of one suite on one list."""
    host = name == "host"
    setting = Setting(
        name, data, dtype, args.device, backends_of(args), args.rounds,
        compiles=not args.no_compile, reference=args.reference,
        roofs=None if host else Roofs(data.elements, DTYPES[dtype], args.device),
        flush=None if host else flush,
    )  # fmt: skip
    makes = SUITES[name].cases(data)
    beside = SUITES[name].cases(data.joined()) if host else [None] * len(makes)
    rows: list[output.Row] = []
    for make, make_one in zip(makes, beside, strict=True):
        case = make()
        if args.op in case.label:
            print(f"{name} {dtype} {data.name} {case.label}", file=sys.stderr, flush=True)
            rows += measure(case, None if make_one is None else make_one(), setting)
        del case
    return rows


def judged(rows: list[output.Row], strict: bool) -> int:
    found = verdicts(rows)
    output.print_verdicts(found)
    return int(strict and not all(v.met for v in found))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.stored is not None:
        return judged([row for path in args.stored for row in output.read_rows(path)], args.strict)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    shown = argv if argv is not None else sys.argv[1:]
    head = harness.header(args.device, ["python -m bench", *shown])
    files = {name: Path(args.csv.format(suite=name)) for name in args.suites if args.csv}
    for path in files.values():
        output.check_columns(path, head)
    flush = None if args.warm else harness.Flush(args.device)
    everything: list[output.Row] = []
    for name in args.suites:
        rows: list[output.Row] = []
        suite = SUITES[name]
        for dtype in suite.dtypes if args.dtype is None else (args.dtype,):
            for data in suite.lists(args, DTYPES[dtype]):
                rows += run_list(name, data, dtype, args, flush)
        if rows:
            output.print_table(rows, head)
        if rows and files:
            output.append_csv(files[name], rows, head)
        everything += rows
        if args.json is not None:  # after every suite: a run that is cut short leaves what it has
            output.write_json(args.json, everything, head)
    return judged(everything, args.strict)


if __name__ == "__main__":
    sys.exit(main())
