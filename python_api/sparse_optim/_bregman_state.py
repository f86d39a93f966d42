"""State of the Bregman optimizers as their users see it: counts, copies, checkpoints."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ._active_set import ActiveSet
from ._capturable import ON_DEVICE, keep_on_device
from ._regularizers import DEFAULTS, check_tensor, unit_count
from ._support import label, name_of

if TYPE_CHECKING:
    from torch.optim import Optimizer as _Base
else:
    _Base = object


class Nonzeros(NamedTuple):
    """Nonzero entries of one parameter.

    Attributes:
        name: as the parameter was given to the optimizer, else its place in the groups.
        live, numel: nonzero and all entries.
        regularized: whether a regulariser acts on it.
    """

    name: str
    live: int
    numel: int
    regularized: bool


class BregmanState(_Base):
    """Mixin of ``BregmanOptimizer``: everything about its state but the step."""

    _active: ActiveSet
    _begun: int
    _live: dict[Tensor, tuple[Tensor, int]]
    _own: dict[Tensor, dict[str, Any]]
    backend: str

    if TYPE_CHECKING:  # of BregmanOptimizer

        @property
        def next_is_coarse(self) -> bool: ...
        def _freezes(self, group: dict[str, Any]) -> bool: ...
        def _ready_phase(self) -> None: ...

    # -- state -------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """The state of every parameter.

        In a coarse phase that of active entries is worked on in copies; reading ``state`` puts them
        back first, and the next coarse step copies anew.
        """
        self._active.write_back(self._own)
        return self._own

    @state.setter
    def state(self, value: Any) -> None:
        self._own = value

    def live_counts(self) -> list[Tensor | None]:
        """Nonzero entries of every parameter after its last step, in group order.

        Returns:
            0-dim int64 tensors on the device; None for a parameter that took no step since
            construction or loading.
        """
        params = (p for group in self.param_groups for p in group["params"])
        return [self._live[p][0][self._live[p][1]] if p in self._live else None for p in params]

    def active_counts(self) -> list[Tensor | int | None]:
        """Entries of the active set A of every parameter, in group order; None without a set."""
        out: list[Tensor | int | None] = []
        for group in self.param_groups:
            known = [p for p in group["params"] if "active" in self._own.get(p, {})]
            self._active.locate(group, known, self._own)
            out += [self._active.counts.get(p) for p in group["params"]]
        return out

    @torch.no_grad()
    def nonzeros(self) -> list[Nonzeros]:
        """Nonzero entries per parameter, for logging; reads the device once.

        Warns where a regularised parameter has none left: a layer of zeros passes no gradient on.
        """
        groups = [(g, p) for g in self.param_groups for p in g["params"]]
        counts = [
            p.count_nonzero() if n is None else n
            for (_, p), n in zip(groups, self.live_counts(), strict=True)
        ]
        home = counts[0].device
        live = torch.stack([n.to(home) for n in counts]).tolist()
        rows = []
        for (g, p), n in zip(groups, live, strict=True):
            name = name_of(self.param_groups, p) or label(self.param_groups, p)
            rows.append(Nonzeros(name, n, p.numel(), g["reg"] != "none"))
            if n == 0 and p.numel() and g["reg"] != "none":
                warnings.warn(f"{type(self).__name__}: every entry of {name} is zero", stacklevel=2)
        return rows

    def sparsity(self) -> float:
        """Fraction of the regularised entries that is zero; reads the device."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = [row for row in self.nonzeros() if row.regularized]
        total = sum(row.numel for row in rows)
        return 1.0 - sum(row.live for row in rows) / total if total else 0.0

    # -- a coarse phase from outside ---------------------------------------------------------

    def _in_phase(self, what: str, p: Tensor) -> None:
        if self.next_is_coarse:
            self._ready_phase()
        if not self._active.compacts(p):
            name = label(self.param_groups, p)
            raise RuntimeError(
                f"{type(self).__name__}.{what}: {name} has no copies of its active entries: it "
                "must be regularised with coarse steps and have a dual (init_dual), with "
                "compact=True and at most half of it active"
            )

    @torch.no_grad()
    def active_index(self, p: Tensor) -> tuple[Tensor, int]:
        """Which entries of a parameter step in the present coarse phase.

        Before the first step of a phase this finds the active sets; ``step`` keeps them.

        Returns:
            (index int32 [k], run): entries ``run * i ... run * i + run - 1`` for every i of index,
            flattened row-major.

        Raises:
            RuntimeError: the parameter has no dual yet, or works under a mask.
        """
        self._in_phase("active_index", p)
        return self._active.index(p)

    @torch.no_grad()
    def active_values(self, p: Tensor) -> Tensor:
        """Values of the active entries, in the order of ``active_index``; a view, do not write.

        Raises:
            RuntimeError: as for ``active_index``.
        """
        self._in_phase("active_values", p)
        return self._active.copy(p, self._own)["param"]

    @torch.no_grad()
    def set_active_gradient(self, p: Tensor, values: Tensor) -> None:
        """Give the gradient of the active entries alone, in place of ``p.grad``, to the next step.

        The step reads it where it is, as it does ``p.grad``; ``zero_grad`` drops it.

        Args:
            p: a parameter of this optimizer.
            values: as many as the active entries, in the order of ``active_index``.

        Raises:
            RuntimeError: as for ``active_index``, or the next step is a full one.
            ValueError: another number of values.
        """
        if not self.next_is_coarse:
            raise RuntimeError("set_active_gradient: the next step needs every entry's gradient")
        self._in_phase("set_active_gradient", p)
        if values.numel() != int(self._active.counts[p]):
            raise ValueError(
                f"set_active_gradient: {label(self.param_groups, p)} has "
                f"{int(self._active.counts[p])} active entries, got {values.numel()} values"
            )
        self._active.give_gradient(p, values, self._own)

    @torch.no_grad()
    def mask_grads_(self) -> None:
        """Make every ``p.grad`` the gradient that the next step takes, for clipping and checks.

        Before a coarse step that is +0.0 off the active set, whatever was there, and on it what
        ``set_active_gradient`` gave, where it gave anything. Before a full step nothing changes.
        """
        if not self.next_is_coarse:
            return
        self._ready_phase()
        for group in self.param_groups:
            if self._freezes(group):
                for p in group["params"]:
                    if self._active.has_gradient(p):
                        self._active.mask_gradient_(group, p, self._own)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As ``torch.optim.Optimizer.zero_grad``; gradients of active entries go, too."""
        self._active.drop_gradients()
        super().zero_grad(set_to_none)

    @property
    def writes_params(self) -> bool:
        """Whether coarse steps write the parameters (True), or ``active_values`` alone.

        Set it to False where the forward pass of the coarse phase reads ``active_values``; the
        parameters follow when the phase ends or ``state`` is read.
        """
        return self._active.write_through

    @writes_params.setter
    def writes_params(self, value: bool) -> None:
        self._active.write_back(self._own)
        self._active.write_through = bool(value)

    # -- checkpoints -------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave; every tensor keeps the dtype it was saved in.

        ``torch.optim.Optimizer`` would cast duals, moments, counts and mask words to the dtype of
        the parameter. ``capturable`` stays as it is here: it says where numbers are, not which.
        Graphs that were captured before read the old state: capture anew.

        Raises:
            ValueError: groups or tensors do not fit; nothing is modified.
        """
        pairs = self._loaded(state_dict)
        capturable = [group["capturable"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for _, p, own in pairs:
            for key, value in own.items():
                if isinstance(value, Tensor):
                    self._own[p][key] = value.detach().clone().to(p.device)
        for group, here in zip(self.param_groups, capturable, strict=True):
            group["capturable"] = here
            for name in ON_DEVICE:
                group[name] = float(group[name])
            keep_on_device(group, ON_DEVICE)
        self._place_steps()

    def _place_steps(self) -> None:
        """Hook: step counts of a checkpoint become what the groups want, numbers or tensors."""

    def _lr(self, group: dict[str, Any]) -> float | Tensor:
        return group["lr"] if group["capturable"] else float(group["lr"])

    def _loaded(self, state_dict: dict[str, Any]) -> list[tuple[dict[str, Any], Tensor, Any]]:
        """Saved group, parameter and saved state; ValueError where they do not fit."""
        where = f"{type(self).__name__}.load_state_dict"
        sizes = [len(group["params"]) for group in self.param_groups]
        if sizes != [len(group["params"]) for group in state_dict["param_groups"]]:
            raise ValueError(f"{where}: the groups have other numbers of parameters")
        found = []
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, i in zip(group["params"], saved["params"], strict=True):
                own = state_dict["state"].get(i, {})
                for key, value in own.items():
                    wanted = p.shape
                    if key == "active":
                        check_tensor(saved, p, label(self.param_groups, p))
                        wanted = torch.Size([-(-unit_count(saved, p) // 32)])
                    if key == "step":
                        wanted = torch.Size([])
                    if isinstance(value, Tensor) and value.shape != wanted:
                        raise ValueError(
                            f"{where}: {key} of {label(self.param_groups, p)} has shape "
                            f"{tuple(value.shape)}"
                        )
                found.append((saved, p, own))
        return found

    def __getstate__(self) -> dict[str, Any]:
        own = {"backend": self.backend, "compact": self._active.compact}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self._own = state.pop("state", defaultdict(dict))
        compact = state.pop("compact", True)
        super().__setstate__(state)
        if "_active" not in self.__dict__:
            self._active = ActiveSet(self.backend, compact)
        self._live, self._begun = {}, -1
        self._active.forget()
        self.__dict__.setdefault("_readout_hook", None)
        for group in self.param_groups:
            for name, value in DEFAULTS.items():  # of checkpoints from before there were such
                group.setdefault(name, value)
