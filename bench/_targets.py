"""What the project promises of a row, and whether a stored row keeps it.

A row carries its promises in columns of its own, so that the table can be made from stored results.
The promises are for one tensor: on a CPU 25 million float32 weights, on a GPU 16 million or more in
float32 or bfloat16. Host times are for lists of small tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .cases import Case
from .host_cases import RESNET

ELEMENTS = 25_000_000
GPU_ELEMENTS = 1 << 24
GAUSSIAN_PERCENT = {"fp32": 75, "bf16": 45}  # of a GPU's copy, portable generator
CPU_HOST_US, GPU_HOST_US_PER_TENSOR = 100, 2

#: column of the promise -> (column of what was measured, how it reads, the sign of better)
PROMISES = {
    "target": ("x_eager", ">= {:g} x eager", 1),
    "target_streams": ("percent_of_streams", ">= {:g} % of the roof of the same streams", 1),
    "target_copy": ("percent_of_copy", ">= {:g} % of copy", 1),
    "target_compile": ("x_compile", ">= {:g} x torch.compile", 1),
    "target_fused": ("x_fused", ">= {:g} x torch's fused optimizer", 1),
    "target_host_us": ("host_us_above_memory", "<= {:g} us of host time above memory", -1),
}


def promised(case: Case, suite: str, name: str, row: dict[str, Any]) -> dict[str, float | None]:
    """The promises of a row that is otherwise measured; ``name`` is the list's."""
    made: dict[str, float | None] = dict.fromkeys(PROMISES)
    cpu, dtype, elements = row["device"] == "cpu", row["dtype"], row["elements"]
    if suite == "host":
        if case.whole_step or dtype != "fp32":
            return made
        if not cpu:
            made["target_host_us"] = GPU_HOST_US_PER_TENSOR * row["tensors"]
        elif name == RESNET:
            made["target_host_us"] = CPU_HOST_US
        return made
    large = (
        (dtype == "fp32" and elements == ELEMENTS)
        if cpu
        else (dtype in GAUSSIAN_PERCENT and elements >= GPU_ELEMENTS)
    )
    if not large and suite != "models":
        return made
    if row["x_compile"] is not None:
        made["target_compile"] = 1
    if suite == "models" or row["tensors"] != 1:
        return made
    if cpu:
        made |= {"target": case.target, "target_streams": case.percent}
        return made
    made["target_copy"] = GAUSSIAN_PERCENT[dtype] if case.gaussian else case.percent
    baseline = case.torch_step
    if baseline is not None and baseline.bytes_per_element >= case.bytes_per_element:
        made["target_fused"] = 1
    return made


@dataclass(frozen=True)
class Verdict:
    """One promise of one row."""

    op: str
    promise: str
    measured: float | None
    met: bool

    @property
    def text(self) -> str:
        return "not measured" if self.measured is None else "met" if self.met else "missed"


def _number(value: object) -> float | None:
    return None if value in (None, "") else float(value)  # type: ignore[arg-type]


def verdicts(rows: Iterable[dict[str, Any]]) -> list[Verdict]:
    """Every promise of rows as they are measured or as a CSV gives them back.

    What was not measured is not met.
    """
    found = []
    for row in rows:
        label = " ".join(
            str(row[k]) for k in ("suite", "op", "q", "dtype", "list", "backend") if row.get(k)
        )
        for column, (measured, form, sign) in PROMISES.items():
            limit, value = _number(row.get(column)), _number(row.get(measured))
            if limit is not None:
                met = value is not None and sign * value >= sign * limit
                found.append(Verdict(label, form.format(limit), value, met))
    return found
