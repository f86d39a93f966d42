"""Duals of the Bregman optimizers: how they begin, and what becomes of them when lam changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._bregman_state import BregmanState
from ._capturable import set_number
from ._lam_transfer import TRANSFERS, check_transfer, transfer_
from ._regularizers import check_start, math_dtype, subgradient
from ._support import check_int, check_number, label

OWN_DUAL = (torch.float32, torch.float64)  # as wide as the duals are


class BregmanDuals(BregmanState):
    """Mixin of ``BregmanOptimizer``: everything that makes or changes duals but the step."""

    if TYPE_CHECKING:  # of BregmanOptimizer

        @property
        def last_was_coarse(self) -> bool: ...

    # -- lam ---------------------------------------------------------------------------------

    @torch.no_grad()
    def set_lam(self, value: float, group: int | None = None, transfer: str = "rescale") -> None:
        """Change the threshold and take the duals along.

        Inside a coarse phase the change waits for the next full step: the support is fixed.

        Args:
            value: the new lam, >= 0; every group's own ``lam_scale`` multiplies it.
            group: number of the parameter group; None: every regularised one.
            transfer: "rescale" leaves the weights as they are and scales what zero weights have
                accumulated by new / old lam; "keep" leaves the duals, so that every live weight
                moves by -delta (new - old) sign(weight) and small ones die; "auto" keeps where lam
                rises and rescales where it falls.

        Raises:
            ValueError: lam is out of range, or there is no such transfer or group.
        """
        value = check_number("lam", value, 0.0)
        check_transfer(transfer)
        if group is not None:
            check_int("group", group, 0, len(self.param_groups))
        chosen = self.param_groups if group is None else [self.param_groups[group]]
        for g in chosen:
            if g["reg"] == "none":
                continue
            g["queued_lam"] = [value, TRANSFERS.index(transfer)]
        if not self.last_was_coarse:
            self._apply_queued_lam()

    def _apply_queued_lam(self) -> None:
        for group in self.param_groups:
            if group["queued_lam"] is None:
                continue
            value, number = group["queued_lam"]
            group["queued_lam"] = None
            self._leave_phase()
            old = float(group["lam"])
            set_number(group, "lam", value)
            known = self._with_dual(group)
            duals = [self._own[p]["dual"] for p in known]
            transfer_(group, known, duals, old, TRANSFERS[number], self.backend)
            self._recount(known)

    # -- duals -------------------------------------------------------------------------------

    def _has_dual(self, group: dict[str, Any], p: Tensor) -> bool:
        """Unregularised parameters in float32 or float64 are their own dual."""
        return group["reg"] != "none" or p.dtype not in OWN_DUAL

    def _with_dual(self, group: dict[str, Any]) -> list[Tensor]:
        return [p for p in group["params"] if "dual" in self._own.get(p, {})]

    def _recount(self, params: list[Tensor]) -> None:
        """Live counts of weights that were not written by a step."""
        self._live.update((p, (p.count_nonzero().reshape(1), 0)) for p in params)

    def _subgradient_dual(self, group: dict[str, Any], p: Tensor) -> Tensor:
        theta = p.detach().to(math_dtype(p))
        return theta / group["delta"] + subgradient(group, theta)

    def _make_duals(self, group: dict[str, Any], params: list[Tensor]) -> list[dict[str, Any]]:
        """Create what is not there yet; the states, for each of which torch hashes a tensor."""
        states = [self._own[p] for p in params]
        for p, own in zip(params, states, strict=True):
            if "dual" not in own and self._has_dual(group, p):
                check_start(group, p, label(self.param_groups, p))
                own["dual"] = self._subgradient_dual(group, p)
        return states

    @torch.no_grad()
    def init_dual(self) -> None:
        """Create the duals now, ``p / delta + subgradient(p)``, with the lam in force.

        Otherwise each is created at its parameter's first step. Existing ones stay.

        Raises:
            ValueError: a weight with "l1_pos" is negative; nothing is modified.
        """
        self._check_starts()
        for group in self.param_groups:
            self._make_duals(group, group["params"])

    def _check_starts(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                check_start(group, p, label(self.param_groups, p))

    @torch.no_grad()
    def sync_from_params(self) -> None:
        """Make the duals anew from the parameters, after editing those by hand.

        Discards what entries below the threshold have accumulated. Where ``writes_params`` is
        False, set it to True before editing.

        Raises:
            ValueError: a weight with "l1_pos" is negative; nothing is modified.
        """
        self._check_starts()
        self._leave_phase()
        for group in self.param_groups:
            own = [p for p in group["params"] if self._has_dual(group, p)]
            for p in own:
                dual = self._subgradient_dual(group, p)
                if "dual" in self._own[p]:  # its memory stays: a captured graph may read it
                    self._own[p]["dual"].copy_(dual)
                else:
                    self._own[p]["dual"] = dual
                self._own[p].pop("active", None)
            self._recount(own)

    def _leave_phase(self) -> None:
        """The duals change outside a step: the active sets have to be found again."""
        self._active.write_back(self._own)
        self._active.forget()
        self._begun = -1
