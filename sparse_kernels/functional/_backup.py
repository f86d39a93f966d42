"""The two forms of a backup, as arguments: whole tensors, or one packed tensor with ranks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._check import Group, ListArg


class BackupArgs:
    """``masks``, ``backup`` and ``ranks`` of a call.

    Args:
        op: name for messages.
        masks: packed mask words, or None.
        backup: tensors like the parameters; with ``ranks`` one flat tensor.
        ranks: tables of ``mask_ranks``, or None.
        mutated: the op writes the backup.
        optional: the call may have no backup.

    Raises:
        ValueError: ``ranks`` without masks or without a flat tensor.
    """

    def __init__(
        self,
        op: str,
        masks: Sequence[Tensor] | None,
        backup: Sequence[Tensor] | Tensor | None,
        ranks: Sequence[Tensor] | None,
        *,
        mutated: bool,
        optional: bool,
    ) -> None:
        self.op, self.packed, self.mutated = op, None, mutated
        self.lists = [ListArg("masks", masks, kind="words")]
        if ranks is None:
            whole = ListArg("backup", backup, mutated=mutated, optional=optional)  # type: ignore[arg-type]
            self.lists.append(whole)
            return
        if masks is None:
            raise ValueError(f"{op}: ranks need masks")
        if not isinstance(backup, Tensor) or backup.dim() != 1 or not backup.is_contiguous():
            raise ValueError(f"{op}: with ranks, backup must be one contiguous tensor [entries]")
        self.packed = backup
        self.lists.append(ListArg("ranks", ranks, kind="ranks"))

    def check(self, params: Sequence[Tensor]) -> None:
        """ValueError unless a packed backup goes with the dtype and device of every parameter."""
        if self.packed is None:
            return
        for i, p in enumerate(params):
            if p.dtype != self.packed.dtype or p.device != self.packed.device:
                raise ValueError(
                    f"{self.op}: params[{i}] is {p.dtype} on {p.device}, the packed backup is "
                    f"{self.packed.dtype} on {self.packed.device}"
                )

    def of(self, group: Group) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """masks, backup and ranks of one group, as the dispatcher ops take them."""
        lists = group.lists
        if self.packed is None:
            return lists["masks"], lists["backup"], []
        return lists["masks"], [self.packed], lists["ranks"]

    def mutated_lists(self) -> list[ListArg]:
        """What ``bump_versions`` has to know beyond the lists."""
        if self.packed is None or not self.mutated:
            return []
        return [ListArg("backup", [self.packed], mutated=True)]
