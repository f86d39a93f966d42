"""The two forms of a backup, as arguments: whole tensors, or one packed tensor with ranks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._check import ListArg
from .._group import Group


class BackupArgs:
    """``masks``, ``backup`` and ``ranks`` of a call.

    Args:
        op: name for messages.
        masks: packed mask words, or None.
        backup: tensors like the parameters; with ``ranks`` one flat tensor.
        ranks: tables of ``mask_ranks``, or None.
        mutated: the op writes the backup.
        optional: the call may have no backup.
        names: of the masks and of the backup, for messages and as lists of a group.

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
        names: tuple[str, str] = ("masks", "backup"),
    ) -> None:
        self.op, self.packed, self.mutated, self.names = op, None, mutated, names
        words, kept = names
        self.lists = [ListArg(words, masks, kind="words")]
        if ranks is None:
            whole = ListArg(kept, backup, mutated=mutated, optional=optional)  # type: ignore[arg-type]
            self.lists.append(whole)
            return
        if masks is None:
            raise ValueError(f"{op}: ranks need {words}")
        if not isinstance(backup, Tensor) or backup.dim() != 1 or not backup.is_contiguous():
            raise ValueError(f"{op}: with ranks, {kept} must be one contiguous tensor [entries]")
        self.packed = backup
        self.lists.append(ListArg("ranks", ranks, kind="ranks"))

    def check(self, params: Sequence[Tensor], lead: str = "params") -> None:
        """ValueError unless a packed backup goes with the dtype and device of every parameter."""
        if self.packed is None:
            return
        for i, p in enumerate(params):
            if p.dtype != self.packed.dtype or p.device != self.packed.device:
                raise ValueError(
                    f"{self.op}: {lead}[{i}] is {p.dtype} on {p.device}, the packed "
                    f"{self.names[1]} is {self.packed.dtype} on {self.packed.device}"
                )

    def of(self, group: Group) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """masks, backup and ranks of one group, as the dispatcher ops take them."""
        lists, (words, kept) = group.lists, self.names
        if self.packed is None:
            return lists[words], lists[kept], []
        return lists[words], [self.packed], lists["ranks"]

    def mutated_lists(self) -> list[ListArg]:
        """What ``bump_versions`` has to know beyond the lists."""
        if self.packed is None or not self.mutated:
            return []
        return [ListArg(self.names[1], [self.packed], mutated=True)]
