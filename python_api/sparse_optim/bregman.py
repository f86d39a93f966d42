"""Linearised Bregman optimizers: ``LinBreg``, ``AdaBreg`` and how a model's groups are sorted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_kernels import adabreg_step_, linbreg_step_

from ._bregman import BregmanOptimizer
from ._param_groups import bregman_param_groups
from ._support import check_number

__all__ = ["AdaBreg", "LinBreg", "bregman_param_groups"]


class LinBreg(BregmanOptimizer):
    """Linearised Bregman iterations: a dense dual integrates gradients, the network sees it shrunk.

    ``v = v - lr d - lr weight_decay p``, ``p = delta shrink(v, lam_scale lam)`` with
    ``shrink(v, t) = sign(v) max(|v| - t, 0)``. d is the gradient, or with momentum "sgd":
    ``b = momentum b + g``, ``d = b`` (nesterov ``g + momentum b``), "ema":
    ``b = momentum b + (1 - momentum) lr g`` and v moves by b itself. A weight that is zero is born
    once its accumulated ``lr |gradient|`` passes lam.

    Multilevel cycle (``coarse_steps = m > 0``): m coarse steps on the entries that were nonzero
    when the phase began (everything else keeps its dual, momentum and zero, whatever its gradient),
    then one full step. Unregularised groups and those with ``multilevel=False``, step fully always.

    Args:
        params: parameters or groups; the options up to ``lam_scale``, ``maximize`` and
            ``multilevel`` (True) may differ per group. See ``bregman_param_groups``.
        lr: step size of the dual, >= 0.
        momentum: in [0, 1).
        momentum_form: "sgd" (lr outside the buffer) or "ema" (lr inside, as the authors' code).
        nesterov: only with momentum of the "sgd" form.
        weight_decay: decoupled decay in the dual, >= 0; acts on nonzero weights only.
        delta: elastic parameter, > 0: learning rate multiplier of live weights.
        reg: "none" (plain SGD) or "l1".
        lam: threshold of the dual, >= 0.
        lam_scale: factor on lam, per group.
        coarse_steps: m >= 0, coarse steps per cycle.
        phase_offset: start position in the cycle, 0 (coarse first) to m (full step first).
        maximize: ascend instead.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: an argument is out of range.

    State:
        "dual" float32 (float64 for float64 parameters), 4 bytes per parameter, where reg is not
        "none" or the parameter has 16 bits (then it is the master copy); "momentum_buffer"
        likewise with momentum; "active" int32 words, 1/8 byte per parameter, with coarse steps.

    Source: Bungert, Roith, Tenbrinck, Burger, arXiv 2105.04319, algorithm 1; multilevel form after
        arXiv 2602.03535.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> opt = LinBreg([w], lr=0.25, reg="l1", lam=0.5)
        >>> w.grad = torch.tensor([1.0, -8.0])
        >>> opt.step()
        >>> w.data, opt.live_counts()
        (tensor([0.0000, 1.5000]), [tensor(1)])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        momentum_form: str = "sgd",
        nesterov: bool = False,
        weight_decay: float = 0.0,
        delta: float = 1.0,
        reg: str = "none",
        lam: float = 0.0,
        lam_scale: float = 1.0,
        coarse_steps: int = 0,
        phase_offset: int = 0,
        maximize: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "momentum_form": momentum_form, "nesterov": nesterov,
            "weight_decay": weight_decay, "delta": delta, "reg": reg, "lam": lam,
            "lam_scale": lam_scale, "coarse_steps": coarse_steps, "phase_offset": phase_offset,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults, backend)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if not 0.0 <= group["momentum"] < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {group['momentum']}")
        if group["momentum_form"] not in ("sgd", "ema"):
            raise ValueError(
                f"momentum_form must be 'sgd' or 'ema', got {group['momentum_form']!r}"
            )
        if group["nesterov"] and (group["momentum"] == 0.0 or group["momentum_form"] != "sgd"):
            raise ValueError("nesterov needs momentum > 0 of the 'sgd' form")

    def _prepare(self, group: dict[str, Any], p: Tensor) -> None:
        if group["momentum"] != 0.0:
            self._zeros(p, "momentum_buffer")

    def _kernel(
        self, group: dict[str, Any], params: list[Tensor], duals: Any, active: Any, lam: float
    ) -> Tensor:
        buffers = None
        if group["momentum"] != 0.0:
            buffers = [self.state[p]["momentum_buffer"] for p in params]
        return linbreg_step_(
            params, [p.grad for p in params], duals, float(group["lr"]), lam,  # type: ignore[misc]
            float(group["delta"]), float(group["momentum"]), buffers,
            momentum_form=group["momentum_form"], nesterov=bool(group["nesterov"]),
            weight_decay=float(group["weight_decay"]), active=active,
            maximize=bool(group["maximize"]), backend=self.backend,
        )  # fmt: skip


class AdaBreg(BregmanOptimizer):
    """Adam in the dual: linearised Bregman iterations with normalised steps.

    ``a = a + (1 - beta1)(g - a)``, ``u = beta2 u + (1 - beta2) g^2``,
    ``v = v - lr weight_decay p - lr / (1 - beta1^n) a / (sqrt(u) / sqrt(1 - beta2^n) + eps)``,
    ``p = delta shrink(v, lam_scale lam)``. A zero weight is born after about lam / lr steps of one
    sign, whatever the size of its gradient.

    Args:
        params, lr, weight_decay, delta, reg, lam, lam_scale, coarse_steps, phase_offset, maximize,
            backend: as in ``LinBreg``.
        betas: (beta1, beta2), each in [0, 1).
        eps: added outside the root, after the bias correction, >= 0.
        adam_time: what n counts with coarse steps: "coordinate", the updates of each coordinate, or
            "global", the steps.

    Raises:
        ValueError: an argument is out of range.

    State:
        "dual" and "active" as in ``LinBreg``; "exp_avg" and "exp_avg_sq" float32 (float64), 8 bytes
        per parameter; "step" int; "count" int32, 4 bytes per parameter, for a tensor in which a
        coarse phase froze something (coordinate time).

    Note:
        The square root is correctly rounded on every backend, so results equal torch's Adam
        (lam = 0, delta = 1) to rounding.

    Source: arXiv 2105.04319, algorithm 3, with both bias corrections of Adam.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> opt = AdaBreg([w], lr=0.25, reg="l1", lam=0.125)
        >>> w.grad = torch.tensor([1.0, -8.0])
        >>> opt.step()
        >>> w.data
        tensor([-0.1250,  0.1250])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_time: str = "coordinate",
        weight_decay: float = 0.0,
        delta: float = 1.0,
        reg: str = "none",
        lam: float = 0.0,
        lam_scale: float = 1.0,
        coarse_steps: int = 0,
        phase_offset: int = 0,
        maximize: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        if adam_time not in ("coordinate", "global"):
            raise ValueError(f"adam_time must be 'coordinate' or 'global', got {adam_time!r}")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "adam_time": adam_time,
            "weight_decay": weight_decay, "delta": delta, "reg": reg, "lam": lam,
            "lam_scale": lam_scale, "coarse_steps": coarse_steps, "phase_offset": phase_offset,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults, backend)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_number("eps", group["eps"], 0.0)
        if len(group["betas"]) != 2 or not all(0.0 <= b < 1.0 for b in group["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']}")
        if group["adam_time"] not in ("coordinate", "global"):
            raise ValueError(
                f"adam_time must be 'coordinate' or 'global', got {group['adam_time']!r}"
            )

    def _prepare(self, group: dict[str, Any], p: Tensor) -> None:
        self._zeros(p, "exp_avg")
        self._zeros(p, "exp_avg_sq")
        self.state[p]["step"] = self.state[p].get("step", 0) + 1

    def _call_key(self, p: Tensor) -> tuple:
        return self.state[p]["step"], "count" in self.state[p]

    def _after_refresh(self, params: list[Tensor]) -> None:
        """Start counting per coordinate in tensors where something freezes.

        Until then all counts agree and the step number says the same. Reads the device once per
        cycle, until every tensor counts.
        """
        timed = {
            p for g in self.param_groups if g["adam_time"] == "coordinate" for p in g["params"]
        }
        uncounted = [p for p in params if p in timed and "count" not in self.state[p]]
        if not uncounted:
            return
        home = uncounted[0].device
        live = torch.stack([self._active_live[p].to(home) for p in uncounted]).tolist()
        for p, n in zip(uncounted, live, strict=True):
            if n < p.numel():
                self.state[p]["count"] = torch.full_like(
                    p, self.state[p].get("step", 0), dtype=torch.int32, requires_grad=False
                )

    def _kernel(
        self, group: dict[str, Any], params: list[Tensor], duals: Any, active: Any, lam: float
    ) -> Tensor:
        state = [self.state[p] for p in params]
        return adabreg_step_(
            params, [p.grad for p in params], duals, [s["exp_avg"] for s in state],  # type: ignore[misc]
            [s["exp_avg_sq"] for s in state], float(group["lr"]), lam, float(group["delta"]),
            step=state[0]["step"], betas=tuple(group["betas"]), eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            counts=[s["count"] for s in state] if "count" in state[0] else None, active=active,
            maximize=bool(group["maximize"]), backend=self.backend,
        )  # fmt: skip
