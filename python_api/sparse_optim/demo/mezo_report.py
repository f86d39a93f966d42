"""The tables and the picture of ``study-mezo``."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._support import require
from .commands import TrainOptions
from .data import Data
from .machine import machine_name
from .plots import STYLE
from .report import ms_text
from .study_report import provenance, write_records

if TYPE_CHECKING:
    from .mezo_study import Tuning

NOTES = (
    "held-out loss: bits per character of windows in files that are not trained on",
    "ms outside the forwards: median per step of perturbing, restoring and updating the weights",
    "added memory: most bytes of torch tensors that the first step holds at once beyond those "
    "alive before it, as torch's allocator tells; forwards and the backup of the weights included",
)
_COLORS = ("#0072B2", "#009E73", "#CC79A7", "#D55E00")


def facts(command: str, device: str) -> dict[str, str]:
    """What made the tables: the last columns of each of their lines."""
    made = provenance("", command)
    del made["backend"]  # differs from line to line
    return {
        "machine": machine_name(device),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **made,
    }


def _bits(loss: float) -> float:
    return loss / math.log(2.0)


def records(tunings: Sequence[Tuning], shared: TrainOptions, data: Data) -> list[dict[str, Any]]:
    """One record per fine-tuning."""
    found = []
    for t in tunings:
        first, last = t.curve[0], t.curve[-1]
        found.append(
            {
                "model": shared.model_name, "data": data.summary(), "method": t.recipe.label,
                "backend": t.backend, "moved_percent": f"{t.moved:.2f}", "seed": t.seed,
                "lr": t.recipe.option("lr"), "smoothing": t.recipe.option("smoothing"),
                "batch_size": shared.batch_size, "steps": last[0],
                "held_out_loss_before": f"{first[2]:.4f}",
                "held_out_loss_after": f"{last[2]:.4f}",
                "bits_per_character_before": f"{_bits(first[2]):.4f}",
                "bits_per_character_after": f"{_bits(last[2]):.4f}",
                "accuracy_percent_before": f"{first[3]:.2f}",
                "accuracy_percent_after": f"{last[3]:.2f}",
                "ms_per_step": ms_text(t.ms), "ms_outside_forwards": ms_text(t.own_ms),
                "added_bytes_step": t.added, "added_bytes_forward": t.added_forward,
            }
        )  # fmt: skip
    return found


def curve_records(tunings: Sequence[Tuning]) -> list[dict[str, Any]]:
    """One record per evaluation."""
    return [
        {
            "method": t.recipe.label, "seed": t.seed, "step": step,
            "training_loss": "" if loss is None else f"{loss:.4f}",
            "held_out_loss": f"{held_out:.4f}", "accuracy_percent": f"{accuracy:.2f}",
        }
        for t in tunings
        for step, loss, held_out, accuracy in t.curve
    ]  # fmt: skip


def make_table(tunings: Sequence[Tuning]) -> Any:
    """The fine-tunings as a rich table."""
    (table_module,) = require("rich.table")
    table = table_module.Table(title="Fine-tuning without gradients, from the same weights")
    table.add_column("method", no_wrap=True)
    for name in (
        "seed", "bits per char.\nbefore", "\nafter", "ms/step", "outside the\nforwards",
        "added memory\nMB", "of a\nforward",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for t in tunings:
        table.add_row(
            t.recipe.label, str(t.seed), f"{_bits(t.curve[0][2]):.4f}",
            f"{_bits(t.curve[-1][2]):.4f}", ms_text(t.ms), ms_text(t.own_ms),
            f"{t.added / 1e6:.1f}", f"{t.added_forward / 1e6:.1f}",
        )  # fmt: skip
    return table


def plot_curves(tunings: Sequence[Tuning], title: str, path: Path) -> None:
    """Held-out loss over the steps, a line per method and seed.

    Args:
        tunings: of any methods and seeds.
        title: of the picture.
        path: of the PNG file.
    """
    matplotlib, pyplot = require("matplotlib", "matplotlib.pyplot")
    pyplot.switch_backend("agg")
    labels = list(dict.fromkeys(t.recipe.label for t in tunings))
    with matplotlib.rc_context(STYLE):
        figure, axis = pyplot.subplots(figsize=(7.6, 4.6), layout="constrained")
        for t in tunings:
            place = labels.index(t.recipe.label)
            first = next(other for other in tunings if other.recipe.label == t.recipe.label)
            axis.plot(
                [entry[0] for entry in t.curve], [_bits(entry[2]) for entry in t.curve],
                color=_COLORS[place % len(_COLORS)], linewidth=1.8,
                linestyle=("-", "--", ":")[place % 3], label=t.recipe.label if t is first else None,
            )  # fmt: skip
        axis.set_xlabel("steps")
        axis.set_ylabel("held-out bits per character")
        axis.set_title(title)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False)
        figure.savefig(path)
        pyplot.close(figure)


def write(
    tunings: Sequence[Tuning], shared: TrainOptions, data: Data, made: dict[str, str], folder: Path
) -> list[Path]:
    """Write mezo.csv, mezo_curve.csv and mezo.png; return their paths.

    Raises:
        OSError: a file cannot be written.
    """
    paths = [folder / name for name in ("mezo.csv", "mezo_curve.csv", "mezo.png")]
    write_records(records(tunings, shared, data), made, paths[0])
    write_records(curve_records(tunings), made, paths[1])
    plot_curves(tunings, f"MeZO fine-tunes a character model on {data.name}", paths[2])
    return paths
