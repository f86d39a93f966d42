"""What SAM and ZO-SAM share: exact restore, weight masks, the base step, loss scaling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._backup import Moved, WholeBackup
from ._bitmask import BitMask
from ._fused_base import FusedBase, keeps_zero
from ._support import (
    BufferGuard,
    Phase,
    check_backend,
    check_dense_gradients,
    is_capturing,
    trainable,
)
from ._weight_mask import MaskOfParams, Masks, checked_masks
from ._wrapper import WrappingOptimizer


class PerturbingOptimizer(WrappingOptimizer):
    """A base optimizer that is fed the gradient of a perturbed point.

    Subclasses move the weights with ``_perturb`` and define what ``step`` does; everything that
    ends a perturbation is here.
    """

    _step_supports_amp_scaling = True  # GradScaler then always calls step, which always restores

    def __init__(
        self,
        params: Any,
        base_optimizer_cls: Callable[..., Optimizer],
        defaults: dict[str, Any],
        base_kwargs: dict[str, Any],
        bn_modules: nn.Module | Iterable[nn.Module] | None,
        backend: str,
    ) -> None:
        self.backend = check_backend(backend)
        self._guard = BufferGuard(bn_modules)
        self._copies = WholeBackup()
        self._moved: list[Moved] = []
        self._weights = MaskOfParams()
        self._keeps_state = False  # of weights that do not exist
        super().__init__(params, base_optimizer_cls, defaults, base_kwargs)

    # -- restore -----------------------------------------------------------------------------

    def _with_gradient(self, where: str) -> list[Tensor]:
        params = [p for p in trainable(self.param_groups) if p.grad is not None]
        check_dense_gradients(f"{type(self).__name__}.{where}", self.param_groups, params)
        return params

    @torch.no_grad()
    def _put_back(self) -> None:
        """Restore what the ascent moved; the list was fixed there and never looks at ``.grad``."""
        moved, self._moved = self._moved, []
        for part in moved:
            part.restore(self.backend)
        self._guard.put_back()
        self._guard.drop()

    def restore(self) -> None:
        """Give the weights their bits back and return to the idle phase without an update."""
        self._put_back()
        self._phase = Phase.IDLE

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        """Restore on every way out of the block; after an exception there is no update."""
        try:
            yield
        except BaseException:
            self.restore()
            raise
        if self._phase is Phase.PERTURBED:
            self._put_back()
            self._phase = Phase.RESTORED

    # -- which weights exist -----------------------------------------------------------------

    @property
    def weight_mask(self) -> BitMask | None:
        """The weight mask in force, over the trainable parameters it was set for, or None."""
        return self._weights.mask

    def weight_counts(self) -> dict[Tensor, int]:
        """Ones of every parameter under the weight mask; empty without one."""
        return self._weights.live_counts()

    @torch.no_grad()
    def set_weight_mask(self, masks: Masks | None, *, keep_state: bool = False) -> None:
        """Say which weights exist; the others become +0.0 and their base state 0.

        Weights with bit 0 are neither counted nor perturbed, and their gradients are cleared before
        the update, so they stay +0.0; one that returns later starts at 0 with no state.

        Args:
            masks: bool tensors (None: all ones) over the trainable parameters in group order, a
                BitMask, or None for no mask.
            keep_state: leave the base state alone; weights that do not exist are then set to +0.0
                again after every update, which their momentum would move.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: number, shape, dtype or device does not fit; nothing is modified.
        """
        self._refuse_perturbed("set_weight_mask")
        taken: tuple[list[Tensor], BitMask | None] = ([], None)
        if masks is not None:
            taken = checked_masks("weight_mask", self.param_groups, masks)
        self._weights.take(*taken)
        self._mask_changed()
        params = taken[0]
        self._weights.clear(params, params, self.backend)
        self._keeps_state = bool(keep_state)
        if keep_state:
            return
        pairs = [
            (value, p)
            for p in params
            for value in self.state.get(p, {}).values()
            if isinstance(value, Tensor) and value.shape == p.shape
        ]
        self._weights.clear([v for v, _ in pairs], [p for _, p in pairs], self.backend)

    def _mask_changed(self) -> None:
        """Called when the weights that exist have changed."""

    @torch.no_grad()
    def mask_grads_(self) -> None:
        """Clear the gradients of weights that do not exist; the update does it too.

        Call it before clipping, so that the clipped norm is that of the existing weights.
        """
        params = [p for p in trainable(self.param_groups) if p.grad is not None]
        self._weights.clear([p.grad for p in params], params, self.backend)  # type: ignore[misc]

    # -- the base step -----------------------------------------------------------------------

    def _base_gates_on_device(self) -> bool:
        """Whether the base reads ``found_inf`` itself, so that no value comes to the host.

        torch's fused SGD allocates its momentum uninitialised before it looks at ``found_inf``, so
        the first step of a parameter is gated on the host.
        """
        if not getattr(self.base_optimizer, "_step_supports_amp_scaling", False):
            return False
        stateless = all(g.get("momentum", 1) == 0 for g in self.param_groups)
        with_grad = (p for g in self.param_groups for p in g["params"] if p.grad is not None)
        return stateless or all(
            any(isinstance(v, Tensor) for v in self.state.get(p, {}).values()) for p in with_grad
        )

    @torch.no_grad()
    def _update(self, skip: Tensor | None = None) -> None:
        """Finish a step: restored weights whatever happens, and the base update."""
        try:
            if self._weights.mask is not None:
                self.mask_grads_()
            self._apply_base(skip)
        except BaseException:
            self.restore()
            raise
        self._phase = Phase.IDLE

    def _apply_base(self, skip: Tensor | None = None) -> None:
        """Restore and update with the gradients; one pass where the base step can be fused.

        ``skip``, where it is not 0, or the scaler's overflow flag leaves only the restore. It is
        obeyed on the device where that is possible; otherwise one bool comes to the host, as in
        GradScaler.
        """
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        base = self.base_optimizer
        self._opt_called = base._opt_called = True  # type: ignore[attr-defined]  # for schedulers
        if found is not None:
            if not isinstance(found, Tensor):  # no gradient was found in the groups
                raise RuntimeError(
                    f"{type(self).__name__}.step: GradScaler saw no gradient of the parameters"
                )
            overflow = found.reshape(())
            skip = overflow if skip is None else skip + overflow.to(skip.device)
        params = [p for g in self.param_groups for p in g["params"]]
        group_of = {id(p): g for g in self.param_groups for p in g["params"]}
        moved = {id(p) for part in self._moved for p in part.params}
        rest = [p for p in params if id(p) not in moved and p.grad is not None]
        fusing = FusedBase(base, self.backend, group_of)
        fused = bool(moved) and fusing.accepts(self._moved)
        if skip is not None:
            on_host = skip.device.type == "cpu"
            if not on_host:
                on_host = fused and not fusing.gates_on_device(self._moved)
                on_host |= not (fused and not rest) and not self._base_gates_on_device()
            if on_host:
                if is_capturing():
                    raise RuntimeError(
                        f"{type(self).__name__}.step: whether gradients are finite would come to "
                        "the host; a CUDA graph needs a base with its step counter on the device "
                        "(capturable=True; SGD has none) and one step before the capture"
                    )
                if skip.item() != 0:
                    self._skipped += 1
                    self._put_back()
                    return
                skip = None
            else:
                self._skipped += (skip != 0).to(self._skipped.device)
        if not fused:
            self._put_back()
            self._base_step(skip, scale)
        else:
            inverse = None if scale is None else scale.double().reciprocal().float()
            fusing.step(self._moved, skip, inverse)
            self._moved = []
            self._put_back()  # the guarded buffers
            if rest:
                self._base_step_of(rest, skip, scale)
        if self._weights.mask is not None and (self._keeps_state or not keeps_zero(base)):
            params = trainable(self.param_groups)
            self._weights.clear(params, params, self.backend)

    def _base_step_of(self, params: list[Tensor], skip: Tensor | None, scale: Any) -> None:
        """The base step of some parameters alone: the others' gradients are out of its sight."""
        own = set(params)
        hidden = {p: p.grad for g in self.param_groups for p in g["params"] if p not in own}
        try:
            for p in hidden:
                p.grad = None
            self._base_step(skip, scale)
        finally:
            for p, grad in hidden.items():
                p.grad = grad

    def _base_step(self, skip: Tensor | None, scale: Tensor | None) -> None:
        base = self.base_optimizer
        if skip is None:
            if scale is not None:
                inverse = scale.double().reciprocal().float()
                for g in (p.grad for group in self.param_groups for p in group["params"]):
                    if g is not None:
                        g.mul_(inverse.to(g.device))
            base.step()
            return
        found = (skip != 0).to(torch.float32)
        base.grad_scale, base.found_inf = scale, found  # type: ignore[attr-defined]
        try:
            base.step()
        finally:
            del base.grad_scale, base.found_inf  # type: ignore[attr-defined]

    def _extra_state(self) -> dict[str, Any]:
        return {**super()._extra_state(), "keeps_state": self._keeps_state}

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        self._keeps_state = extra.get("keeps_state", False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._copies = WholeBackup()
        super().__setstate__(state)
