"""The command ``export``: a trained model's layers in a layout for inference, checked and timed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..export import LAYOUTS, ExportReport, export_model
from . import arguments, checkpoint
from ._support import UserError, require
from .commands import check_device, make_console


@dataclass(frozen=True)
class ExportOptions:
    """What `sparse-optim export` was asked for."""

    load: Path
    layout: str = "auto"
    batch_size: int = 64
    device: str = "cpu"
    threads: int = 1
    tolerance: float | None = None


def add_export(commands: Any) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "export", allow_abbrev=False,
        help="sparse or smaller layers for inference from what train --save wrote",
        description="Turns a trained model into one for inference that uses its zero weights, "
        "checks that the outputs agree, and prints size and time of every layer on random inputs, "
        "also where sparse is slower.",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--load", type=Path, required=True, metavar="FILE", help="what train --save wrote"
    )  # fmt: skip
    add(
        "--layout", choices=LAYOUTS, default="auto",
        help="csr; 2:4 (CUDA, 16 bits); auto: the fastest of both or dense; compact: dense layers "
        "without units that are constant or unread (default auto)",
    )  # fmt: skip
    add(
        "--batch-size", type=arguments.integer(1), default=64, metavar="N",
        help="samples of the inputs that the times are taken with (default 64)",
    )  # fmt: skip
    add(
        "--tolerance", type=arguments.number(0.0), metavar="X",
        help="largest difference allowed between the outputs (default: rounding bounds only)",
    )  # fmt: skip
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    arguments.add_threads(parser)


def _example(shape: tuple[int, ...], classes: int, batch: int) -> Tensor:
    """Random images, or random characters if the shape is a window."""
    generator = torch.Generator().manual_seed(0)
    if len(shape) == 1:
        return torch.randint(classes, (batch, *shape), generator=generator)
    return torch.randn(batch, *shape, generator=generator)


def make_table(report: ExportReport, title: str) -> Any:
    """The records as a rich table."""
    module, boxes = require("rich.table", "rich.box")
    table = module.Table(title=title, box=boxes.SIMPLE, padding=(0, 1), pad_edge=False)
    records = report.records()
    for name in records[0]:
        left = name in ("layer", "layout", "note")
        table.add_column(
            name.replace(" ", "\n"), justify="left" if left else "right", no_wrap=name != "note"
        )
    for i, record in enumerate(records):
        if i == len(records) - 1:
            table.add_section()
        table.add_row(*record.values())
    return table


def run_export(options: ExportOptions) -> None:
    """Export the model of a file and print what came of it.

    Raises:
        UserError: the file, the device or a package is missing, or the outputs do not agree.
    """
    require("rich.table", "rich.console")
    check_device(options.device)
    torch.set_num_threads(options.threads)
    saved, weights = checkpoint.read(options.load)
    model = checkpoint.build_model(options.load, saved, weights).to(options.device)
    example = _example(tuple(saved["shape"]), saved["classes"], options.batch_size)
    try:
        report = export_model(model, example.to(options.device), options.layout, options.tolerance)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    console = make_console()
    title = f"{options.load.name}: {saved['model']}, layout {options.layout}"
    console.print(make_table(report, title))
    console.print(
        f"Times: medians in milliseconds for {options.batch_size} random inputs on "
        f"{options.device}, {options.threads} thread(s). Outputs differ by "
        f"{report.max_difference:.1e}; in float64 by {report.relative_difference:.1e} of the "
        f"largest (bound {report.bound:.1e}).",
        highlight=False,
    )
    share = 100.0 * report.exported_bytes / report.dense_bytes
    speed = report.dense_ms / report.exported_ms
    word = "faster" if speed >= 1.0 else "slower"
    factor = max(speed, 1.0 / speed)
    console.print(f"size {share:.1f} % of dense, {factor:.2f} times {word}", highlight=False)
