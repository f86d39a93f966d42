"""Sharpness-aware minimisation, dense (SAM) and adaptive (ASAM)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ._ascent import Ascent
from ._support import Phase, check_int, is_capturing
from ._weight_mask import MaskOfParams, Masks


class SAM(Ascent):
    """Sharpness-aware minimisation around any torch optimizer.

    ``e = rho g / (||g|| + eps)`` with one norm over all groups, then the base optimizer updates w
    with the gradient at ``w + e``. Adaptive (ASAM): ``T = |w| + eta``, ``e = rho T^2 g / (||T g|| +
    eps)``. The weights come back bit for bit, by copy.

    Args:
        params: parameters, (name, parameter) pairs, or groups; ``rho``, ``adaptive`` and ``eta``
            may differ per group.
        base_optimizer_cls: optimizer class, called with the groups and ``base_kwargs``.
        rho: radius of the perturbation, >= 0; or a tensor with one element on the parameters'
            device, whose value is read there.
        adaptive: scale the perturbation by the weights (ASAM; wants a rho about ten times larger).
        eta: added to ``|w|`` in the adaptive form, >= 0.
        eps: added to the norm, >= 0.
        weight_mask: bool tensors (or None entries, all ones) over the trainable parameters, or a
            BitMask: the weights that exist; see ``set_weight_mask``.
        interval: perturb in every interval-th step; the others are plain base steps.
        check_gradients: look for infinities and NaN in the gradients at w + e too (one more read of
            them) where no ``GradScaler`` has done so; False: at w only.
        shard_group: process group over which every parameter is sharded (each rank holds other
            entries); the squared norm is summed over it.
        replica_group: process group of the ranks that hold the same weights; a step is then
            suppressed on all of them or on none. Needed where each rank has its own gradient at w.
        bn_modules: module or modules whose buffers (running statistics) advance in the pass at w
            only; what the pass at w + e writes into them is undone.
        closure_calls: 1: ``step(closure)`` calls it at w + e, the gradient at w is in ``.grad``
            already; 2: it is called at w as well.
        backend: "auto", "cuda", "triton", "cpp" or "reference".
        base_kwargs: for the base optimizer.

    Raises:
        ValueError: an argument is out of range.

    State:
        The base optimizer's, under its own keys. Beside it a backup of the perturbed entries
        (itemsize bytes each, reused, never saved), the packed weight mask (1/8 byte per parameter),
        ``skipped_steps`` (int64) and the step counter.

    Note:
        A gradient that is not finite, at w or at w + e, suppresses the update. With SGD, or a base
        with its step counter on the device (``fused=True``, ``capturable=True``), this is decided
        there from a parameter's second step on; with any other base one bool per step comes to the
        host. ``GradScaler`` works as usual (``first_step`` on the scaled gradients,
        ``scaler.step(opt)`` for the second).

        With torch's SGD, Adam or AdamW as base the restore is part of the base step, one pass over
        memory; SGD keeps torch's bits, Adam and AdamW agree to the last places. Any other base
        steps by itself after the restore, as it does after ``perturbed()``.

        Under data parallelism gradients are used as they are: averaged at w, all ranks share one
        e; computed under ``no_sync()`` at w, each rank has its own (m-sharpness; give
        ``replica_group`` then). Averaged at w + e, the weights stay equal on all ranks either way.

        A CUDA graph can capture ``first_step`` and ``second_step`` with torch's SGD, or with Adam
        or AdamW and ``capturable=True``, after one step that makes the state. ``lr`` and ``rho``
        given as tensors on the device are read there; numbers stay what they were at the capture.
        What the host decides raises under capture: ``interval``, a step counter on the host.
        Replays do not update masks.

        ``eps`` is this optimizer's; a base option of that name goes into the groups.

    Source: SAM, arXiv 2010.01412, eq. (2); ASAM, arXiv 2102.11600.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> x = torch.ones(4, 2)
        >>> model(x).square().mean().backward()
        >>> opt.first_step(zero_grad=True)
        >>> model(x).square().mean().backward()
        >>> opt.second_step(zero_grad=True)
    """

    def __init__(
        self,
        params: Any,
        base_optimizer_cls: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        *,
        eta: float = 0.0,
        eps: float = 1e-12,
        weight_mask: Masks | None = None,
        interval: int = 1,
        check_gradients: bool = True,
        shard_group: Any = None,
        replica_group: Any = None,
        bn_modules: nn.Module | Iterable[nn.Module] | None = None,
        closure_calls: int = 1,
        backend: str = "auto",
        **base_kwargs: Any,
    ) -> None:
        self.closure_calls = check_int("closure_calls", closure_calls, 1, 3)
        self.interval = check_int("interval", interval, 1)
        self._steps = 0
        defaults = {"rho": rho, "adaptive": bool(adaptive), "eta": eta}
        self._check_group(defaults)
        super().__init__(
            params, base_optimizer_cls, defaults, base_kwargs, bn_modules, backend,
            eps=eps, check_gradients=check_gradients, shard_group=shard_group,
            replica_group=replica_group,
        )  # fmt: skip
        if weight_mask is not None:
            self.set_weight_mask(weight_mask)

    # -- one step ----------------------------------------------------------------------------

    @property
    def perturbs(self) -> bool:
        """Whether the next step perturbs (``interval``); where not, one backward pass is enough:
        ``step()`` in the idle phase then updates with the gradient at w."""
        return self._steps % self.interval == 0

    @property
    def last_step_passes(self) -> tuple[int, int]:
        """Forwards and backwards of the last completed step."""
        return (2, 2) if (self._steps - 1) % self.interval == 0 else (1, 1)

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move the weights to w + e, from the gradients at w in ``.grad``.

        Args:
            zero_grad: clear the gradients afterwards.

        Raises:
            RuntimeError: already perturbed, no gradient, a sparse or complex gradient, or a mask
                that is not there.
        """
        self._refuse_perturbed("first_step")
        if self.interval != 1 and is_capturing():
            raise RuntimeError(
                f"{type(self).__name__}.first_step: which steps perturb is counted on the host; "
                "a CUDA graph needs interval=1"
            )
        self._guard.save()
        try:
            if self.perturbs:
                self._perturb()
            else:
                self._norm = None
        except BaseException:
            self.restore()
            raise
        self._phase = Phase.PERTURBED
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the weights and update them with the gradients at w + e in ``.grad``.

        Args:
            zero_grad: clear the gradients afterwards.

        Raises:
            RuntimeError: the weights are not perturbed, or no parameter has a gradient (the weights
                are restored first).
        """
        if self._phase is not Phase.PERTURBED:
            raise RuntimeError(
                f"{type(self).__name__}.second_step: call first_step first (phase {self._phase})"
            )
        self._descend()
        if zero_grad:
            self.zero_grad()

    def _descend(self) -> None:
        try:
            params = self._with_gradient("second_step")
            if not params and self.shard_group is None:
                raise RuntimeError(
                    f"{type(self).__name__}: no parameter has a gradient at w + e; "
                    "the weights are restored, nothing was updated"
                )
            skip = self._suppressed(params)
        except BaseException:
            self.restore()
            raise
        self._update(skip)
        self._steps += 1

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a whole step with a closure, or finish one.

        With a closure (it runs forward and backward and returns the loss): perturb from the
        gradients in ``.grad``, clear them, call it at w + e, restore, update. Without: the second
        step if the weights are perturbed, the update after ``perturbed()``.

        Args:
            closure: called with grad mode on and gradients cleared.

        Returns:
            The closure's value at w + e (with ``closure_calls=2`` the one at w), or None. In a step
            that does not perturb (``interval``) the closure is not called at w + e.

        Raises:
            RuntimeError: called in the wrong phase. In the idle phase without a closure only a step
                with lr 0 in every group is possible; it builds the base state and moves nothing.
        """
        if closure is None:
            self._finish()
            return None
        self._refuse_perturbed("step(closure)")
        if getattr(self, "found_inf", None) is not None:
            raise RuntimeError("a closure cannot be used under GradScaler; use first_step")
        value = None
        if self.closure_calls == 2:
            self.zero_grad()
            with torch.enable_grad():
                value = closure()
        if not self.perturbs:
            self._finish()
            return value
        self.first_step(zero_grad=True)
        try:
            with torch.enable_grad():
                at_perturbed = closure()
        except BaseException:
            self.restore()
            raise
        self._finish()
        return value if self.closure_calls == 2 else at_perturbed

    @torch.no_grad()
    def _finish(self) -> None:
        if self._phase is Phase.PERTURBED:
            self.second_step()
        elif self._phase is Phase.RESTORED:
            self._descend()
        elif not self.perturbs:
            self._norm = None
            self._descend()
        elif all(float(g["lr"]) == 0.0 for g in self.param_groups):
            self.base_optimizer.step()
        else:
            raise RuntimeError(
                f"{type(self).__name__}.step: needs a closure, first_step() or perturbed()"
            )

    @contextlib.contextmanager
    def perturbed(self) -> Iterator[None]:
        """Hold the weights at w + e inside the block; gradients are cleared at its start.

        They are restored on every way out; ``step()`` afterwards makes the update. After an
        exception there is none to make.

        Example:
            >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
            >>> opt = SAM([w], torch.optim.SGD, rho=1.0, lr=0.1)
            >>> w.square().sum().backward()
            >>> with opt.perturbed():
            ...     w.square().sum().backward()
            >>> opt.step()
            >>> w.data
            tensor([2.2800, 3.0400])
        """
        self.first_step(zero_grad=True)
        with self._hold():
            yield

    # -- checkpoints -------------------------------------------------------------------------

    def _extra_state(self) -> dict[str, Any]:
        weights = self._weights.state(self.param_groups)
        return {**super()._extra_state(), "steps": self._steps, "weights": weights}

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        where = f"{type(self).__name__}.load_state_dict"
        taken = MaskOfParams.read(where, self.param_groups, extra.get("weights", {}))
        super()._load_extra_state(extra)
        self._weights.take(*taken)
        self._mask_changed()
        self._steps = extra.get("steps", 0)
