"""A wrapper around a base optimizer that shares its groups, state and checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._support import Phase

STATE_KEY = "sparse_optim"
STATE_VERSION = 1
_FOREIGN_KEYS = ("old_p", "e_w", "mask")  # kept per parameter by other implementations
_NOT_COPIED = ("step", "_copies", "_opt_called", "grad_scale", "found_inf")


class WrappingOptimizer(Optimizer):
    """An optimizer whose ``param_groups`` and ``state`` are its base optimizer's own objects, so
    that schedulers, gradient scalers and checkpoints may use either."""

    base_optimizer: Optimizer

    def __init__(
        self,
        params: Any,
        base_optimizer_cls: Callable[..., Optimizer],
        defaults: dict[str, Any],
        base_kwargs: dict[str, Any],
    ) -> None:
        if isinstance(base_optimizer_cls, Optimizer) or not callable(base_optimizer_cls):
            raise ValueError(
                "base_optimizer_cls must be an optimizer class such as torch.optim.SGD, "
                f"got {type(base_optimizer_cls).__name__}"
            )
        self._own_defaults = dict(defaults)
        self._phase = Phase.IDLE
        super().__init__(params, defaults)
        base = base_optimizer_cls(self.param_groups, **base_kwargs)
        self.__dict__["base_optimizer"] = base  # from here on groups and state are the base's
        self.__dict__.pop("_first_groups", None)
        self.__dict__.pop("_first_state", None)
        self.defaults = {**base.defaults, **self._own_defaults}
        first = self.param_groups[0]["params"]
        self._skipped = torch.zeros(
            (), dtype=torch.int64, device=first[0].device if first else None
        )

    # -- phases ------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the optimizer stands: "idle", "perturbed" or "restored"."""
        return self._phase

    @property
    def skipped_steps(self) -> Tensor:
        """Updates suppressed because a gradient was not finite; int64, on the device."""
        return self._skipped

    def _refuse_perturbed(self, what: str) -> None:
        if self._phase is Phase.PERTURBED:
            raise RuntimeError(
                f"{type(self).__name__}.{what}: the weights are perturbed; "
                "finish the step or call restore() first"
            )

    # -- one list of groups, one state -------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        base = self.__dict__.get("base_optimizer")
        return self.__dict__["_first_groups"] if base is None else base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        base = self.__dict__.get("base_optimizer")
        if base is None:
            self.__dict__["_first_groups"] = value
        else:
            base.param_groups = value

    @property
    def state(self) -> Any:
        base = self.__dict__.get("base_optimizer")
        return self.__dict__["_first_state"] if base is None else base.state

    @state.setter
    def state(self, value: Any) -> None:
        base = self.__dict__.get("base_optimizer")
        if base is None:
            self.__dict__["_first_state"] = value
        else:
            base.state = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not give come from this optimizer and the base.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: an option is out of range.
        """
        self._refuse_perturbed("add_param_group")
        filled = {**self._own_defaults, **param_group}
        self._check_group(filled)
        if "base_optimizer" not in self.__dict__:
            super().add_param_group(filled)
        else:
            self.base_optimizer.add_param_group(filled)

    def _check_group(self, group: dict[str, Any]) -> None:
        """ValueError for an option of one group that is out of range."""

    # -- checkpoints and copies --------------------------------------------------------------

    def _extra_state(self) -> dict[str, Any]:
        """Plain values and tensors beyond the base state."""
        return {"version": STATE_VERSION, "skipped_steps": self._skipped.clone()}

    def _check_format(self, extra: dict[str, Any]) -> None:
        if extra.get("version") != STATE_VERSION:
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: format version {extra.get('version')}, "
                f"this release reads {STATE_VERSION}"
            )

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        self._check_format(extra)
        self._skipped.copy_(extra["skipped_steps"])

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, which loads into it alone too, and ours beside it.

        Never a copy of the weights. ``torch.load(weights_only=True)`` reads it.

        Raises:
            RuntimeError: the weights are perturbed.
        """
        self._refuse_perturbed("state_dict")
        return {**self.base_optimizer.state_dict(), STATE_KEY: self._extra_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave; a plain base checkpoint loads as well.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: the groups do not fit or the format is another one.
        """
        self._refuse_perturbed("load_state_dict")
        sizes = [len(g["params"]) for g in state_dict["param_groups"]]
        if sizes != [len(g["params"]) for g in self.param_groups]:
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: the checkpoint has groups of {sizes}"
            )
        extra = state_dict.get(STATE_KEY)
        state, foreign = {}, False
        for key, value in state_dict["state"].items():
            foreign |= any(k in value for k in _FOREIGN_KEYS)
            state[key] = {k: v for k, v in value.items() if k not in _FOREIGN_KEYS}
        if foreign:
            warnings.warn(
                f"{type(self).__name__}.load_state_dict: weight copies and float masks of another "
                "implementation were left out",
                stacklevel=2,
            )
        if extra is not None:
            self._load_extra_state(extra)
        ours = [{k: g[k] for k in self._own_defaults} for g in self.param_groups]
        rest = {k: v for k, v in state_dict.items() if k != STATE_KEY}
        self.base_optimizer.load_state_dict({**rest, "state": state})
        for group, kept in zip(self.param_groups, ours, strict=True):
            for k, v in kept.items():
                group.setdefault(k, v)
        self._phase = Phase.IDLE

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_perturbed("__getstate__")
        return {
            k: v
            for k, v in self.__dict__.items()
            if k not in _NOT_COPIED and not (k.startswith("_optimizer_") and k.endswith("_hooks"))
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        super().__setstate__({})
