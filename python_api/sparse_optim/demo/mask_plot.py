"""Picture of the masks of Sparse SAM: how much of each layer is perturbed, and where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._support import require
from .compare import Row

CELLS = 48  # of an image at most, per side
PERTURBED = "#0072B2"
_COLUMNS = 4  # images beside each other


def live_shares(masks: dict[str, Tensor]) -> dict[str, float]:
    """Per cent of ones of every mask.

    Example:
        >>> live_shares({"a": torch.tensor([True, False]), "b": torch.ones(3, dtype=torch.bool)})
        {'a': 50.0, 'b': 100.0}
    """
    return {n: 100.0 * int(m.sum()) / m.numel() for n, m in masks.items() if m.numel()}


def _bounds(size: int, cells: int) -> list[int]:
    return [i * size // cells for i in range(cells + 1)]


def mask_image(mask: Tensor, cells: int = CELLS) -> Tensor:
    """A mask as a grid of at most ``cells`` times ``cells`` shares.

    Args:
        mask: bool [outputs, ...]; read as outputs by everything else.
        cells: largest number of rows and columns.

    Returns:
        float64 [rows, columns], the share of ones in each part of the mask, in [0, 1]; where the
        mask is small enough, its entries.

    Example:
        >>> mask = torch.tensor([[True, False, True, True], [False, False, True, True]])
        >>> mask_image(mask, 2)
        tensor([[0.5000, 1.0000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    table = mask.reshape(mask.shape[0], -1).double()
    rows, columns = (_bounds(size, min(size, cells)) for size in table.shape)
    total = torch.zeros(table.shape[0] + 1, table.shape[1] + 1, dtype=torch.float64)
    total[1:, 1:] = table.cumsum(0).cumsum(1)
    corners = total[rows][:, columns]
    ones = corners[1:, 1:] - corners[:-1, 1:] - corners[1:, :-1] + corners[:-1, :-1]
    heights, widths = (torch.tensor(b).diff() for b in (rows, columns))
    return ones / torch.outer(heights, widths)


def _bars(axis: Any, masks: dict[str, Tensor]) -> None:
    shares = live_shares(masks)
    at = range(len(shares))
    axis.barh(at, [100.0] * len(shares), 0.7, color="#ECECEC")
    axis.barh(at, list(shares.values()), 0.7, color=PERTURBED)
    for i, (name, share) in enumerate(shares.items()):
        axis.text(103, i, f"{share:.1f} % of {masks[name].numel():,}", va="center", fontsize=8)
    axis.set_yticks(at, list(shares))
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_xlim(0, 165)
    axis.set_xticks(range(0, 101, 25))
    axis.set_xlabel("perturbed entries, %")


def _image(axis: Any, name: str, mask: Tensor) -> None:
    axis.imshow(
        mask_image(mask).numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axis.set_title(f"{name}: {mask.shape[0]} x {mask[0].numel()}", fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(visible=True, color="#A0A0A0")


def _draw(part: Any, row: Row) -> None:
    """Bars on the left, images of the weights on the right."""
    weights = {n: m for n, m in row.masks.items() if m.dim() >= 2}
    lines = -(-len(weights) // _COLUMNS)
    part.suptitle(f"{row.model}, {row.method}", fontsize=11)
    left, right = part.subfigures(1, 2, width_ratios=(1, 1.7))
    _bars(left.subplots(), row.masks)
    axes = list(right.subplots(lines, min(len(weights), _COLUMNS), squeeze=False).flat)
    for axis, (name, mask) in zip(axes, weights.items(), strict=False):
        _image(axis, name, mask)
    for axis in axes[len(weights) :]:
        axis.set_visible(False)


def plot_masks(rows: Sequence[Row], path: Path) -> None:
    """Draw the masks of every row that has some, a line of pictures each.

    Args:
        rows: of the table; at least one with masks.
        path: of the PNG file.
    """
    (pyplot,) = require("matplotlib.pyplot")
    shown = [row for row in rows if row.masks]
    heights = [max(2.6, 0.8 + 0.3 * len(row.masks)) for row in shown]
    figure = pyplot.figure(figsize=(12.0, 0.5 + sum(heights)), layout="constrained")
    figure.suptitle("What Sparse SAM perturbs at the end (darker: more of a cell's entries)")
    parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)
    for part, row in zip(parts.flat, shown, strict=True):
        _draw(part, row)
    figure.savefig(path)
