"""The ascent of sharpness-aware minimisation: one norm, one masked perturbation, one backup."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import grad_norm, masked_perturb_

from ._backup import Moved, PackedBackup
from ._base import PerturbingOptimizer
from ._bitmask import BitMask
from ._capturable import number_on
from ._support import check_number, trainable


class Ascent(PerturbingOptimizer):
    """Moves the weights to w + e along the gradients in ``.grad``.

    Args:
        params, base_optimizer_cls, defaults, base_kwargs, bn_modules, backend: as in the base.
        eps, check_gradients, shard_group, replica_group: as in ``SAM``.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer_cls: Callable[..., Optimizer],
        defaults: dict[str, Any],
        base_kwargs: dict[str, Any],
        bn_modules: nn.Module | Iterable[nn.Module] | None,
        backend: str,
        *,
        eps: float,
        check_gradients: bool,
        shard_group: Any,
        replica_group: Any,
    ) -> None:
        self.eps = check_number("eps", eps, 0.0)
        self.check_gradients, self.shard_group = bool(check_gradients), shard_group
        self.replica_group = replica_group
        self._norm: Tensor | None = None
        self._packed: PackedBackup | None = None
        self._stale = False
        super().__init__(params, base_optimizer_cls, defaults, base_kwargs, bn_modules, backend)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_number("rho", group["rho"], 0.0)
        check_number("eta", group["eta"], 0.0)

    def _mask_changed(self) -> None:
        self._stale = True

    def _perturbed_mask(self, params: list[Tensor]) -> BitMask | None:
        """Which entries of these parameters move; None: all."""
        return self._weights.over(params)

    def _backup_for(self, params: list[Tensor]) -> PackedBackup | None:
        """The packed backup of what moves, made anew when the mask has changed; None: all moves."""
        if self._packed is None or self._stale or not self._packed.fits(params):
            every = trainable(self.param_groups)
            mask = self._perturbed_mask(every)
            old, self._packed = self._packed, None
            if mask is None:
                return None
            self._packed = PackedBackup(every, mask)
            self._packed.inherit(old)
            self._stale = False
        return self._packed

    def _norm_words(self, params: list[Tensor]) -> list[Tensor] | None:
        """Masks of the entries that are counted in the norm; None: all."""
        return self._weights.words(params)

    def _global_norm(self, params: list[Tensor], forms: list[tuple]) -> Tensor:
        """One norm over all groups, on the device."""
        counted = self._norm_words(params)
        parts = []
        sharded = self.shard_group is not None
        for adaptive, eta in dict.fromkeys(form[1:] for form in forms):
            at = [i for i, form in enumerate(forms) if form[1:] == (adaptive, eta)]
            own = [params[i] for i in at]
            grads = [p.grad for p in own]
            parts.append(
                grad_norm(
                    grads,  # type: ignore[arg-type]
                    None if counted is None else [counted[i] for i in at],
                    weights=own if adaptive else None,
                    eta=eta if adaptive else 0.0,
                    backend=self.backend,
                )
            )
        if len(parts) == 1 and not sharded:
            return parts[0]
        home = self._skipped.device
        wide = any(p.dtype == torch.float64 for p in params)
        # a rank of sharded parameters may have no gradient of its own
        total = torch.zeros((), dtype=torch.float64, device=home)
        for norm in parts:
            total += norm.to(home, torch.float64).square()
        if sharded:
            torch.distributed.all_reduce(total, group=self.shard_group)
        return total.sqrt().to(torch.float64 if wide else torch.float32)

    def _perturb(self) -> None:
        params = self._with_gradient("first_step")
        if not params and self.shard_group is None:
            raise RuntimeError(f"{type(self).__name__}.first_step: no parameter has a gradient")
        radii: dict[Any, float | Tensor] = {}  # tensors by identity: to compare them is to read
        form_of: dict[int, tuple] = {}  # by id
        for g in (g for g in self.param_groups if g["params"]):
            rho = number_on(g["rho"], g["params"][0].device)
            key: Any = ("tensor", id(rho))
            if not isinstance(rho, Tensor):
                key = check_number("rho", rho, 0.0)
            radii[key] = rho
            form = key, bool(g["adaptive"]), float(g["eta"])
            form_of |= dict.fromkeys(map(id, g["params"]), form)
        forms = [form_of[id(p)] for p in params]
        packed = self._backup_for(params)
        self._norm = self._global_norm(params, forms)
        for form in dict.fromkeys(forms):
            key, adaptive, eta = form
            rho = radii[key]
            if key == 0.0:
                continue  # adding 0 g would turn -0.0 into +0.0
            own = [p for p, f in zip(params, forms, strict=True) if f == form]
            if packed is None:
                parts = [Moved(own, self._copies.of(own))]
            elif packed.live == 0:
                continue
            else:
                parts = packed.split(own)
            for part in parts:
                masked_perturb_(
                    part.params, [p.grad for p in part.params], self._norm, rho,  # type: ignore[misc]
                    **part.arguments(), adaptive=adaptive, eta=eta, eps=self.eps,
                    backend=self.backend,
                )  # fmt: skip
                self._moved.append(part)

    def _suppressed(self, params: list[Tensor]) -> Tensor | None:
        """0 where every gradient is finite, else not, on the device; None: not looked for."""
        skip = None if self._norm is None else self._norm * 0.0  # NaN for infinity and NaN
        # a scaler has looked at the gradients of the second pass already
        look = self.check_gradients and getattr(self, "found_inf", None) is None
        if look and not params and skip is None and self.shard_group is not None:
            skip = torch.zeros((), device=self._skipped.device)  # the other ranks wait for it
        if look and params:
            words = self._weights.words(params)
            norm = grad_norm([p.grad for p in params], words, backend=self.backend) * 0.0  # type: ignore[misc]
            skip = norm if skip is None else skip + norm.to(skip.device)
        for group in (self.shard_group, self.replica_group):
            if skip is not None and group is not None:
                skip = (skip != 0).to(torch.float32)
                torch.distributed.all_reduce(skip, torch.distributed.ReduceOp.MAX, group=group)
        return skip

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None}  # made anew from the mask
