"""What an export tells about every layer and the whole model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass
class ExportedLayer:
    """One layer with a weight; what was not tried or measured is None.

    Attributes:
        layout: of the exported weight: "dense", "csr", "2:4" or "compact".
        reason: why it is dense, or empty.
        exported_bytes, exported_ms: in the sparse layout, also where it was tried and refused.
        max_difference: of the layer's outputs for the same inputs.
    """

    name: str
    shape: tuple[int, ...]
    nonzero_percent: float
    layout: str = "dense"
    reason: str = ""
    dense_bytes: int = 0
    exported_bytes: int | None = None
    dense_ms: float | None = None
    exported_ms: float | None = None
    max_difference: float | None = None


@dataclass
class ExportReport:
    """The exported model and what it costs.

    Attributes:
        model: the exported copy, in eval mode, for inference only.
        layers: a row for every linear and convolution layer.
        dense_bytes, exported_bytes: of all parameters and buffers.
        dense_ms, exported_ms: median times of a whole forward on the example.
        max_difference: of the two models' outputs on the example.
        relative_difference: of both models in float64, relative to the largest output.
        bound: what ``relative_difference`` was checked against.
    """

    model: nn.Module
    layers: list[ExportedLayer]
    dense_bytes: int
    exported_bytes: int
    dense_ms: float
    exported_ms: float
    max_difference: float
    relative_difference: float
    bound: float

    def records(self) -> list[dict[str, str]]:
        """The rows and the total as text, "-" where there is nothing."""
        rows = [_record(layer) for layer in self.layers]
        faster = self.dense_ms / self.exported_ms if self.exported_ms else float("nan")
        total = ExportedLayer(
            "whole model", (), float("nan"), "", f"{faster:.2f} times as fast", self.dense_bytes,
            self.exported_bytes, self.dense_ms, self.exported_ms, self.max_difference,
        )  # fmt: skip
        return [*rows, _record(total)]

    def as_table(self) -> str:
        """The records in aligned columns."""
        records = self.records()
        lines = [list(records[0]), *([*record.values()] for record in records)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def _record(layer: ExportedLayer) -> dict[str, str]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None or value != value else form.format(value)

    return {
        "layer": layer.name,
        "shape": "x".join(map(str, layer.shape)) or "-",
        "nonzero %": shown(layer.nonzero_percent, "{:.1f}"),
        "layout": layer.layout or "-",
        "dense bytes": shown(layer.dense_bytes, "{:,}"),
        "sparse bytes": shown(layer.exported_bytes, "{:,}"),
        "dense ms": shown(layer.dense_ms, "{:.3f}"),
        "sparse ms": shown(layer.exported_ms, "{:.3f}"),
        "difference": shown(layer.max_difference, "{:.1e}"),
        "note": layer.reason,
    }
