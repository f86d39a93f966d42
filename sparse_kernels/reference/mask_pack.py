"""mask_pack_, mask_unpack_: bool tensors to one bit an element, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import keep_bits


def mask_pack_ref(masks: list[Tensor], words: list[Tensor]) -> None:
    for mask, word in zip(masks, words, strict=True):
        bits = torch.nn.functional.pad(
            mask.reshape(-1).long(), (0, 32 * word.numel() - mask.numel())
        )
        shifts = torch.arange(32, device=mask.device)
        word.copy_((bits.reshape(-1, 32) << shifts).sum(1))  # int64 to int32 keeps the low 32 bits


def mask_unpack_ref(words: list[Tensor], masks: list[Tensor]) -> None:
    for word, mask in zip(words, masks, strict=True):
        mask.copy_(keep_bits(word, mask.numel()).reshape(mask.shape))
