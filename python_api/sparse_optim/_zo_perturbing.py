"""What ZO-SAM perturbs, whose weights they are, and its checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._base import PerturbingOptimizer
from ._bitmask import BitMask
from ._policy import Scope
from ._support import check_number, name_of, trainable
from ._weight_mask import MaskOfParams, Masks, checked_masks
from ._zo_options import ZeroOrder


class ZeroOrderPerturbing(ZeroOrder, PerturbingOptimizer):
    """A perturbing optimizer whose perturbation is made of random directions."""

    perturb_scope: Scope | None
    _own: MaskOfParams  # what may be perturbed among the weights that exist
    _steps: int

    def _check_group(self, group: dict[str, Any]) -> None:
        check_number("rho", group["rho"], 0.0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters get the next numbers of the stream and no mask.

        Raises:
            RuntimeError: the weights are perturbed, or they have float32 masters.
            ValueError: an option is out of range.
        """
        if "_directions" in self.__dict__ and self._directions.live:
            raise RuntimeError("ZOSAM.add_param_group: not with live 16-bit weights")
        super().add_param_group(param_group)
        if "_directions" in self.__dict__:
            self._number_added()

    # -- what is perturbed -------------------------------------------------------------------

    def _rhos(self) -> dict[Tensor, float]:
        """Radius of every parameter that is perturbed."""
        rho_of = {
            p: check_number("rho", g["rho"], 0.0) for g in self.param_groups for p in g["params"]
        }
        chosen = [p for p in trainable(self.param_groups) if rho_of[p] > 0.0]
        if self.perturb_scope is not None:
            scope, groups = self.perturb_scope, self.param_groups
            chosen = [p for p in chosen if scope(name_of(groups, p), p)]
        return {p: rho_of[p] for p in chosen}

    @property
    def mask(self) -> BitMask | None:
        """What is perturbed among the weights that exist, as ``set_masks`` took it, or None."""
        return self._own.mask

    def set_masks(self, masks: Masks | None) -> None:
        """Perturb some entries only; all that exist are trained.

        Args:
            masks: bool tensors shaped like the trainable parameters, in group order, or a BitMask,
                such as a policy's ``compute`` gives; None: all that exist.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: number, shape, dtype or device does not fit; the old mask stays.
        """
        self._refuse_perturbed("set_masks")
        taken: tuple[list[Tensor], BitMask | None] = ([], None)
        if masks is not None:
            self._refuse_shards_under_masks()
            taken = checked_masks("set_masks", self.param_groups, masks)
        self._own.take(*taken)
        self._mask_changed()

    def set_weight_mask(self, masks: Masks | None, *, keep_state: bool = False) -> None:
        if masks is not None:
            self._refuse_shards_under_masks()
        super().set_weight_mask(masks, keep_state=keep_state)
        self._round_masters()

    set_weight_mask.__doc__ = PerturbingOptimizer.set_weight_mask.__doc__

    def _mask_changed(self) -> None:
        params = trainable(self.param_groups)
        weights, own = self._weights.over(params), self._own.over(params)
        both = own if weights is None else weights
        if weights is not None and own is not None:
            both = weights & own
        self._directions.masked.take(params if both is not None else [], both)

    @property
    def num_active(self) -> int:
        """d, entries that are perturbed."""
        return self._directions.num_active(list(self._rhos()))

    @torch.no_grad()
    def mask_grads_(self) -> None:
        """Clear the gradients of weights that do not exist; the update does it too.

        Call it before clipping, so that the clipped norm is that of the existing weights.
        """
        super().mask_grads_()
        pairs = [(t.grad, p) for p, t in self._directions.live.items() if t.grad is not None]
        self._weights.clear([g for g, _ in pairs], [p for _, p in pairs], self.backend)

    # -- 16-bit weights with masters ---------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, those of live 16-bit weights too."""
        super().zero_grad(set_to_none)
        for t in self._directions.live.values():
            if set_to_none:
                t.grad = None
            elif t.grad is not None:
                t.grad.zero_()

    @torch.no_grad()
    def _update(self, skip: Tensor | None = None) -> None:
        live = self._directions.live
        if not live:
            super()._update(skip)
            return
        for master, t in live.items():
            master.grad = None if t.grad is None else t.grad.float()
        self._moved = []  # masters stand at w; live weights are rounded from them once, at the end
        try:
            super()._update(skip)
        finally:
            for master in live:
                master.grad = None  # float32, and made anew in every step
            self._round_masters()

    # -- checkpoints -------------------------------------------------------------------------

    def _extra_state(self) -> dict[str, Any]:
        own = {"steps": self._steps, "directions": self._directions.state(self.param_groups)}
        masks = {"weights": self._weights, "perturbed": self._own}
        own |= {name: mask.state(self.param_groups) for name, mask in masks.items()}
        return {**super()._extra_state(), **own}

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        where = "ZOSAM.load_state_dict"
        self._check_format(extra)
        taken = [
            MaskOfParams.read(where, self.param_groups, extra.get(name, {}))
            for name in ("weights", "perturbed")
        ]
        self._load_directions(where, extra["directions"])
        super()._load_extra_state(extra)
        self._weights.take(*taken[0])
        self._own.take(*taken[1])
        self._mask_changed()
        self._steps = extra["steps"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._round_masters()

    load_state_dict.__doc__ = PerturbingOptimizer.load_state_dict.__doc__
