"""restore_: copy the backup back, bit for bit."""

from __future__ import annotations

from torch import Tensor

from ._backup import unperturbed


def restore_ref(
    params: list[Tensor], masks: list[Tensor], backup: list[Tensor], ranks: list[Tensor]
) -> None:
    for i, param in enumerate(params):
        param.copy_(unperturbed(param, i, masks, backup, ranks))
