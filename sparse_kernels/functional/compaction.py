"""The entries of a support: which they are, and moving them in and out of contiguous memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .._check import (
    ListArg,
    bump_versions,
    check_lists,
    check_scalar,
    check_tensor_list,
    grouped,
    words_for,
)
from .mask_count import _ranks_and_total

_ALIGNED = 64  # bytes: a cache line, and what vector loads want


def live_mask(
    duals: Sequence[Tensor], lam: float, *, nonnegative: bool = False, backend: str | None = None
) -> list[Tensor]:
    """Bit masks of the entries whose dual is beyond the threshold: those that are not zero.

    Args:
        duals: tensors, float32 or float64.
        lam: threshold, >= 0.
        nonnegative: only ``dual > lam`` counts, not ``dual < -lam``.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        int32 bit masks as ``pack_mask`` makes them; 1 where not ``|dual| <= lam`` (NaN is live).

    Raises:
        ValueError: not a list of such tensors, or lam out of range.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> live_mask([torch.tensor([0.5, -2.0, 1.0])], 0.5)
        [tensor([6], dtype=torch.int32)]
    """
    op = "live_mask"
    check_tensor_list(op, "duals", duals)
    check_scalar(op, "lam", lam, 0.0)
    for i, d in enumerate(duals):
        if d.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{op}: duals[{i}] is {d.dtype}, expected float32 or float64")
    words = [d.new_empty(words_for(d.numel()), dtype=torch.int32) for d in duals]
    args = [ListArg("duals", duals), ListArg("words", words, mutated=True, kind="words")]
    whole = check_lists(op, args)
    for g in grouped("live_mask_", backend, args, ordered=True, whole=whole):
        g.run(g.lists["duals"], g.lists["words"], lam, nonnegative)
    return words


def mask_index(masks: Sequence[Tensor], *, backend: str | None = None) -> list[Tensor]:
    """Numbers of the entries with bit 1, ascending.

    The counts come to the host, once for all masks, since the result's size depends on them.

    Args:
        masks: int32 bit masks (``pack_mask``) of one device, padding bits 0, of fewer than 2^31
            entries each.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        One int32 tensor per mask.

    Raises:
        ValueError: not a list of int32 tensors, several devices, or too many entries.
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> from sparse_kernels import pack_mask
        >>> mask_index(pack_mask([torch.tensor([True, False, True])]))
        [tensor([0, 2], dtype=torch.int32)]
    """
    op = "mask_index"
    check_tensor_list(op, "masks", masks)
    for i, m in enumerate(masks):
        if 32 * m.numel() >= 2**31:
            raise ValueError(f"{op}: masks[{i}] has {32 * m.numel()} entries, 2^31 or more")
    ranks, total = _ranks_and_total(op, masks, backend)
    if not masks:
        return []
    heads = [r[:1] if r.numel() else r.new_zeros(1) for r in ranks]
    firsts = torch.cat([*heads, total.reshape(1)]).tolist()
    for i in range(len(masks) - 1, -1, -1):  # a mask without words stands where the next begins
        firsts[i] = firsts[i] if ranks[i].numel() else firsts[i + 1]
    counts = [b - a for a, b in itertools.pairwise(firsts)]
    index = [m.new_empty(n) for m, n in zip(masks, counts, strict=True)]
    args = [
        ListArg("masks", masks),
        ListArg("ranks", ranks, kind=torch.int64, sizes=[r.numel() for r in ranks]),
        ListArg("index", index, mutated=True, kind=torch.int32, sizes=counts),
    ]
    whole = check_lists(op, args, floating=False)
    for g in grouped("mask_index_", backend, args, ordered=True, whole=whole):
        g.run(g.lists["masks"], g.lists["ranks"], g.lists["index"])
    return index


def empty_aligned(sizes: Sequence[int], like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Uninitialised 1-D tensors in one allocation, each beginning at a multiple of 64 bytes."""
    step = _ALIGNED // torch.empty((), dtype=dtype).element_size()
    firsts, end = [], 0
    for n in sizes:
        firsts.append(end)
        end += -(-n // step) * step
    flat = like.new_empty(end, dtype=dtype)
    return [flat[first : first + n] for first, n in zip(firsts, sizes, strict=True)]


def _entry_args(
    op: str, tensors: Sequence[Tensor], index: Sequence[Tensor], runs: Sequence[int] | None,
    values: Sequence[Tensor] | None, mutated: str,
) -> tuple[list[ListArg], list[int]]:  # fmt: skip
    check_tensor_list(op, "tensors", tensors)
    check_tensor_list(op, "index", index)
    lengths = [1] * len(tensors) if runs is None else [int(r) for r in runs]
    if len(index) != len(tensors) or len(lengths) != len(tensors):
        raise ValueError(
            f"{op}: tensors, index and runs have {len(tensors)}, {len(index)} and "
            f"{len(lengths)} entries"
        )
    for i, (t, run) in enumerate(zip(tensors, lengths, strict=True)):
        if run < 1 or t.numel() % run:
            raise ValueError(f"{op}: runs[{i}] {run} does not divide {t.numel()} elements")
    sizes = [x.numel() * run for x, run in zip(index, lengths, strict=True)]
    if values is None:
        values = []
        for t, n in zip(tensors, sizes, strict=True):
            values.append(t.new_empty(n))
        if tensors and all(t.dtype == tensors[0].dtype for t in tensors):
            values = empty_aligned(sizes, tensors[0], tensors[0].dtype)
    return [
        ListArg("tensors", tensors, mutated=mutated == "tensors"),
        ListArg("index", index, kind=torch.int32, sizes=[x.numel() for x in index]),
        ListArg("values", values, mutated=mutated == "values", sizes=sizes),
    ], lengths


def gather_entries(
    tensors: Sequence[Tensor],
    index: Sequence[Tensor],
    runs: Sequence[int] | None = None,
    *,
    out: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """Copy the entries of a support into contiguous memory.

    Args:
        tensors: any dtype of 2, 4 or 8 bytes.
        index: int32 tensors: which runs of each tensor, as ``mask_index`` gives them.
        runs: length of a run per tensor: entry k of ``index`` stands for elements
            ``run * index[k] ... run * index[k] + run - 1``; None: 1.
        out: flat tensors (mutated) of ``run * len(index)`` elements; None: new ones.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        ``out``; new tensors share one allocation, in the order of the list.

    Raises:
        ValueError: lists do not fit.
        RuntimeError: an index is out of range (on the CPU; elsewhere such a run is left out).
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> gather_entries([torch.tensor([5.0, 6.0, 7.0, 8.0])], [torch.tensor([1]).int()], [2])
        [tensor([7., 8.])]
    """
    op = "gather_entries"
    args, lengths = _entry_args(op, tensors, index, runs, out, "values")
    whole = check_lists(op, args, floating=False)
    for g in grouped("gather_entries_", backend, args, ordered=True, whole=whole):
        own = [lengths[i] for i in g.indices]
        g.run(g.lists["tensors"], g.lists["index"], own, g.lists["values"])
    if out is not None:
        bump_versions(args)
    values = args[-1].tensors
    assert values is not None
    return list(values)


def scatter_entries_(
    tensors: Sequence[Tensor],
    index: Sequence[Tensor],
    values: Sequence[Tensor],
    runs: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> None:
    """Copy what ``gather_entries`` gave, or what became of it, to where it came from.

    Args:
        tensors: (mutated) any dtype of 2, 4 or 8 bytes; entries outside the support stay.
        index, runs: as for ``gather_entries``; no number may stand twice in one tensor's index.
        values: flat tensors of ``run * len(index)`` elements.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: lists do not fit, a tensor requires grad in grad mode.
        RuntimeError: an index is out of range (on the CPU; elsewhere such a run is left out).
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> w = torch.zeros(4)
        >>> scatter_entries_([w], [torch.tensor([1]).int()], [torch.tensor([7.0, 8.0])], [2])
        >>> w
        tensor([0., 0., 7., 8.])
    """
    op = "scatter_entries_"
    args, lengths = _entry_args(op, tensors, index, runs, values, "tensors")
    whole = check_lists(op, args, floating=False)
    for g in grouped(op, backend, args, ordered=True, whole=whole):
        own = [lengths[i] for i in g.indices]
        g.run(g.lists["tensors"], g.lists["index"], own, g.lists["values"])
    bump_versions(args)
