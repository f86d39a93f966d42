"""mask_apply_: +0.0 where the mask bit is 0."""

from __future__ import annotations

from torch import Tensor

from ._common import keep_bits, store


def mask_apply_ref(tensors: list[Tensor], masks: list[Tensor]) -> None:
    for tensor, words in zip(tensors, masks, strict=True):
        store(tensor, tensor.new_zeros(tensor.shape), ~keep_bits(words, tensor.numel()))
