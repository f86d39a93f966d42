"""What the Bregman optimizers share: groups, lazy duals, the multilevel cycle, the step."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._active_set import ActiveSet, Work
from ._bregman_duals import BregmanDuals
from ._capturable import (
    ON_DEVICE,
    check_capturable,
    check_capture,
    check_rate,
    keep_on_device,
)
from ._regularizers import (
    DEFAULTS,
    ENTRYWISE,
    check_options,
    check_start,
    check_tensor,
    entry_lam,
    is_nonnegative,
    math_dtype,
    readout_,
)
from ._support import (
    check_backend,
    check_dense_gradients,
    check_int,
    check_number,
    is_capturing,
    label,
)

_ONE_CYCLE = ("coarse_steps", "phase_offset")  # one value for the whole optimizer


class BregmanOptimizer(BregmanDuals, Optimizer, abc.ABC):
    """Base of the Bregman optimizers; see ``LinBreg``."""

    _state_names: tuple[str, ...] = ()  # tensors of the state that a step of a coordinate changes

    def __init__(
        self, params: Any, defaults: dict[str, Any], backend: str, compact: bool = True
    ) -> None:
        self.backend = check_backend(backend)
        self._active = ActiveSet(self.backend, bool(compact))
        self._live: dict[Tensor, tuple[Tensor, int]] = {}
        self._readout_hook: Callable[[], None] | None = None
        self._begun = -1  # the step before which the present phase's active sets were found
        rates = defaults["lr"]
        if isinstance(rates, (list, tuple)):
            params = _with_rates(list(params), list(rates))
            defaults = {**defaults, "lr": rates[0]}
        super().__init__(params, {**DEFAULTS, **defaults})

    # -- groups ------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it joins the cycle where that stands.

        Raises:
            ValueError: an option is out of range, the regulariser has no meaning for a tensor of
                the group, or ``coarse_steps`` or ``phase_offset`` differ from those of the other
                groups (there is one cycle).
        """
        filled = {**self.defaults, **param_group}
        if self.param_groups:
            filled["cycle_step"] = self.param_groups[0]["cycle_step"]
            for key in _ONE_CYCLE:
                if filled[key] != self.param_groups[0][key]:
                    raise ValueError(f"{key} must be the same in every group")
        self._check_group(filled)
        self._check_group({**filled, "capturable": False})  # with the values of tensors, once
        super().add_param_group(filled)
        added = self.param_groups[-1]
        try:
            for p in added["params"]:
                check_tensor(added, p, label(self.param_groups, p))
        except ValueError:
            self.param_groups.pop()
            raise
        keep_on_device(added, ON_DEVICE)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group, "lr")
        for name in ("weight_decay", "dual_leak"):
            check_number(name, group[name], 0.0)
        check_capturable(group)
        check_number("delta", group["delta"], 0.0, strict=True)
        check_number("fine_scale", group["fine_scale"], 1.0)
        check_options(group)
        m = check_int("coarse_steps", group["coarse_steps"], 0)
        check_int("phase_offset", group["phase_offset"], 0, m + 1)
        if group["reg"] == "nuclear" and m > 0 and group["multilevel"]:
            raise ValueError(
                "reg 'nuclear' has no entries or groups to freeze: coarse_steps needs "
                "multilevel=False in its group"
            )
        if group["reg"] not in (*ENTRYWISE, "none") and group["fine_scale"] != 1.0:
            raise ValueError(f"fine_scale acts on entries: reg must be one of {ENTRYWISE}")

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

    def _freezes(self, group: dict[str, Any]) -> bool:
        return group["reg"] != "none" and group["multilevel"] and group["coarse_steps"] > 0

    # -- step --------------------------------------------------------------------------------

    def _prepare(self, group: dict[str, Any], p: Tensor, own: dict[str, Any]) -> None:
        """Create what a step of ``p`` needs in its state."""
        for name in self._wanted_state(group):
            if name not in own:
                own[name] = torch.zeros_like(p, dtype=math_dtype(p), requires_grad=False)

    def _count_steps(
        self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]
    ) -> None:
        """Hook: these parameters, with these states, take a step."""

    def _wanted_state(self, group: dict[str, Any]) -> Sequence[str]:
        """Names of the moments and buffers of a group."""
        return self._state_names

    def _call_key(self, own: dict[str, Any]) -> tuple:
        """Parameters whose states have equal keys go into one kernel call."""
        return ()

    @abc.abstractmethod
    def _kernel(self, group: dict[str, Any], work: Work, **modes: Any) -> Tensor:
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
            ValueError: an option was set out of range; with coarse steps, a full step's gradient is
                not finite (frozen duals would keep it for a cycle); nothing is modified.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_step()
        coarse = self.next_is_coarse
        if coarse:
            self._ready_phase()
        else:
            self._active.drop_gradients()
            self._active.write_back(self._own)
            self._apply_queued_lam()
        pending = []
        for group in self.param_groups:
            for work in self._works(group, coarse and self._freezes(group)):
                pending += self._move(group, work, coarse)
        if pending and self._readout_hook is not None and not coarse:
            self._readout_hook()
            pending += self._resting(pending)
        for group, work in pending:
            self._read_out(group, work)
        for group in self.param_groups:
            group["cycle_step"] += 1
        return loss

    def _check_step(self) -> None:
        """Everything that may be wrong, before anything changes."""
        where = f"{type(self).__name__}.step"
        if is_capturing():
            check_capture(where, self.param_groups, self._readout_hook is not None)
        full = not self.next_is_coarse
        for group in self.param_groups:
            self._check_group(group)
            keep_on_device(group, ON_DEVICE)
            with_grad = [p for p in group["params"] if p.grad is not None]
            check_dense_gradients(where, self.param_groups, with_grad)
            for p in with_grad:
                if "dual" not in self._own.get(p, ()) and self._has_dual(group, p):
                    check_start(group, p, label(self.param_groups, p))
            if (full and self._freezes(group)) or group["reg"] == "nuclear":
                self._check_finite(where, with_grad)

    def _check_finite(self, where: str, params: list[Tensor]) -> None:
        """Read the gradients once; one bool comes to the host."""
        params = [p for p in params if p.numel()]
        if not params:
            return
        home = params[0].device
        largest = torch._foreach_norm([p.grad for p in params], float("inf"))  # type: ignore[misc]
        finite = torch.stack([x.to(home, torch.float64) for x in largest]).isfinite()
        if not bool(finite.all()):
            p = params[int(finite.logical_not().nonzero()[0])]
            raise ValueError(
                f"{where}: the gradient of {label(self.param_groups, p)} has NaN or infinite "
                "entries in a full step of the cycle, or for singular values"
            )

    @torch.no_grad()
    def _ready_phase(self) -> None:
        """Find the active sets that the next step, a coarse one, works on."""
        t = self.steps_taken
        begins = self._begun != t and (t == 0 or self._position(t)[0] == 0)
        for group in self.param_groups:
            if self._freezes(group):
                self._ready_active(group, begins)
        self._begun = t

    def _ready_active(self, group: dict[str, Any], begins: bool) -> None:
        self._make_duals(group, [p for p in group["params"] if self._active.has_gradient(p)])
        known = self._with_dual(group)
        stale = [p for p in known if begins or "active" not in self._own[p]]
        if stale:
            self._active.refresh(group, stale, self._own)
        self._active.locate(group, known, self._own)
        if stale:
            self._after_refresh(group, stale)

    def _after_refresh(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Hook for state that depends on which coordinates are frozen."""

    def _works(self, group: dict[str, Any], frozen: bool) -> list[Work]:
        """The calls of a step of one group."""
        params = [
            p
            for p in group["params"]
            if p.grad is not None or (frozen and self._active.has_gradient(p))
        ]
        entries = self._make_duals(group, params)
        self._count_steps(group, params, entries)
        calls: dict[tuple, tuple[list[Tensor], list[dict[str, Any]]]] = {}
        for p, entry in zip(params, entries, strict=True):
            self._prepare(group, p, entry)
            compact = frozen and self._active.compacts(p)
            key = (compact, self._has_dual(group, p), *self._call_key(entry))
            owners, states = calls.setdefault(key, ([], []))
            owners.append(p)
            states.append(entry)
        works = []
        for (compact, with_dual, *_), (own, state) in calls.items():
            if compact:
                works.append(self._active.work(own, self._own, self._state_names))
                continue
            works.append(
                Work(
                    own, own, [p.grad for p in own],  # type: ignore[misc]
                    [s["dual"] for s in state] if with_dual else None,
                    {n: [s[n] for s in state] for n in self._state_names if n in state[0]},
                    self._active.masked(group, own, self._own) if frozen else None,
                )
            )  # fmt: skip
        return works

    def _move(
        self, group: dict[str, Any], work: Work, coarse: bool
    ) -> list[tuple[dict[str, Any], Work]]:
        """Step the duals; what the kernel does not read out itself is returned."""
        entrywise = group["reg"] in ENTRYWISE
        inside = group["reg"] == "none" or (entrywise and (self._readout_hook is None or coarse))
        scaled = entrywise and inside and not coarse and self._freezes(group)
        live = self._kernel(
            group, work, lam=entry_lam(group) if inside else 0.0,
            nonnegative=is_nonnegative(group), readout=inside,
            dual_leak=float(group["dual_leak"]) if group["reg"] != "none" else 0.0,
            fine_scale=float(group["fine_scale"]) if scaled else 1.0,
        )  # fmt: skip
        if not inside:
            return [(group, work)]
        self._count(work, live)
        return []

    def _resting(self, pending: list[tuple[dict[str, Any], Work]]) -> list[Any]:
        """Weights that took no step but follow a new lam."""
        moved = {p for _, work in pending for p in work.owners}
        rest = []
        for group in self.param_groups:
            own = [p for p in self._with_dual(group) if p not in moved and group["reg"] != "none"]
            if own:
                rest.append((group, Work(own, own, [], [self._own[p]["dual"] for p in own])))
        return rest

    def _read_out(self, group: dict[str, Any], work: Work) -> None:
        assert work.duals is not None
        stats = readout_(group, work.params, work.duals, self.backend, tilings=work.tilings)
        self._count(work, stats.live)

    def _count(self, work: Work, live: Tensor) -> None:
        self._live.update((p, (live, i)) for i, p in enumerate(work.owners))
        if work.tilings is not None:
            self._active.show(work.owners)


def _with_rates(groups: list[Any], rates: list[float]) -> list[dict[str, Any]]:
    """Parameter groups with a learning rate each."""
    if not groups or not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    if len(rates) != len(groups):
        raise ValueError(f"lr has {len(rates)} values for {len(groups)} parameter groups")
    return [{**g, "lr": lr} for g, lr in zip(groups, rates, strict=True)]
