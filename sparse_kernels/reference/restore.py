"""restore_: copy the backup back, bit for bit."""

from __future__ import annotations

from torch import Tensor

from ._common import keep_bits, store


def restore_ref(params: list[Tensor], backup: list[Tensor], masks: list[Tensor]) -> None:
    for i, (param, saved) in enumerate(zip(params, backup, strict=True)):
        store(param, saved, keep_bits(masks[i], param.numel()) if masks else None)
