"""Drop some live entries of a mask and grow as many others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .mask_topk import mask_topk


def mask_dropgrow(
    masks: Sequence[Tensor],
    live: int | Sequence[int],
    count: int | Sequence[int],
    drop_scores: Sequence[Tensor],
    grow_scores: Sequence[Tensor],
    *,
    drop_kind: str = "abs",
    grow_kind: str = "abs",
    drop_key: int | None = None,
    grow_key: int | None = None,
    regrow: bool = False,
    grow: int | Sequence[int] | None = None,
    within: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """Keep the best live entries of a mask, then set as many entries as were dropped.

    Of the ``live`` ones the ``live - count`` with the largest drop score stay; then the ``count``
    largest grow scores among the entries that were 0 before are set (``regrow``: among all that are
    not kept, so that a dropped one may return). The number of ones is conserved exactly. Two exact
    selections (``mask_topk``), no index tensors, no value to the host.

    Args:
        masks: int32 bit masks. Not modified.
        live: number of ones over the whole list, or per tensor.
        count: how many to drop, <= live; over the whole list, or per tensor, as ``live`` is.
        drop_scores, grow_scores: tensors that give the masks' shapes, as for ``mask_topk``.
        drop_kind, grow_kind, drop_key, grow_key: what they rank by, as for ``mask_topk``.
        regrow: dropped entries are candidates too.
        grow: how many to grow where it is not ``count``.
        within: int32 bit masks of the entries that may be set.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        New int32 bit masks.

    Raises:
        ValueError: lists do not fit, or a count is larger than what is live.
        BackendUnavailableError: the backend asked for is not there.

    Source: the exchange of Sparse SAM's dynamic masks, arXiv 2210.05177 (SSAM-D), with the counts
    conserved; SET, 10.1038/s41467-018-04316-3; RigL, arXiv 1911.11134.

    Example:
        >>> from sparse_kernels import pack_mask, unpack_mask
        >>> w, g = torch.tensor([0.1, 3.0, 0.0, 0.0]), torch.tensor([9.0, 9.0, 1.0, 2.0])
        >>> new = mask_dropgrow(pack_mask([w != 0]), 2, 1, [w], [g])
        >>> unpack_mask(new, [w.shape])
        [tensor([False,  True, False,  True])]
    """
    op = "mask_dropgrow"
    per_tensor = not isinstance(live, int)
    lives, drops = _listed(live), _listed(count)
    grows = drops if grow is None else _listed(grow)
    if not len(lives) == len(drops) == len(grows):
        raise ValueError(f"{op}: {len(lives)} live counts, {len(drops)} and {len(grows)} to move")
    for have, gone in zip(lives, drops, strict=True):
        if not 0 <= gone <= have:
            raise ValueError(f"{op}: count must be in [0, {have}], got {gone}")
    kept = [have - gone for have, gone in zip(lives, drops, strict=True)]
    new = mask_topk(
        drop_scores, kept if per_tensor else kept[0],
        kind=drop_kind, key=drop_key, among=masks, backend=backend,
    )  # fmt: skip
    closed = [w.clone() for w in new] if regrow else masks
    if within is not None:
        closed = [c | ~w for c, w in zip(closed, within, strict=True)]
    return mask_topk(
        grow_scores, grows if per_tensor else grows[0],
        kind=grow_kind, key=grow_key, among=closed, inverted=True, out=new, backend=backend,
    )  # fmt: skip


def _listed(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)
