"""The demo's table, on the terminal and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._support import require
from .compare import COMPARED_STEPS, Row

FLOPS_COLUMNS = ("training_flops_percent", "issued_flops_percent")
COLUMNS = (
    "model", "method", "backend", "steps", "test_accuracy_percent", "weight_sparsity_percent",
    *FLOPS_COLUMNS, "optimizer_ms_reference", "optimizer_ms_fused", "ratio",
    f"max_difference_{COMPARED_STEPS}_steps", "test_accuracy_percent_reference",
    "weight_sparsity_percent_reference",
)  # fmt: skip
TIME_COLUMNS = ("optimizer_ms_reference", "optimizer_ms_fused", "ratio")

NOTES = (
    "accuracy and sparsity: of the fused run; of both, reference / fused, where they differ",
    "training FLOPs: in per cent of SGD on the same samples (counted with the first layer's input "
    "gradient, which never runs); theory multiplies by nonzero weights only, issued is what the "
    "demo's dense kernels compute. Extra passes count, also those that find a mask",
    "optimizer ms: median per step without forward and backward (over whole cycles for m > 0); "
    "SAM, SSAM and ZO-SAM include SGD's step, which restores as it goes",
    'SGD: reference is torch.optim.SGD, fused is LinBreg(reg="none"), the same update; torch '
    "joins a multiplication and an addition in one rounding, hence the difference",
    "ZO-SAM: the reference computes normals in float64 and rounds; the fused kernel is within "
    "4 ulp of that",
    f"difference: largest absolute one between the two runs' weights in the first "
    f"{COMPARED_STEPS} steps; 0 means equal bits",
)


def as_record(row: Row) -> dict[str, Any]:
    """A row's values under the names of ``COLUMNS``, rounded to what they mean."""
    theory, issued = row.flops_percent
    values = (
        row.model, row.method, row.backend, row.steps, f"{row.accuracy[1]:.2f}",
        f"{row.sparsity[1]:.2f}", f"{theory:.2f}", f"{issued:.2f}", f"{row.ms[0]:.4f}",
        f"{row.ms[1]:.4f}", f"{row.ratio:.2f}", f"{row.max_difference:.3g}",
        f"{row.accuracy[0]:.2f}", f"{row.sparsity[0]:.2f}",
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line per row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(as_record(row) for row in rows)


def pair_text(pair: tuple[float, float]) -> str:
    """One number if both runs show the same, else "reference / fused".

    Example:
        >>> pair_text((98.04, 98.04)), pair_text((98.0, 97.5))
        ('98.0', '98.0 / 97.5')
    """
    reference, fused = (f"{value:.1f}" for value in pair)
    return fused if reference == fused else f"{reference} / {fused}"


def ms_text(value: float) -> str:
    """Milliseconds with three significant digits.

    Example:
        >>> ms_text(0.04567), ms_text(123.4)
        ('0.0457', '123')
    """
    digits = 4 if value < 0.1 else 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def flops_text(percent: tuple[float, float]) -> str:
    """Training FLOPs in words.

    Example:
        >>> flops_text((38.0, 99.5))
        '38.0 % of dense SGD in theory, 99.5 % issued'
    """
    return f"{percent[0]:.1f} % of dense SGD in theory, {percent[1]:.1f} % issued"


def nonzeros_text(layers: Mapping[str, tuple[int, int]]) -> str:
    """Nonzero weights of every layer; one that has none left passes no gradient on.

    Example:
        >>> nonzeros_text({"0.weight": (12, 144), "2.weight": (0, 90)})
        '  nonzero weights: 0.weight 12 of 144, 2.weight none of 90'
    """
    parts = (f"{name} {live or 'none'} of {total}" for name, (live, total) in layers.items())
    return f"  nonzero weights: {', '.join(parts)}"


def make_table(rows: Sequence[Row]) -> Any:
    """The rows as a rich table."""
    (table_module,) = require("rich.table")
    table = table_module.Table(title="Reference and fused runs from the same seed, on digits")
    table.add_column("model")
    table.add_column("method", no_wrap=True)
    for name in (
        "test\nacc. %", "weight\nsparsity %", "FLOPs %\ntheory", "FLOPs %\nissued",
        "ms/step\nreference", "ms/step\nfused", "times\nfaster",
        f"difference\n{COMPARED_STEPS} steps",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        if previous is not None and row.model != previous:
            table.add_section()
        table.add_row(
            row.model if row.model != previous else "", row.method, pair_text(row.accuracy),
            pair_text(row.sparsity), *(f"{percent:.1f}" for percent in row.flops_percent),
            ms_text(row.ms[0]), ms_text(row.ms[1]), f"{row.ratio:.1f}", f"{row.max_difference:.1e}"
            if row.max_difference else "0",
        )  # fmt: skip
        previous = row.model
    return table
