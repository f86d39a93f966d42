"""What LinBreg and AdaBreg share: groups, lazy duals, the multilevel cycle, checkpoints."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparse_kernels import pack_mask, unpack_mask

from ._support import check_backend, check_dense_gradient, check_int, check_number, label

REGULARIZERS = ("none", "l1")
_CYCLE = ("coarse_steps", "phase_offset", "cycle_step")  # one value for the whole optimizer


def math_dtype(p: Tensor) -> torch.dtype:
    """Dtype of duals and moments: float64 for float64 parameters, float32 for all others."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def effective_lam(group: dict[str, Any]) -> float:
    return float(group["lam"]) * float(group["lam_scale"]) if group["reg"] != "none" else 0.0


class BregmanOptimizer(Optimizer, abc.ABC):
    """Base of the linearised Bregman optimizers; see ``LinBreg``."""

    def __init__(self, params: Any, defaults: dict[str, Any], backend: str) -> None:
        self.backend = check_backend(backend)
        self._live: dict[Tensor, tuple[Tensor, int]] = {}
        self._active_live: dict[Tensor, Tensor] = {}
        super().__init__(params, {**defaults, "multilevel": True, "cycle_step": 0})

    # -- groups ------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it joins the cycle where that stands.

        Raises:
            ValueError: an option is out of range, or ``coarse_steps`` or ``phase_offset`` differ
                from those of the other groups (there is one cycle).
        """
        filled = {**self.defaults, **param_group}
        if self.param_groups:
            filled["cycle_step"] = self.param_groups[0]["cycle_step"]
            for key in ("coarse_steps", "phase_offset"):
                if filled[key] != self.param_groups[0][key]:
                    raise ValueError(f"{key} must be the same in every group")
        self._check_group(filled)
        super().add_param_group(filled)

    def _check_group(self, group: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "lam", "lam_scale"):
            check_number(name, group[name], 0.0)
        check_number("delta", group["delta"], 0.0, strict=True)
        if group["reg"] not in REGULARIZERS:
            raise ValueError(f"reg must be one of {REGULARIZERS}, got {group['reg']!r}")
        m = check_int("coarse_steps", group["coarse_steps"], 0)
        check_int("phase_offset", group["phase_offset"], 0, m + 1)

    # -- cycle -------------------------------------------------------------------------------

    def _position(self, t: int) -> tuple[int, int]:
        group = self.param_groups[0]
        m = group["coarse_steps"]
        return (t + group["phase_offset"]) % (m + 1), m

    @property
    def steps_taken(self) -> int:
        """t, completed steps."""
        return self.param_groups[0]["cycle_step"]

    @property
    def next_is_coarse(self) -> bool:
        """Whether the next step is a coarse one; readable before its forward pass."""
        c, m = self._position(self.steps_taken)
        return c < m

    @property
    def last_was_coarse(self) -> bool:
        """Whether the last completed step was a coarse one."""
        c, m = self._position(self.steps_taken - 1)
        return self.steps_taken > 0 and c < m

    def _refresh_active(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """A := entries with |dual| > lam, packed; what lies outside is written as +0.0."""
        lam = effective_lam(group)
        alive = []
        for p in params:
            dual = self.state[p]["dual"]
            # not (... <= lam), so that NaN counts as live, as in the kernels
            alive.append(~(dual.abs() <= torch.tensor(lam, dtype=dual.dtype, device=dual.device)))
        for p, mask, words in zip(
            params, alive, pack_mask(alive, backend=self.backend), strict=True
        ):
            self.state[p]["active"] = words
            self._active_live[p] = mask.sum()
            p.masked_fill_(
                ~mask, 0.0
            )  # they are zero, unless lam or p was edited since the readout
        self._after_refresh(params)

    def _after_refresh(self, params: list[Tensor]) -> None:
        """Hook for state that depends on which coordinates are frozen."""

    # -- state -------------------------------------------------------------------------------

    def _has_dual(self, group: dict[str, Any], p: Tensor) -> bool:
        """Unregularised parameters in float32 or float64 are their own dual."""
        return group["reg"] != "none" or p.dtype != math_dtype(p)

    def _subgradient_dual(self, group: dict[str, Any], p: Tensor) -> Tensor:
        theta = p.detach().to(math_dtype(p))
        return theta / group["delta"] + effective_lam(group) * theta.sign()

    @torch.no_grad()
    def init_dual(self) -> None:
        """Create the duals now, ``p / delta + lam sign(p)``, with the lam in force.

        Otherwise each is created at its parameter's first step. Existing ones stay.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if self._has_dual(group, p) and "dual" not in self.state[p]:
                    self.state[p]["dual"] = self._subgradient_dual(group, p)

    @torch.no_grad()
    def sync_from_params(self) -> None:
        """Make the duals anew from the parameters, after editing those by hand.

        Discards what entries below the threshold have accumulated.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if self._has_dual(group, p):
                    self.state[p]["dual"] = self._subgradient_dual(group, p)
                    self.state[p].pop("active", None)

    def _zeros(self, p: Tensor, key: str) -> None:
        if key not in self.state[p]:
            self.state[p][key] = torch.zeros_like(p, dtype=math_dtype(p), requires_grad=False)

    def live_counts(self) -> list[Tensor | None]:
        """Nonzero entries of every parameter after its last step, in group order.

        Returns:
            0-dim int64 tensors on the device; None for a parameter that took no step since
            construction or loading.
        """
        params = (p for group in self.param_groups for p in group["params"])
        return [self._live[p][0][self._live[p][1]] if p in self._live else None for p in params]

    def active_counts(self) -> list[Tensor | None]:
        """Entries of the active set A of every parameter, in group order; None without a set."""
        out: list[Tensor | None] = []
        for p in (p for group in self.param_groups for p in group["params"]):
            words = self.state[p].get("active") if p in self.state else None
            if words is not None and p not in self._active_live:
                self._active_live[p] = unpack_mask([words], [p.shape])[0].sum()
            out.append(None if words is None else self._active_live[p])
        return out

    # -- step --------------------------------------------------------------------------------

    @abc.abstractmethod
    def _prepare(self, group: dict[str, Any], p: Tensor) -> None:
        """Create the state a step of ``p`` needs."""

    def _call_key(self, p: Tensor) -> tuple:
        """Parameters with equal keys go into one kernel call."""
        return ()

    @abc.abstractmethod
    def _kernel(
        self, group: dict[str, Any], params: list[Tensor], duals: Any, active: Any, lam: float
    ) -> Tensor:
        """Run the fused step; return the live counts."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient are left out.

        Args:
            closure: runs forward and backward and returns the loss; called with grad mode on.

        Returns:
            The closure's value, or None.

        Raises:
            RuntimeError: a sparse or complex gradient; nothing is modified.
            ValueError: an option was set out of range; nothing is modified.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        where = f"{type(self).__name__}.step"
        for group in self.param_groups:
            self._check_group(group)
            for p in group["params"]:
                if p.grad is not None:
                    check_dense_gradient(where, self.param_groups, p)
        t = self.steps_taken
        c, m = self._position(t)
        coarse = c < m
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            for p in with_grad:
                if self._has_dual(group, p) and "dual" not in self.state[p]:
                    self.state[p]["dual"] = self._subgradient_dual(group, p)
            frozen = coarse and group["reg"] != "none" and group["multilevel"]
            if frozen:
                begins = t == 0 or c == 0
                known = [p for p in group["params"] if "dual" in self.state.get(p, {})]
                stale = [p for p in known if begins or "active" not in self.state[p]]
                if stale:
                    self._refresh_active(group, stale)
            self._step_group(group, with_grad, frozen)
        for group in self.param_groups:
            group["cycle_step"] = t + 1
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor], frozen: bool) -> None:
        calls: dict[tuple, list[Tensor]] = {}
        for p in params:
            self._prepare(group, p)
            calls.setdefault((self._has_dual(group, p), *self._call_key(p)), []).append(p)
        for (with_dual, *_), own in calls.items():
            duals = [self.state[p]["dual"] for p in own] if with_dual else None
            active = [self.state[p]["active"] for p in own] if frozen else None
            live = self._kernel(group, own, duals, active, effective_lam(group))
            self._live.update((p, (live, i)) for i, p in enumerate(own))

    # -- checkpoints -------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave; every tensor keeps the dtype it was saved in.

        ``torch.optim.Optimizer`` would cast duals, moments, counts and mask words to the dtype of
        the parameter.

        Raises:
            ValueError: the groups do not fit.
        """
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(ids, params, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor):
                    if value.numel() != p.numel() and key != "active":
                        raise ValueError(
                            f"{type(self).__name__}.load_state_dict: {key} of "
                            f"{label(self.param_groups, p)} has {value.numel()} elements"
                        )
                    self.state[p][key] = value.detach().clone().to(p.device)
        self._live, self._active_live = {}, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_live", {})
        self.__dict__.setdefault("_active_live", {})
