"""Bregman optimizers: ``LinBreg``, ``AdaBreg``, beside them ``ProxSGD``; a model's groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import adabreg_step_, linbreg_step_

from ._active_set import Work
from ._bregman import BregmanOptimizer
from ._param_groups import bregman_param_groups
from ._proxsgd import ProxSGD
from ._support import check_momentum, check_number

__all__ = ["AdaBreg", "LinBreg", "ProxSGD", "bregman_param_groups"]


class LinBreg(BregmanOptimizer):
    """Linearised Bregman iterations: a dense dual integrates gradients, the network sees it shrunk.

    ``v = v - lr d - lr weight_decay p``, ``p = delta shrink(v, lam_scale lam)`` with
    ``shrink(v, t) = sign(v) max(|v| - t, 0)``. d is the gradient, or with momentum "sgd":
    ``b = momentum b + g``, ``d = b`` (nesterov ``g + momentum b``), "ema":
    ``b = momentum b + (1 - momentum) lr g`` and v moves by b itself. A weight that is zero is born
    once its accumulated ``lr |gradient|`` passes lam.

    Regularisers, by name, with the effective threshold lam * lam_scale:
        "none": plain SGD; "l1": entries; "l1_pos": entries, weights >= 0; "l1_l2": whole groups,
        ``v_g max(1 - lam sqrt(n_g) / |v_g|, 0)``; "sparse_group": that with (1 - l1_ratio) lam
        after shrinking entries by l1_ratio lam; "nuclear": singular values of [outputs, rest].

    Multilevel cycle (``coarse_steps = m > 0``): m coarse steps on the units (entries or groups)
    that were nonzero when the phase began (everything else keeps its dual, momentum and zero,
    whatever its gradient), then one full step. Unregularised groups and those with
    ``multilevel=False`` step fully always. A coarse step works on copies of the active units: its
    cost follows their number.

    Args:
        params: parameters or groups; all options but ``coarse_steps`` and ``phase_offset`` may
            differ per group, ``multilevel`` (True) too. See ``bregman_param_groups``.
        lr: step size of the dual, >= 0; or a list, one per group.
        momentum: in [0, 1).
        momentum_form: "sgd" (lr outside the buffer) or "ema" (lr inside, as the authors' code).
        nesterov: only with momentum of the "sgd" form.
        weight_decay: decoupled decay in the dual, >= 0; acts on nonzero weights only.
        delta: elastic parameter, > 0: learning rate multiplier of live weights.
        reg: name of the regulariser.
        lam: threshold of the dual, >= 0.
        lam_scale: factor on lam, per group.
        groups: of "l1_l2" and "sparse_group": "rows" (of a 2-D weight), "kernels" (the 2-D kernels
            of a convolution), "filters" (everything of one output) or "blocks".
        block: (rows, columns) of one block of the weight as [outputs, rest].
        l1_ratio: share of lam that acts on entries, in [0, 1], of "sparse_group".
        dual_leak: >= 0; zero entries forget this fraction of their dual per step, so that a
            gradient below dual_leak lam / lr never brings a weight to life.
        coarse_steps: m >= 0, coarse steps per cycle.
        phase_offset: start position in the cycle, 0 (coarse first) to m (full step first).
        fine_scale: >= 1; in a full step of a cycle the dual step of zero entries is so many times
            longer, with what is born capped at one step's length. For "l1" and "l1_pos".
        maximize: ascend instead.
        compact: copy active entries in coarse phases where that pays; False: work under bit masks
            throughout. The results are the same bits.
        capturable: keep lr, lam and step counts in tensors on the device (float64 and int64), so
            that nothing waits for the host and a CUDA graph can capture ``step``: replays see what
            schedulers, ``set_lam`` and ``group["lr"].fill_`` write. The results are the same bits.
            For reg "none", "l1" and "l1_pos". Take one step before the capture: it makes the state.
            What the host decides cannot be captured and raises: the cycle of ``coarse_steps``,
            ``QuantileLambda``. ``steps_taken`` does not count replays.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: an argument is out of range.

    State:
        "dual" float32 (float64 for float64 parameters), 4 bytes per parameter, where reg is not
        "none" or the parameter has 16 bits (then it is the master copy); "momentum_buffer"
        likewise with momentum; "active" int32 words, 1/8 byte per unit, with coarse steps.

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

    _state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float | Sequence[float] = 1e-3,
        momentum: float = 0.0,
        momentum_form: str = "sgd",
        nesterov: bool = False,
        weight_decay: float = 0.0,
        delta: float = 1.0,
        reg: str = "none",
        lam: float = 0.0,
        lam_scale: float = 1.0,
        groups: str | None = None,
        block: tuple[int, int] | None = None,
        l1_ratio: float = 0.5,
        dual_leak: float = 0.0,
        coarse_steps: int = 0,
        phase_offset: int = 0,
        fine_scale: float = 1.0,
        maximize: bool = False,
        *,
        compact: bool = True,
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "momentum_form": momentum_form, "nesterov": nesterov,
            "weight_decay": weight_decay, "delta": delta, "reg": reg, "lam": lam,
            "lam_scale": lam_scale, "groups": groups, "block": block, "l1_ratio": l1_ratio,
            "dual_leak": dual_leak, "coarse_steps": coarse_steps, "phase_offset": phase_offset,
            "fine_scale": fine_scale, "maximize": maximize, "capturable": bool(capturable),
        }  # fmt: skip
        super().__init__(params, defaults, backend, compact)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_momentum(group)
        if group["momentum_form"] not in ("sgd", "ema"):
            raise ValueError(
                f"momentum_form must be 'sgd' or 'ema', got {group['momentum_form']!r}"
            )

    def _wanted_state(self, group: dict[str, Any]) -> Sequence[str]:
        return self._state_names if group["momentum"] != 0.0 else ()

    def _kernel(self, group: dict[str, Any], work: Work, **modes: Any) -> Tensor:
        return linbreg_step_(
            work.params, work.grads, work.duals, self._lr(group), delta=float(group["delta"]),
            momentum=float(group["momentum"]), momentum_form=group["momentum_form"],
            momentum_buffers=work.buffers.get("momentum_buffer"), active=work.active,
            nesterov=bool(group["nesterov"]), weight_decay=float(group["weight_decay"]),
            maximize=bool(group["maximize"]), backend=self.backend, **modes,
        )  # fmt: skip


class AdaBreg(BregmanOptimizer):
    """Adam in the dual: linearised Bregman iterations with normalised steps.

    ``a = a + (1 - beta1)(g - a)``, ``u = beta2 u + (1 - beta2) g^2``,
    ``v = v - lr weight_decay p - lr / (1 - beta1^n) a / (sqrt(u) / sqrt(1 - beta2^n) + eps)``,
    ``p = delta shrink(v, lam_scale lam)``. A zero weight is born after about lam / lr steps of one
    sign, whatever the size of its gradient.

    Args:
        params, lr, weight_decay, delta, reg, lam, lam_scale, groups, block, l1_ratio, dual_leak,
            coarse_steps, phase_offset, fine_scale, maximize, compact, capturable, backend: as
            in ``LinBreg``.
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

    _state_names = ("exp_avg", "exp_avg_sq", "count")

    def __init__(
        self,
        params: Any,
        lr: float | Sequence[float] = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_time: str = "coordinate",
        weight_decay: float = 0.0,
        delta: float = 1.0,
        reg: str = "none",
        lam: float = 0.0,
        lam_scale: float = 1.0,
        groups: str | None = None,
        block: tuple[int, int] | None = None,
        l1_ratio: float = 0.5,
        dual_leak: float = 0.0,
        coarse_steps: int = 0,
        phase_offset: int = 0,
        fine_scale: float = 1.0,
        maximize: bool = False,
        *,
        compact: bool = True,
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        if adam_time not in ("coordinate", "global"):
            raise ValueError(f"adam_time must be 'coordinate' or 'global', got {adam_time!r}")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "adam_time": adam_time,
            "weight_decay": weight_decay, "delta": delta, "reg": reg, "lam": lam,
            "lam_scale": lam_scale, "groups": groups, "block": block, "l1_ratio": l1_ratio,
            "dual_leak": dual_leak, "coarse_steps": coarse_steps, "phase_offset": phase_offset,
            "fine_scale": fine_scale, "maximize": maximize, "capturable": bool(capturable),
        }  # fmt: skip
        super().__init__(params, defaults, backend, compact)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_number("eps", group["eps"], 0.0)
        if len(group["betas"]) != 2 or not all(0.0 <= b < 1.0 for b in group["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']}")
        if group["adam_time"] not in ("coordinate", "global"):
            raise ValueError(
                f"adam_time must be 'coordinate' or 'global', got {group['adam_time']!r}"
            )

    def _wanted_state(self, group: dict[str, Any]) -> Sequence[str]:
        return "exp_avg", "exp_avg_sq"

    def _count_steps(
        self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]
    ) -> None:
        """On the device parameters that have always stepped together share one count."""
        if not group["capturable"]:
            for entry in states:
                entry["step"] = entry.get("step", 0) + 1
            return
        fresh: dict[torch.device, Tensor] = {}
        for p in params:
            if "step" not in self._own[p]:
                zero = torch.zeros((), dtype=torch.int64, device=p.device)
                self._own[p]["step"] = fresh.setdefault(p.device, zero)
        stepping = set(params)
        for steps, owners in self._shared_steps(group).values():
            own = [p for p in owners if p in stepping]
            if own and len(own) < len(owners):  # from here on two counts
                steps = steps.clone()
                for p in own:
                    self._own[p]["step"] = steps
            if own:
                steps += 1

    def _shared_steps(self, group: dict[str, Any]) -> dict[int, tuple[Tensor, list[Tensor]]]:
        """The counts of a capturable group and whose they are."""
        shared: dict[int, tuple[Tensor, list[Tensor]]] = {}
        for p in group["params"]:
            steps = self._own.get(p, {}).get("step")
            if steps is not None:
                shared.setdefault(id(steps), (steps, []))[1].append(p)
        return shared

    def _place_steps(self) -> None:
        for group in self.param_groups:
            known = [p for p in group["params"] if "step" in self._own.get(p, {})]
            made: dict[tuple[torch.device, int], Tensor] = {}
            for p in known:
                n = int(self._own[p]["step"])
                if group["capturable"]:
                    steps = torch.full((), n, dtype=torch.int64, device=p.device)
                    self._own[p]["step"] = made.setdefault((p.device, n), steps)
                else:
                    self._own[p]["step"] = n

    def _call_key(self, own: dict[str, Any]) -> tuple:
        steps = own["step"]
        return id(steps) if isinstance(steps, Tensor) else steps, "count" in own

    def _after_refresh(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Start counting per coordinate in tensors where something freezes.

        Until then all counts agree and the step number says the same.
        """
        if group["adam_time"] != "coordinate":
            return
        for p in params:
            if "count" not in self._own[p] and int(self._active.counts[p]) < p.numel():
                self._own[p]["count"] = torch.full_like(
                    p, int(self._own[p].get("step", 0)), dtype=torch.int32, requires_grad=False
                )

    def _kernel(self, group: dict[str, Any], work: Work, **modes: Any) -> Tensor:
        return adabreg_step_(
            work.params, work.grads, work.duals, work.buffers["exp_avg"],
            work.buffers["exp_avg_sq"], self._lr(group), delta=float(group["delta"]),
            step=self._own[work.owners[0]]["step"], betas=tuple(group["betas"]),
            eps=float(group["eps"]), weight_decay=float(group["weight_decay"]),
            counts=work.buffers.get("count"), active=work.active,
            maximize=bool(group["maximize"]), backend=self.backend, **modes,
        )  # fmt: skip
