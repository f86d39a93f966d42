"""Bit masks: one bit an element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._check import ListArg, check_lists, check_tensor_list, grouped, words_for


def pack_mask(masks: Sequence[Tensor], *, backend: str | None = None) -> list[Tensor]:
    """Pack bool tensors into bit masks.

    Bit i (least significant first) of word w is element 32 w + i of the mask in row-major order;
    padding bits are 0.

    Args:
        masks: bool tensors of any shapes; True means "takes part".
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        One int32 tensor of ceil(numel / 32) words per mask, on its device.

    Raises:
        ValueError: not a list of bool tensors.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> pack_mask([torch.tensor([True, False, True])])
        [tensor([5], dtype=torch.int32)]
    """
    check_tensor_list("pack_mask", "masks", masks)
    for i, m in enumerate(masks):
        if m.dtype != torch.bool:
            raise ValueError(f"pack_mask: masks[{i}] is {m.dtype}, expected torch.bool")
    words = [m.new_empty(words_for(m.numel()), dtype=torch.int32) for m in masks]
    for g in grouped("mask_pack_", backend, [ListArg("masks", masks)], ordered=True):
        g.run(g.lists["masks"], [words[i] for i in g.indices])
    return words


def unpack_mask(
    words: Sequence[Tensor], shapes: Sequence[Sequence[int]], *, backend: str | None = None
) -> list[Tensor]:
    """Unpack bit masks into bool tensors; the inverse of ``pack_mask``.

    Args:
        words: int32 bit masks.
        shapes: shape of each mask.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        One contiguous bool tensor per mask, on its device.

    Raises:
        ValueError: lists differ in length, or words do not match a shape.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> unpack_mask(pack_mask([torch.tensor([True, False])]), [(2,)])
        [tensor([ True, False])]
    """
    op = "unpack_mask"
    check_tensor_list(op, "words", words)
    if len(shapes) != len(words):
        raise ValueError(f"{op}: shapes has {len(shapes)} entries, words has {len(words)}")
    masks = [w.new_empty(tuple(s), dtype=torch.bool) for w, s in zip(words, shapes, strict=True)]
    args = [ListArg("masks", masks), ListArg("words", words, kind="words")]
    whole = check_lists(op, args, floating=False)
    for g in grouped("mask_unpack_", backend, args, ordered=True, whole=whole):
        g.run(g.lists["words"], g.lists["masks"])
    return masks
