"""A roofline picture from stored results, and from nothing else.

    python -m bench.plot bench/results/*_cpu.csv --out docs/results/roofline_cpu.png

Left: bytes per element against elements per second; the lines are the roofs, bandwidth over bytes
per element, drawn from the medians of the rows' own roofs. Right: every row as per cent of the roof
of its own streams (of the copy, where that was not measured). Roofs move between runs and even
between rows of a run, so the right half is the one to judge by. Rows without a roof (suite host)
are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from ._output import Row, read_rows

LINES = {"roof_gb_per_s": ("in place", "-"), "copy_gb_per_s": ("copy", "--")}
BEST = 90


def number(row: Row, column: str) -> float | None:
    value = row.get(column)
    return None if value in (None, "") else float(value)


def points(rows: list[Row]) -> list[tuple[str, float, float, float | None]]:
    """(suite, bytes per element, elements per second, per cent of the streams or the copy)."""
    found = []
    for row in rows:
        moved, rate = number(row, "bytes_per_element"), number(row, "gb_per_s")
        if moved and rate and number(row, "roof_gb_per_s"):
            share = number(row, "percent_of_streams")
            share = number(row, "percent_of_copy") if share is None else share
            found.append((str(row["suite"]), moved, rate * 1e9 / moved, share))
    return found


def label(row: Row) -> str:
    parts = [row["op"], f"q={row['q']}" if row.get("q") else "", row["dtype"], row["backend"]]
    if row["suite"] == "models":
        parts.append(row["list"])
    return " ".join(str(p) for p in parts if p)


def draw(rows: list[Row], out: Path) -> None:
    """Write the picture; its format is that of the file's name.

    Raises:
        ValueError: no row has a roof.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = points(rows)
    if not found:
        raise ValueError("no row has a roof to be drawn against")
    shown = [(label(r), s) for r, (_, _, _, s) in zip(_with_roof(rows), found, strict=True)]
    shares = [(name, s) for name, s in shown if s is not None]
    height = max(5.0, 0.16 * len(shares) + 1.5)
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, height), width_ratios=(3, 2))
    for suite in dict.fromkeys(p[0] for p in found):
        mine = [p for p in found if p[0] == suite]
        left.scatter([p[1] for p in mine], [p[2] / 1e9 for p in mine], s=18, label=suite, zorder=3)
    ends = [min(p[1] for p in found), max(p[1] for p in found)]
    for column, (name, style) in LINES.items():
        rates = [v for r in rows if (v := number(r, column)) is not None]
        if rates:
            rate = statistics.median(rates)
            left.plot(ends, [rate / e for e in ends], style, color="black", lw=1, zorder=2,
                      label=f"{name}, {rate:.0f} GB/s")  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="bytes per element", ylabel="10^9 elements per s")
    left.legend(fontsize=8)
    left.grid(which="both", alpha=0.2)
    names, values = [n for n, _ in shares], [s for _, s in shares]
    right.barh(range(len(names)), values, color="tab:blue", height=0.7)
    right.axvline(BEST, color="black", lw=1, ls=":")
    right.set_yticks(range(len(names)), names, fontsize=6)
    right.invert_yaxis()
    right.set_xlabel("% of the roof of the same streams")
    first = rows[0]
    figure.suptitle(f"{first['machine']}, torch {first['torch']}, {first['date']}", fontsize=10)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, metadata={"Software": None} if out.suffix == ".png" else None)
    plt.close(figure)


def _with_roof(rows: list[Row]) -> list[Row]:
    return [r for r in rows if points([r])]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="stored CSV or JSON files")
    parser.add_argument("--out", type=Path, required=True, help="png, svg or pdf")
    args = parser.parse_args(argv)
    draw([row for path in args.results for row in read_rows(path)], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
