"""Tables of the study of Bregman training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ._support import require
from .methods import Plan
from .study import Case, Outcome, Summary

_BIT = math.log(2.0)  # nats per bit
Record = dict[str, Any]

METHOD_COLUMNS = {
    "method": "method", "sparsity_target_percent": "target %",
    "test_accuracy_percent_mean": "accuracy %", "test_accuracy_percent_deviation": "deviation",
    "bits_per_character_mean": "bits per\ncharacter", "bits_per_character_deviation": "deviation",
    "weight_sparsity_percent": "zero\nweights %", "theoretical_flops_percent": "FLOPs %\ntheory",
    "issued_flops_percent": "FLOPs %\nissued", "training_seconds": "seconds",
    "optimizer_ms_per_step": "optimizer\nms/step",
}  # fmt: skip
NOTES = (
    "FLOPs: of training, in per cent of dense SGD on the same samples; theory multiplies by "
    "nonzero weights only, issued is what the dense kernels of these runs computed",
    "seconds and ms: of one process, and only as quiet as the machine was",
)


def _text(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _shared(data: str, plan: Plan, case: Case, steps: int) -> Record:
    options = case.recipe.all_options()
    held = options.get("target_sparsity") is not None
    return {
        "data": data,
        "model": plan.model,
        "epochs": plan.epochs,
        "steps": steps,
        "batch_size": plan.batch_size,
        "method": case.method,
        "lr": options["lr"],
        "lam": options.get("lam", ""),
        "coarse_steps": options.get("coarse_steps", ""),
        "control": options["control"] if held else "",
        "sparsity_target_percent": _text(case.sparsity),
    }


def _result(data: str, mean: float, loss: float, suffix: str = "") -> Record:
    """Text is judged by its loss; how many characters are foreseen is told as well."""
    bits = _text(loss / _BIT, 4) if data == "stdlib" else ""
    return {f"test_accuracy_percent{suffix}": _text(mean), f"bits_per_character{suffix}": bits}


def _cost(run: Outcome | Summary) -> Record:
    return {
        "weight_sparsity_percent": _text(run.zeros),
        "theoretical_flops_percent": _text(run.flops[0]),
        "issued_flops_percent": _text(run.flops[1]),
        "training_seconds": _text(run.seconds),
        "optimizer_ms_per_step": _text(run.ms, 4),
    }


def run_records(outcomes: Sequence[Outcome], plan: Plan, data: str) -> list[Record]:
    """One record per run."""
    return [
        {
            **_shared(data, plan, o.case, o.steps),
            "seed": o.seed,
            **_result(data, o.accuracy, o.loss),
            **_cost(o),
        }
        for o in outcomes
    ]


def summary_records(summaries: Sequence[Summary], plan: Plan, data: str) -> list[Record]:
    """One record per case."""
    records = []
    for s in summaries:
        record = {**_shared(data, plan, s.case, s.steps), "seeds": s.seeds}
        record |= _result(data, s.mean, s.loss, "_mean")
        spread = {"test_accuracy_percent_deviation": "", "bits_per_character_deviation": ""}
        if s.deviation is not None and s.loss_deviation is not None:
            spread = _result(data, s.deviation, s.loss_deviation, "_deviation")
        records.append({**record, **spread, **_cost(s)})
    return records


def make_grid(summaries: Sequence[Summary], title: str, data: str) -> Any:
    """A rich table of the runs over m and lam: result, zero weights and FLOPs of each pair."""
    (table_module,) = require("rich.table")
    table = table_module.Table(title=title)
    lams = sorted({s.case.recipe.option("lam") for s in summaries})
    table.add_column("m")
    for lam in lams:
        table.add_column(f"lam {lam:g}", justify="right")
    lines: dict[int, dict[float, str]] = {}
    for s in summaries:
        result = f"{s.loss / _BIT:.3f}" if data == "stdlib" else f"{s.mean:.1f}"
        text = f"{result} | {s.zeros:.1f} | {s.flops[0]:.1f}"
        lines.setdefault(s.case.recipe.option("coarse_steps"), {})[s.case.recipe.option("lam")] = (
            text
        )
    for m, own in lines.items():
        table.add_row(str(m), *(own.get(lam, "") for lam in lams))
    return table
