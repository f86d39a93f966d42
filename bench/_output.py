"""What a run leaves: a table on the terminal, rows of a CSV, one JSON document."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any, TextIO

from ._targets import Verdict

Row = dict[str, Any]
FIELDS = (
    "suite", "op", "backend", "device", "dtype", "list", "tensors", "elements", "caches", "p20_ms",
    "p50_ms", "p80_ms", "host_ms", "bytes_per_element", "gb_per_s", "roof_gb_per_s",
    "copy_gb_per_s", "streams_gb_per_s", "percent_of_roof", "percent_of_copy", "percent_of_streams",
    "x_eager", "x_reference", "x_compile", "torch_step", "x_foreach", "x_fused", "x_dense",
    "target", "target_streams", "target_copy", "target_compile", "target_fused", "target_host_us",
    "mb_per_step", "calls", "eager_calls", "launches", "rounds", "q", "gdirections_per_s",
    "eager_gdirections_per_s", "compile_gdirections_per_s", "host_us", "host_us_per_tensor",
    "host_us_above_memory", "foreach_host_us_above_memory", "fused_host_us_above_memory",
    "first_host_us_above_memory", "foreach_first_host_us_above_memory",
    "fused_first_host_us_above_memory",
)  # fmt: skip
#: heading of the printed table -> (column of the CSV, format)
COLUMNS = {
    "op": ("op", "{}"), "backend": ("backend", "{}"), "dtype": ("dtype", "{}"),
    "list": ("list", "{}"), "q": ("q", "{}"), "caches": ("caches", "{}"),
    "p20 ms": ("p20_ms", "{:.2f}"), "p50 ms": ("p50_ms", "{:.2f}"), "p80 ms": ("p80_ms", "{:.2f}"),
    "B/el": ("bytes_per_element", "{:g}"), "GB/s": ("gb_per_s", "{:.1f}"),
    "% in place": ("percent_of_roof", "{:.0f}"), "% copy": ("percent_of_copy", "{:.0f}"),
    "% streams": ("percent_of_streams", "{:.0f}"), "G dir/s": ("gdirections_per_s", "{:.2f}"),
    "eager G dir/s": ("eager_gdirections_per_s", "{:.2f}"),
    "compile G dir/s": ("compile_gdirections_per_s", "{:.2f}"), "x eager": ("x_eager", "{:.1f}"),
    "x reference": ("x_reference", "{:.1f}"), "x compile": ("x_compile", "{:.1f}"),
    "torch step": ("torch_step", "{}"), "x foreach": ("x_foreach", "{:.1f}"),
    "x fused": ("x_fused", "{:.1f}"), "x dense": ("x_dense", "{:.1f}"),
    "us": ("host_us", "{:.0f}"), "us/tensor": ("host_us_per_tensor", "{:.2f}"),
    "us above": ("host_us_above_memory", "{:.0f}"),
    "foreach above": ("foreach_host_us_above_memory", "{:.0f}"),
    "fused above": ("fused_host_us_above_memory", "{:.0f}"),
    "first above": ("first_host_us_above_memory", "{:.0f}"),
    "fused first above": ("fused_first_host_us_above_memory", "{:.0f}"),
    "calls": ("calls", "{}"), "eager calls": ("eager_calls", "{}"),
    "launches": ("launches", "{}"), "rounds": ("rounds", "{}"),
}  # fmt: skip
LEFT = ("op", "backend", "dtype", "list", "caches", "torch step")


def print_table(rows: list[Row], head: dict[str, str]) -> None:
    """A table by rich without empty columns; where rich is not installed (GPU hosts often have
    torch alone), the CSV.
    """
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        write_rows(sys.stdout, rows, head)
        return
    console = Console(width=230)
    console.print(" | ".join(f"{k}: {v}" for k, v in head.items()), highlight=False)
    table = Table(caption="%: of roofs measured in the same rounds; x: ratio of times")
    cells = {
        heading: ["-" if r.get(name) is None else form.format(r[name]) for r in rows]
        for heading, (name, form) in COLUMNS.items()
    }
    cells = {h: texts for h, texts in cells.items() if any(t != "-" for t in texts)}
    for heading in cells:
        left = heading in LEFT
        table.add_column(heading, justify="left" if left else "right", no_wrap=left)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    console.print(table)


def print_verdicts(found: list[Verdict]) -> None:
    """The promises, the missed ones last."""
    if not found:
        return
    print("targets")
    width = max(len(v.op) for v in found)
    for v in sorted(found, key=lambda v: not v.met):
        number = "-" if v.measured is None else f"{v.measured:.1f}"
        print(f"  {v.op:{width}}  {v.promise}: {number}, {v.text}")
    print(f"{sum(v.met for v in found)} of {len(found)} met")


def cell_text(value: object) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def write_rows(f: TextIO, rows: list[Row], head: dict[str, str], header: bool = True) -> None:
    writer = csv.DictWriter(f, fieldnames=(*head, *FIELDS))
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow(head | {k: cell_text(v) for k, v in row.items()})


def check_columns(path: Path, head: dict[str, str]) -> None:
    """Refuse, before anything is measured, a file whose columns are those of another version."""
    if not path.exists():
        return
    with path.open(newline="") as f:
        found = next(csv.reader(f), [])
    if found != [*head, *FIELDS]:
        raise SystemExit(f"{path} has other columns than this version writes: move it away")


def append_csv(path: Path, rows: list[Row], head: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as f:
        write_rows(f, rows, head, header=new)


def write_json(path: Path, rows: list[Row], head: dict[str, str]) -> None:
    """One document of one run: machine, versions, commit and command, then the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    filled = [dict.fromkeys(FIELDS) | row for row in rows]
    path.write_text(json.dumps({"header": head, "rows": filled}, indent=1) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Rows of a stored CSV or JSON, with the columns of the header in each."""
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        return [document["header"] | row for row in document["rows"]]
    with path.open(newline="") as f:
        return list(csv.DictReader(f))
