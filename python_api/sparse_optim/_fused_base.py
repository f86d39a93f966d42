"""The base step fused with the restore: torch's SGD, Adam and AdamW, on their own state."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer

from sparse_kernels import restore_adamw_, restore_sgd_

from ._backup import Moved
from ._capturable import number_on
from ._support import is_capturing

FUSED = (SGD, Adam, AdamW)
_NOTHING: Mapping[str, Any] = {}  # the state of a parameter that had no step yet
_kind = operator.attrgetter("dtype", "device")


def _on_host(value: Any) -> bool:
    """A number, or a tensor whose value is on the host."""
    return not isinstance(value, Tensor) or value.device.type == "cpu"


def _has_hooks(base: Optimizer) -> bool:
    own = base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks
    everywhere = (
        torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks
    )
    patched = base.__dict__.get("step")  # a scheduler's wrapper only counts
    return bool(own or everywhere) or not (
        patched is None or getattr(patched, "_wrapped_by_lr_sched", False)
    )


def keeps_zero(base: Optimizer) -> bool:
    """Whether a weight, gradient and state of +0.0 stay so in the base step.

    Not with eps 0 in Adam (0 / 0), nor where the decay turns the sign (-0.0).
    """
    return type(base) in FUSED and all(
        g.get("eps", 1.0) != 0.0
        and (g["weight_decay"] == 0.0 or (_on_host(g["lr"]) and g["lr"] * g["weight_decay"] <= 1.0))
        for g in base.param_groups
    )


class FusedBase:
    """Takes the base optimizer's step from the backup, without a pass of its own that restores.

    For torch's own classes with their usual options. A subclass, ``amsgrad``, ``differentiable``,
    step hooks, or betas that are tensors on the device leave the step to the base. A learning rate
    that is a tensor on the device is read there.

    Made for one step.

    Args:
        base: the optimizer.
        backend: of the fused step.
        group_of: param group of each parameter, by ``id``: torch hashes a tensor in Python, which
            takes longer than all else that a small one costs.
    """

    def __init__(
        self, base: Optimizer, backend: str, group_of: Mapping[int, dict[str, Any]]
    ) -> None:
        self.base, self.backend, self.group_of = base, backend, group_of
        self._states: dict[int, Mapping[str, Any]] = {}

    def accepts(self, moved: Sequence[Moved]) -> bool:
        """Whether everything that was moved can be updated here; to be called first."""
        if type(self.base) not in FUSED or _has_hooks(self.base):
            return False
        if not all(isinstance(part, Moved) and part.of(self.group_of) for part in moved):
            return False  # no copy to restore from, or of shards
        state = self.base.state
        self._states = {id(p): state.get(p, _NOTHING) for part in moved for p in part.params}
        params = [p for part in moved for p in part.params if p.grad is not None]
        groups = {id(g): g for g in (self.group_of[id(p)] for p in params)}.values()
        for g in groups:
            if g.get("differentiable") or g.get("amsgrad"):
                return False
            if not all(map(_on_host, g.get("betas", ()))):
                return False
        return self._fit(params)

    def _fit(self, params: Sequence[Tensor]) -> bool:
        """Gradients and state of the parameters' own dtypes, as torch makes them."""
        kinds = list(map(_kind, params))
        if list(map(_kind, (p.grad for p in params))) != kinds:
            return False
        names = ("momentum_buffer",) if type(self.base) is SGD else ("exp_avg", "exp_avg_sq")
        kept = [(self._states[id(p)], kind) for p, kind in zip(params, kinds, strict=True)]
        return all(
            state.get(name) is None or _kind(state[name]) == kind
            for name in names
            for state, kind in kept
        )

    def gates_on_device(self, moved: Sequence[Moved]) -> bool:
        """Whether a skip that only the device knows can be obeyed there.

        Not while state is being built, which a skipped step must not leave behind, nor with step
        counters on the host.
        """
        for part in moved:
            for p in part.params:
                if p.grad is None:
                    continue
                state = self._states[id(p)]
                if type(self.base) is SGD:
                    stateless = self.group_of[id(p)]["momentum"] == 0
                    if not stateless and state.get("momentum_buffer") is None:
                        return False
                elif not state or state["step"].device.type == "cpu":
                    return False
        return True

    def step(
        self,
        moved: list[Moved],
        skip: Tensor | None,
        inv_scale: Tensor | None,
    ) -> None:
        """Update every moved parameter that has a gradient; restore the others.

        Args:
            moved: what the ascent moved; its parameters are overwritten, and the list is emptied as
                they are, so that after an exception it holds what is still perturbed.
            skip: 0-dim float tensor; not 0: restore only.
            inv_scale: 0-dim tensor that multiplies the gradients.
        """
        if is_capturing():
            self._check_capture(moved)
        moved[:] = [piece for part in moved for piece in self._pieces(part)]
        while moved:
            part, first = moved[0], moved[0].params[0]
            if first.grad is None:
                part.restore(self.backend)
            elif type(self.base) is SGD:
                self._sgd(part, self.group_of[id(first)], skip, inv_scale)
            else:
                self._adam(part, self.group_of[id(first)], skip, inv_scale)
            moved.pop(0)

    def _check_capture(self, moved: Sequence[Moved]) -> None:
        params = [p for part in moved for p in part.params if p.grad is not None]
        states = [self._states[id(p)] for p in params]
        if any("step" in s and s["step"].device.type == "cpu" for s in states):
            raise RuntimeError(
                f"{type(self.base).__name__}: a CUDA graph would keep today's step number; capture "
                "needs capturable=True among the base's options"
            )

    def _pieces(self, part: Moved) -> Iterator[Moved]:
        """Split into what one call can do: one group, and alike in gradient and momentum."""
        kinds = [
            (id(self.group_of[id(p)]), p.grad is None, self._momentum(p) is None)
            for p in part.params
        ]
        for kind in dict.fromkeys(kinds):
            yield part.at([i for i, k in enumerate(kinds) if k == kind])

    def _momentum(self, p: Tensor) -> Tensor | None:
        return self._states[id(p)].get("momentum_buffer")

    def _sgd(
        self, part: Moved, group: dict[str, Any], skip: Tensor | None, inv_scale: Tensor | None
    ) -> None:
        momentum, grads = float(group["momentum"]), [p.grad for p in part.params]
        first = momentum != 0 and self._momentum(part.params[0]) is None
        buffers: list[Any] | None = None
        if momentum != 0:
            held = [self._momentum(p) for p in part.params]
            buffers = [torch.empty_like(g) for g in grads] if first else held  # type: ignore[arg-type]
        restore_sgd_(
            part.params, grads, momentum_buffers=buffers, **part.arguments(),  # type: ignore[arg-type]
            lr=number_on(group["lr"], part.params[0].device), momentum=momentum,
            dampening=float(group["dampening"]),
            nesterov=bool(group["nesterov"]), weight_decay=float(group["weight_decay"]),
            maximize=bool(group["maximize"]), first=first, skip=skip, inv_scale=inv_scale,
            backend=self.backend,
        )  # fmt: skip
        if first and buffers is not None:  # not before: they held nothing
            for p, buffer in zip(part.params, buffers, strict=True):
                self.base.state[p]["momentum_buffer"] = buffer

    def _adam(
        self, part: Moved, group: dict[str, Any], skip: Tensor | None, inv_scale: Tensor | None
    ) -> None:
        lr = number_on(group["lr"], part.params[0].device)
        beta1, beta2 = map(float, group["betas"])
        states = [self._adam_state(p, group) for p in part.params]
        steps = [s["step"] for s in states]
        if skip is None or steps[0].device.type == "cpu":
            torch._foreach_add_(steps, 1)
        else:
            torch._foreach_add_(steps, (skip == 0).to(steps[0].dtype))
        t = torch.stack(steps).double()
        rate = lr.double() if isinstance(lr, Tensor) else lr
        # what a number over a tensor is, so that a number and a tensor give the same bits
        step_sizes, bias2_sqrts = (1.0 - beta1**t).reciprocal() * rate, (1.0 - beta2**t).sqrt()
        restore_adamw_(
            part.params, [p.grad for p in part.params],  # type: ignore[misc]
            exp_avgs=[s["exp_avg"] for s in states], exp_avg_sqs=[s["exp_avg_sq"] for s in states],
            step_sizes=step_sizes, bias2_sqrts=bias2_sqrts, **part.arguments(), lr=lr,
            betas=(beta1, beta2), eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            decoupled=bool(group.get("decoupled_weight_decay", type(self.base) is AdamW)),
            maximize=bool(group["maximize"]), skip=skip, inv_scale=inv_scale, backend=self.backend,
        )  # fmt: skip

    def _adam_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """State as ``torch.optim.Adam`` makes it, under its own keys."""
        held = self._states[id(p)]
        state: Any = held or self.base.state[p]
        if not held:
            on_device = group["capturable"] or group["fused"]
            wide = torch.get_default_dtype() == torch.float64 and not group["fused"]
            state["step"] = torch.zeros(
                (),
                dtype=torch.float64 if wide else torch.float32,
                device=p.device if on_device else "cpu",
            )
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state
