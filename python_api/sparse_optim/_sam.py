"""Sharpness-aware minimisation, dense (SAM) and adaptive (ASAM)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import grad_norm, masked_perturb_

from ._base import PerturbingOptimizer
from ._support import Phase, check_int, check_number


class SAM(PerturbingOptimizer):
    """Sharpness-aware minimisation around any torch optimizer.

    ``e = rho g / (||g|| + eps)`` with one norm over all groups, then the base optimizer updates w
    with the gradient at ``w + e``. Adaptive (ASAM): ``T = |w| + eta``, ``e = rho T^2 g / (||T g|| +
    eps)``. The weights come back bit for bit, by copy.

    Args:
        params: parameters, (name, parameter) pairs, or groups; ``rho``, ``adaptive`` and ``eta``
            may differ per group.
        base_optimizer_cls: optimizer class, called with the groups and ``base_kwargs``.
        rho: radius of the perturbation, >= 0.
        adaptive: scale the perturbation by the weights (ASAM; wants a rho about ten times larger).
        eta: added to ``|w|`` in the adaptive form, >= 0.
        eps: added to the norm, >= 0.
        bn_modules: module or modules whose buffers (running statistics) advance in the pass at w
            only; what the pass at w + e writes into them is undone.
        closure_calls: 1: ``step(closure)`` calls it at w + e, the gradient at w is in ``.grad``
            already; 2: it is called at w as well.
        backend: "auto", "cuda", "triton", "cpp" or "reference".
        base_kwargs: for the base optimizer.

    Raises:
        ValueError: an argument is out of range.

    State:
        The base optimizer's, under its own keys. Beside it a backup of the perturbed parameters
        (itemsize bytes per parameter, reused, never saved) and ``skipped_steps`` (int64).

    Note:
        A gradient that is not finite, at w or at w + e, suppresses the update. With a fused base
        (``fused=True``) this is decided on the device, from a parameter's second step on; with any
        other base one bool per step comes to the host. ``GradScaler`` works as usual
        (``first_step`` on the scaled gradients, ``scaler.step(opt)`` for the second).

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
        bn_modules: nn.Module | Iterable[nn.Module] | None = None,
        closure_calls: int = 1,
        backend: str = "auto",
        **base_kwargs: Any,
    ) -> None:
        self.eps = check_number("eps", eps, 0.0)
        self.closure_calls = check_int("closure_calls", closure_calls, 1, 3)
        self._norm: Tensor | None = None
        defaults = {"rho": rho, "adaptive": bool(adaptive), "eta": eta}
        self._check_group(defaults)
        super().__init__(params, base_optimizer_cls, defaults, base_kwargs, bn_modules, backend)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_number("rho", group["rho"], 0.0)
        check_number("eta", group["eta"], 0.0)

    # -- ascent ------------------------------------------------------------------------------

    def _mask_words(self, params: list[Tensor]) -> list[Tensor] | None:
        """Packed perturbation masks of these parameters, None where every entry moves."""
        return None

    def _norm_masks(self, words: list[Tensor] | None) -> list[Tensor] | None:
        return None

    def _global_norm(self, params: list[Tensor], forms: list[tuple], words: Any) -> Tensor:
        """One norm over all groups, on the device."""
        counted = self._norm_masks(words)
        parts = []
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
        if len(parts) == 1:
            return parts[0]
        home = parts[0].device
        squares = torch.stack([n.to(home, torch.float64).square() for n in parts])
        wide = any(n.dtype == torch.float64 for n in parts)
        return squares.sum().sqrt().to(torch.float64 if wide else torch.float32)

    def _perturb(self) -> None:
        params = self._with_gradient("first_step")
        if not params:
            raise RuntimeError(f"{type(self).__name__}.first_step: no parameter has a gradient")
        form_of = {
            p: (check_number("rho", g["rho"], 0.0), bool(g["adaptive"]), float(g["eta"]))
            for g in self.param_groups
            for p in g["params"]
        }
        forms = [form_of[p] for p in params]
        words = self._mask_words(params)
        self._norm = self._global_norm(params, forms, words)
        for form in dict.fromkeys(forms):
            rho, adaptive, eta = form
            if rho == 0.0:
                continue  # adding 0 g would turn -0.0 into +0.0
            at = [i for i, f in enumerate(forms) if f == form]
            own = [params[i] for i in at]
            masked_perturb_(
                own, [p.grad for p in own], self._norm, rho,  # type: ignore[misc]
                masks=None if words is None else [words[i] for i in at],
                backup=self._backup_of(own), adaptive=adaptive, eta=eta, eps=self.eps,
                backend=self.backend,
            )  # fmt: skip
            self._note_moved(own)

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
        self._guard.save()
        try:
            self._perturb()
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
        self.restore()
        self._descend()
        if zero_grad:
            self.zero_grad()

    def _descend(self) -> None:
        params = self._with_gradient("second_step")
        self._phase = Phase.IDLE
        if not params:
            raise RuntimeError(
                f"{type(self).__name__}: no parameter has a gradient at w + e; "
                "the weights are restored, nothing was updated"
            )
        assert self._norm is not None
        skip = ~self._norm.isfinite()
        if getattr(self, "found_inf", None) is None:  # a scaler has looked at these already
            grads = [p.grad for p in params]
            norm = grad_norm(grads, backend=self.backend)  # type: ignore[arg-type]
            skip = skip | ~norm.isfinite().to(skip.device)
        self._apply_base(skip)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a whole step with a closure, or finish one.

        With a closure (it runs forward and backward and returns the loss): perturb from the
        gradients in ``.grad``, clear them, call it at w + e, restore, update. Without: the second
        step if the weights are perturbed, the update after ``perturbed()``.

        Args:
            closure: called with grad mode on and gradients cleared.

        Returns:
            The closure's value at w + e (with ``closure_calls=2`` the one at w), or None.

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
        with self.perturbed(), torch.enable_grad():
            at_perturbed = closure()
        self._finish()
        return value if self.closure_calls == 2 else at_perturbed

    @torch.no_grad()
    def _finish(self) -> None:
        if self._phase is Phase.PERTURBED:
            self.second_step()
        elif self._phase is Phase.RESTORED:
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
