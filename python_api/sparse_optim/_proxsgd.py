"""Proximal stochastic gradient descent, for comparison with the Bregman optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import linbreg_step_

from ._active_set import Work
from ._bregman import BregmanOptimizer
from ._capturable import set_number
from ._regularizers import ENTRYWISE, entry_lam, is_nonnegative, math_dtype, readout_
from ._support import check_momentum


class ProxSGD(BregmanOptimizer):
    """Gradient step, then the proximal map of lr times the regulariser, on the weights themselves.

    ``y = p - lr d - lr weight_decay p``, ``p = prox_{lr J}(y)``; for "l1" that is
    ``p = shrink(y, lr lam)``. There is no dual: a zero weight has no memory, and live weights are
    biased by the threshold, on a quadratic ``a/2 (p - b)^2`` by lam / a.

    Args:
        params, lr, weight_decay, reg, lam, lam_scale, groups, block, l1_ratio, maximize,
            capturable, backend: as in ``LinBreg``.
        momentum: in [0, 1), as in torch.optim.SGD.
        nesterov: only with momentum.

    Raises:
        ValueError: an argument is out of range, or one of the Bregman optimizers' that means
            nothing here (``delta``, ``dual_leak``, ``fine_scale``) is in a group.
        TypeError: ``coarse_steps``: without memory a cycle is meaningless.

    State:
        "momentum_buffer" float32 (float64), with momentum; "master" float32 of 16-bit parameters.

    Source: proximal gradient method, Combettes and Wajs 2005, Multiscale Model. Simul. 4(4).

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
        >>> opt = ProxSGD([w], lr=0.25, reg="l1", lam=1.0)
        >>> w.grad = torch.tensor([1.0, 0.5])
        >>> opt.step()
        >>> w.data
        tensor([0.5000, 0.0000])
    """

    _state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float | Sequence[float] = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        reg: str = "none",
        lam: float = 0.0,
        lam_scale: float = 1.0,
        groups: str | None = None,
        block: tuple[int, int] | None = None,
        l1_ratio: float = 0.5,
        maximize: bool = False,
        *,
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
            "reg": reg, "lam": lam, "lam_scale": lam_scale, "groups": groups, "block": block,
            "l1_ratio": l1_ratio, "maximize": maximize, "capturable": bool(capturable),
        }  # fmt: skip
        super().__init__(params, defaults, backend)

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["coarse_steps"] != 0:
            raise TypeError("ProxSGD has no coarse_steps: zero weights keep no memory of gradients")
        for name, value in (("delta", 1.0), ("dual_leak", 0.0), ("fine_scale", 1.0)):
            if group[name] != value:
                raise ValueError(f"ProxSGD has no {name}, got {group[name]}")
        super()._check_group(group)
        check_momentum(group)

    def set_lam(self, value: float, group: int | None = None, transfer: str = "keep") -> None:
        """Change the threshold; there are no duals to take along.

        Args:
            value, group: as in ``LinBreg``.
            transfer: "keep", the only one.

        Raises:
            ValueError: lam is out of range, or there is no such transfer or group.
        """
        if transfer != "keep":
            raise ValueError(f"ProxSGD has no duals: transfer must be 'keep', got {transfer!r}")
        super().set_lam(value, group, transfer)

    def _apply_queued_lam(self) -> None:
        for group in self.param_groups:
            if group["queued_lam"] is not None:
                set_number(group, "lam", group["queued_lam"][0])
                group["queued_lam"] = None

    def init_dual(self) -> None:
        """Nothing: there are no duals."""

    @torch.no_grad()
    def sync_from_params(self) -> None:
        """Make the masters of 16-bit parameters anew, after editing those by hand."""
        for p, own in self._own.items():
            if "master" in own:
                own["master"].copy_(p)
        self._live.clear()

    def _has_dual(self, group: dict[str, Any], p: Tensor) -> bool:
        return False

    def _wanted_state(self, group: dict[str, Any]) -> Sequence[str]:
        return self._state_names if group["momentum"] != 0.0 else ()

    def _prepare(self, group: dict[str, Any], p: Tensor, own: dict[str, Any]) -> None:
        super()._prepare(group, p, own)
        if p.dtype != math_dtype(p) and "master" not in own:
            own["master"] = p.detach().to(math_dtype(p))

    def _move(
        self, group: dict[str, Any], work: Work, coarse: bool
    ) -> list[tuple[dict[str, Any], Work]]:
        step, reg = self._lr(group), group["reg"]
        masters = [self._own[p].get("master", p) for p in work.params]
        inside = reg == "none" or reg in ENTRYWISE
        live = self._kernel(
            group, Work(work.owners, masters, work.grads, None, work.buffers),
            lam=step * entry_lam(group) if inside else 0.0, nonnegative=is_nonnegative(group),
        )  # fmt: skip
        if not inside:
            live = readout_(group, masters, masters, self.backend, scale=float(step)).live
        for p, master in zip(work.params, masters, strict=True):
            if master is not p:
                p.copy_(master)
        self._count(work, live)
        return []

    def _kernel(self, group: dict[str, Any], work: Work, **modes: Any) -> Tensor:
        grads = [g.to(p.dtype) for p, g in zip(work.params, work.grads, strict=True)]
        return linbreg_step_(
            work.params, grads, None, self._lr(group), momentum=float(group["momentum"]),
            momentum_buffers=work.buffers.get("momentum_buffer"),
            nesterov=bool(group["nesterov"]), weight_decay=float(group["weight_decay"]),
            maximize=bool(group["maximize"]), backend=self.backend, **modes,
        )  # fmt: skip
