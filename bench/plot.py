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
    with_roof = [r for r in rows if points([r])]
    shares = [
        (label(r), p[0], p[3]) for r, p in zip(with_roof, found, strict=True) if p[3] is not None
    ]
    size = (13, max(6.0, 0.13 * len(shares) + 1.0))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=size, width_ratios=(3, 2), layout="constrained"
    )
    left.set_box_aspect(0.8)
    left.set_anchor("N")
    colors = {suite: f"C{i}" for i, suite in enumerate(dict.fromkeys(p[0] for p in found))}
    for suite, color in colors.items():
        mine = [p for p in found if p[0] == suite]
        left.scatter(
            [p[1] for p in mine], [p[2] / 1e9 for p in mine], s=16, c=color, label=suite, zorder=3
        )
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
    right.barh(
        range(len(shares)), [s for *_, s in shares], color=[colors[suite] for _, suite, _ in shares]
    )
    right.axvline(BEST, color="black", lw=1, ls=":")
    right.set_yticks(range(len(shares)), [name for name, *_ in shares], fontsize=6)
    right.set_ylim(len(shares) - 0.4, -0.6)
    streams = any(number(r, "percent_of_streams") is not None for r in with_roof)
    right.set_xlabel("% of the roof of the same streams" if streams else "% of copy")
    first = rows[0]
    figure.suptitle(f"{first['machine']}, torch {first['torch']}, {first['date']}", fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, metadata={"Software": None} if out.suffix == ".png" else None)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="stored CSV or JSON files")
    parser.add_argument("--out", type=Path, required=True, help="png, svg or pdf")
    args = parser.parse_args(argv)
    draw([row for path in args.results for row in read_rows(path)], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
