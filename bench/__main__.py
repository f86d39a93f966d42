"""``python -m bench``: every fused step beside its baselines and the machine's own roof."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

import sparse_kernels as sk

from . import _harness as harness
from . import bregman_cases, cases, sam_cases, zo_cases
from .cases import Case, Data

FIELDS = (
    "op", "backend", "dtype", "tensors", "elements", "p20_ms", "p50_ms", "p80_ms", "host_ms",
    "bytes_per_element", "gb_per_s", "roof_gb_per_s", "percent_of_roof", "x_eager", "x_reference",
    "x_compile", "x_dense", "target", "mb_per_step", "calls", "eager_calls", "rounds", "q",
    "gdirections_per_s", "eager_gdirections_per_s", "compile_gdirections_per_s",
)  # fmt: skip
#: heading of the printed table -> (column of the CSV, format)
COLUMNS = {
    "op": ("op", "{}"), "backend": ("backend", "{}"), "dtype": ("dtype", "{}"), "q": ("q", "{}"),
    "p20 ms": ("p20_ms", "{:.2f}"), "p50 ms": ("p50_ms", "{:.2f}"), "p80 ms": ("p80_ms", "{:.2f}"),
    "B/el": ("bytes_per_element", "{:g}"), "GB/s": ("gb_per_s", "{:.1f}"),
    "% of roof": ("percent_of_roof", "{:.0f}"), "G dir/s": ("gdirections_per_s", "{:.2f}"),
    "eager G dir/s": ("eager_gdirections_per_s", "{:.2f}"),
    "compile G dir/s": ("compile_gdirections_per_s", "{:.2f}"), "x eager": ("x_eager", "{:.1f}"),
    "x reference": ("x_reference", "{:.1f}"), "x compile": ("x_compile", "{:.1f}"),
    "x dense": ("x_dense", "{:.1f}"),
    "target": ("target", ">= {:g}"), "MB": ("mb_per_step", "{:.0f}"), "calls": ("calls", "{}"),
    "eager calls": ("eager_calls", "{}"), "rounds": ("rounds", "{}"),
}  # fmt: skip
ELEMENTS = 25_000_000


@dataclass(frozen=True)
class Suite:
    """Cases of one kind of data, and the dtypes that a run takes unless told otherwise."""

    cases: Callable[[Data], list[Callable[[], Case]]]
    dtypes: tuple[str, ...] = ("fp32",)


SUITES = {
    "core": Suite(cases.all_cases),
    "sam": Suite(sam_cases.all_cases),
    "bregman": Suite(bregman_cases.all_cases),
    "zo": Suite(zo_cases.all_cases, ("fp32", "bf16")),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--suite", choices=tuple(SUITES), default="core", help="which cases")
    parser.add_argument("--op", default="", help="only rows whose name contains this text")
    parser.add_argument("--backend", default="auto", help="auto, all, or a comma-separated list")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="instead of the suite's own")
    parser.add_argument("--tensors", type=int, default=1, help="tensors in the list")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="elements per tensor")
    parser.add_argument("--rounds", type=int, default=11, help="most timed rounds")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--reference", action="store_true", help="time the reference backend too")
    parser.add_argument("--csv", type=Path, default=None, help="append the rows to this file")
    args = parser.parse_args(argv)
    args.dtypes = SUITES[args.suite].dtypes if args.dtype is None else (args.dtype,)
    return args


def backends_of(args: argparse.Namespace) -> list[str]:
    there = [b for b in sk.available_backends(args.device) if b != "reference"]
    if args.backend == "auto":
        return there[:1]
    return there if args.backend == "all" else args.backend.split(",")


def compiled(case: Case) -> dict:
    """torch.compile of the eager stages, or nothing where one cannot be compiled as a graph."""
    graphs = case.stages if case.graphs is None else case.graphs
    if not graphs:
        return {}
    torch._dynamo.reset()  # or functions made by one def would share the limit of recompilations
    stages = tuple(torch.compile(s, fullgraph=True, dynamic=False) for s in graphs)

    def run() -> object:
        return case.eager(stages)

    try:
        run()
    except Exception as error:  # compile errors have no common base class
        print(
            f"{case.label}: torch.compile leaves this out: {str(error).splitlines()[0]}",
            file=sys.stderr,
        )
        return {}
    return {"compile": run}


def promised(args: argparse.Namespace, dtype: str) -> bool:
    """The targets are for one tensor of 25 million float32 weights on a CPU."""
    shape = (args.device, dtype, args.tensors, args.elements)
    return shape == ("cpu", "fp32", 1, ELEMENTS)


def measure(case: Case, data: Data, dtype: str, args: argparse.Namespace) -> list[dict]:
    backends = backends_of(args)
    scratch = data.params[0] if args.tensors == 1 else torch.cat(data.params)
    variants = {"roof": lambda: scratch.mul_(1.0000001)}  # one read-modify-write stream
    variants |= {b: lambda b=b: case.fused(b) for b in backends}
    variants["eager"] = case.eager
    if case.dense is not None:
        variants |= {f"dense {b}": lambda b=b: case.dense(b) for b in backends}
    if args.reference:
        variants["reference"] = lambda: case.fused("reference")
    if not args.no_compile:
        variants |= compiled(case)
    rounds = args.rounds if case.rounds is None else min(case.rounds, args.rounds)
    samples = harness.interleave(variants, args.device, rounds)
    eager_calls = harness.count_calls(case.eager)
    count = args.tensors * args.elements
    roof_bytes = 2 * data.size * count
    rows = []
    for name in backends:
        s = samples[name]
        share = harness.ratio(samples["roof"], s) * case.bytes_per_element / (2 * data.size)
        row = {
            "op": case.name, "backend": name, "dtype": dtype, "tensors": args.tensors,
            "elements": args.elements, "bytes_per_element": case.bytes_per_element,
            "gb_per_s": case.bytes_per_element * count / s.median / 1e9,
            "roof_gb_per_s": roof_bytes / samples["roof"].median / 1e9,
            "percent_of_roof": 100 * share,
            "target": case.target if promised(args, dtype) else None,
            "mb_per_step": case.bytes_per_element * count / 1e6,
            "calls": harness.count_calls(lambda b=name: case.fused(b)),  # type: ignore[misc]
            "eager_calls": eager_calls, "rounds": rounds, "q": case.directions,
            "host_ms": 1e3 * sorted(s.host)[len(s.host) // 2],
        }  # fmt: skip
        row |= {f"p{q}_ms": 1e3 * s.quantile(q / 100) for q in (20, 80)} | {
            "p50_ms": 1e3 * s.median
        }
        for base in ("eager", "reference", "compile"):
            row[f"x_{base}"] = harness.ratio(samples[base], s) if base in samples else None
        dense = samples.get(f"dense {name}")
        row["x_dense"] = None if dense is None else harness.ratio(dense, s)
        if case.directions is not None:
            for variant, prefix in ((name, ""), ("eager", "eager_"), ("compile", "compile_")):
                if variant in samples:
                    rate = case.directions * count / samples[variant].median / 1e9
                    row[f"{prefix}gdirections_per_s"] = rate
        rows.append(row)
    return rows


def print_table(rows: list[dict], head: dict[str, str]) -> None:
    """A table by rich without empty columns; where rich is not installed (GPU hosts often have
    torch alone), the CSV.
    """
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        write_rows(sys.stdout, rows, head)
        return
    console = Console(width=190)
    console.print(" | ".join(f"{k}: {v}" for k, v in head.items()), highlight=False)
    table = Table(caption="roof: one tensor scaled in place, in the same rounds; x: ratio of times")
    cells = {
        heading: ["-" if r.get(name) is None else form.format(r[name]) for r in rows]
        for heading, (name, form) in COLUMNS.items()
    }
    cells = {h: texts for h, texts in cells.items() if any(t != "-" for t in texts)}
    for heading in cells:
        left = heading in ("op", "backend", "dtype")
        table.add_column(heading, justify="left" if left else "right", no_wrap=left)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    console.print(table)


def write_rows(f: TextIO, rows: list[dict], head: dict[str, str], header: bool = True) -> None:
    writer = csv.DictWriter(f, fieldnames=(*head, *FIELDS))
    if header:
        writer.writeheader()
    for row in rows:
        rounded = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
        writer.writerow(head | rounded)


def check_columns(path: Path, head: dict[str, str]) -> None:
    """Refuse, before anything is measured, a file whose columns are those of another version."""
    if not path.exists():
        return
    with path.open(newline="") as f:
        found = next(csv.reader(f), [])
    if found != [*head, *FIELDS]:
        raise SystemExit(f"{path} has other columns than this version writes: move it away")


def append_csv(path: Path, rows: list[dict], head: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as f:
        write_rows(f, rows, head, header=new)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    shown = argv if argv is not None else sys.argv[1:]
    head = harness.header(args.device, ["python -m bench", *shown])
    if args.csv is not None:
        check_columns(args.csv, head)
    rows: list[dict] = []
    for dtype in args.dtypes:
        data = Data.make(args.tensors, args.elements, DTYPES[dtype], args.device)
        for make in SUITES[args.suite].cases(data):
            case = make()
            if args.op in case.label:
                print(f"{dtype} {case.label}", file=sys.stderr, flush=True)
                rows += measure(case, data, dtype, args)
            del case
    print_table(rows, head)
    if args.csv is not None:
        append_csv(args.csv, rows, head)
    short = [r for r in rows if r["target"] is not None and r["x_eager"] < r["target"]]
    for r in short:
        print(f"below target: {r['op']} {r['x_eager']:.1f} < {r['target']:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
