"""Sparse sharpness-aware minimisation: the perturbation is masked, the update is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._bitmask import BitMask
from ._dynamic_mask import DynamicMask
from ._fisher import FisherMask
from ._patterns import Pattern
from ._policy import MaskPolicy, Scope
from ._sam import SAM
from ._support import check_int, check_number, label, name_of, trainable
from ._weight_mask import MaskOfParams, Masks, checked_masks

NORMS = ("dense", "masked")


class SSAM(SAM):
    """Sparse SAM: only the entries of a mask are perturbed; every weight is trained.

    ``norm="dense"``: ``e = m rho g / (||g|| + eps)``, as published, shorter than rho.
    ``norm="masked"``: ``e = rho m g / (||m g|| + eps)``, of length rho.

    Args:
        params, base_optimizer_cls, rho, adaptive, eta, eps, weight_mask, interval,
            check_gradients, shard_group, replica_group, bn_modules, closure_calls, backend,
            base_kwargs: as in ``SAM``.
        sparsity: s in [0, 1], fraction of entries NOT perturbed, over all parameters together; or a
            function of the number of the mask update. May be set later; the next ``update_mask``
            uses it.
        mask: policy; default ``FisherMask()``, whose mask must be asked for with
            ``update_mask(model, samples, loss_fn)`` before the first step. Policies without data
            make theirs at construction.
        pattern: "unstructured", "row" ("filter"), "tensor", "n:m" such as "2:4", or a ``Pattern``.
        axis: of n:m groups, "in" or "out", where the pattern is given by name.
        mask_scope: ``f(name, parameter) -> bool``; parameters it refuses are perturbed wholly and
            not counted. Names are those the groups were given, else "".
        norm: "dense" or "masked".
        mask_group: process group whose rank 0 hands its new masks to the others.
        seed: of policies that draw numbers, in [0, 2^64).

    Raises:
        ValueError: an argument is out of range.

    State:
        As ``SAM``, and the packed mask: 1/8 byte per parameter.

    Source: Sparse SAM, arXiv 2210.05177 and 2306.17504, as the released code (Mi-Peng) computes it.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
        >>> loss_fn = torch.nn.functional.cross_entropy
        >>> opt = SSAM(model.parameters(), torch.optim.SGD, rho=0.1, sparsity=0.5, lr=0.1)
        >>> opt.update_mask(model, (x, y), loss_fn)
        >>> loss_fn(model(x), y).backward()
        >>> loss = opt.step(lambda: loss_fn(model(x), y).backward())
        >>> opt.mask.live
        5
    """

    def __init__(
        self,
        params: Any,
        base_optimizer_cls: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        *,
        sparsity: float | Callable[[int], float] = 0.5,
        mask: MaskPolicy | None = None,
        pattern: str | Pattern = "unstructured",
        axis: str = "in",
        mask_scope: Scope | None = None,
        norm: str = "dense",
        eta: float = 0.0,
        eps: float = 1e-12,
        weight_mask: Masks | None = None,
        interval: int = 1,
        check_gradients: bool = True,
        shard_group: Any = None,
        replica_group: Any = None,
        mask_group: Any = None,
        bn_modules: nn.Module | Iterable[nn.Module] | None = None,
        closure_calls: int = 1,
        seed: int = 0,
        backend: str = "auto",
        **base_kwargs: Any,
    ) -> None:
        if norm not in NORMS:
            raise ValueError(f"norm must be 'dense' or 'masked', got {norm!r}")
        if mask is not None and not isinstance(mask, MaskPolicy):
            raise ValueError(
                f"mask must be a policy such as FisherMask(), got {type(mask).__name__}; "
                "a mask of your own goes to set_masks"
            )
        self.sparsity = sparsity if callable(sparsity) else check_number("sparsity", sparsity, 0, 1)
        self.norm_form, self.seed = norm, check_int("seed", seed, 0, 2**64)
        self.policy = FisherMask() if mask is None else mask
        self.pattern = pattern if isinstance(pattern, Pattern) else Pattern(pattern, axis=axis)
        if isinstance(self.policy, DynamicMask) and (
            self.pattern.name != "unstructured" or self.pattern.per_layer
        ):
            raise ValueError("DynamicMask: the pattern must be 'unstructured' and not per layer")
        self.mask_scope, self.mask_group = mask_scope, mask_group
        self._perturbation = MaskOfParams()
        self._mask_updates = 0
        self._pending: BitMask | None = None
        self._due: float | None = None  # time of a dynamic exchange that the next step makes
        super().__init__(
            params, base_optimizer_cls, rho, adaptive, eta=eta, eps=eps, weight_mask=weight_mask,
            interval=interval, check_gradients=check_gradients, shard_group=shard_group,
            replica_group=replica_group, bn_modules=bn_modules, closure_calls=closure_calls,
            backend=backend, **base_kwargs,
        )  # fmt: skip
        if self.policy.init != "score" or not self.policy.needs_data:
            first = self._scoped(self._initial)
            self._share(first)
            self._take(first)
            self._mask_updates = 1

    # -- the mask ----------------------------------------------------------------------------

    @property
    def mask(self) -> BitMask | None:
        """The mask in force, over the trainable parameters in group order, or None."""
        return self._perturbation.mask

    def _take(self, mask: BitMask | None, params: list[Tensor] | None = None) -> None:
        self._perturbation.take(trainable(self.param_groups) if params is None else params, mask)
        self._pending = None  # made from the mask before
        self._mask_changed()

    def _sparsity(self) -> float:
        value = self.sparsity(self._mask_updates) if callable(self.sparsity) else self.sparsity
        return check_number("sparsity", value, 0.0, 1.0)

    def _scoped(self, make: Callable[[list[Tensor], BitMask | None], BitMask]) -> BitMask:
        """A mask over all trainable parameters, made over those in the scope; 1 elsewhere."""
        params = trainable(self.param_groups)
        inside = [i for i, p in enumerate(params) if self._in_scope(p)]
        own = [params[i] for i in inside]
        part = make(own, self._weights.over(own))
        whole = BitMask.full(params)
        for i, word in zip(inside, part.words, strict=True):
            whole.words[i] = word
        return whole

    def _in_scope(self, param: Tensor) -> bool:
        scope = self.mask_scope
        return scope is None or bool(scope(name_of(self.param_groups, param), param))

    def _names(self, params: list[Tensor]) -> list[str]:
        return [label(self.param_groups, p) for p in params]

    def _initial(self, params: list[Tensor], within: BitMask | None) -> BitMask:
        mask = self.policy.initial(
            params, self._sparsity(), seed=self.seed, pattern=self.pattern, within=within,
            names=self._names(params),
        )  # fmt: skip
        assert mask is not None
        return mask

    @torch.no_grad()
    def update_mask(self, *data: Any) -> None:
        """Make a new mask by the policy at the present weights; it acts from the next step on.

        A ``DynamicMask`` exchanges entries in the course of the next step, by the gradient and the
        weights at w, and the new mask acts from the step after it. If that step is suppressed, the
        exchange waits for the one after.

        Args:
            data: what the policy needs; for ``FisherMask`` (model, samples, loss_fn), for
                ``DynamicMask`` the time t (epochs, say).

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: data are missing, the sparsity is out of range, or a score is not finite
                (naming the parameter); the old mask stays.
        """
        self._refuse_perturbed("update_mask")
        if isinstance(self.policy, DynamicMask):
            if len(data) != 1:
                raise ValueError("DynamicMask needs the time of the update: update_mask(t)")
            self._due = check_number("t", data[0], -float("inf"))
            return
        sparsity = self._sparsity()
        mask = self._scoped(
            lambda params, within: self.policy.compute(
                params, sparsity, *data, seed=self.seed, update=self._mask_updates,
                pattern=self.pattern, within=within, names=self._names(params),
            )
        )  # fmt: skip
        self._share(mask)
        self._take(mask)
        self._mask_updates += 1

    def _share(self, mask: BitMask) -> None:
        if self.mask_group is not None:
            for word in mask.words:
                torch.distributed.broadcast(word, group=self.mask_group, group_src=0)

    def set_masks(self, masks: Masks) -> None:
        """Use a mask of your own: True (or bit 1) where the entry is perturbed.

        Args:
            masks: bool tensors shaped like the trainable parameters, in group order, or a BitMask.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: number, shape, dtype or device does not fit; the old mask stays.
        """
        self._refuse_perturbed("set_masks")
        params, mask = checked_masks("set_masks", self.param_groups, masks)
        self._take(mask, params)

    # -- one step ----------------------------------------------------------------------------

    def _perturbed_mask(self, params: list[Tensor]) -> BitMask:
        mask = self._perturbation.over(params)
        assert mask is not None
        weights = self._weights.over(params)
        return mask if weights is None else mask & weights

    def _check_mask(self) -> None:
        if self.mask is None:
            raise RuntimeError(
                f"SSAM: no mask yet; call update_mask(...) for {type(self.policy).__name__} "
                "or set_masks(...) before the first step"
            )
        for p in trainable(self.param_groups):
            if p not in self._perturbation:
                raise RuntimeError(
                    f"SSAM: {label(self.param_groups, p)} has no mask; call update_mask"
                )

    def _norm_words(self, params: list[Tensor]) -> list[Tensor] | None:
        if self.norm_form == "masked" and self._packed is not None:
            return self._packed.words(params)
        return super()._norm_words(params)

    def _perturb(self) -> None:
        self._check_mask()
        self._pending = self._exchanged()
        super()._perturb()

    def _exchanged(self) -> BitMask | None:
        """The mask after a dynamic exchange that is due, scored at w before the ascent."""
        policy, time = self.policy, self._due
        if time is None or not isinstance(policy, DynamicMask):
            return None

        def make(params: list[Tensor], within: BitMask | None) -> BitMask:
            before = self._perturbation.over(params)
            assert before is not None
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            before = before if within is None else before & within
            return policy.exchange(
                before, before.live, params, grads, self._sparsity(), time,
                seed=self.seed, update=self._mask_updates, within=within,
            )  # fmt: skip

        return self._scoped(make)

    def _descend(self) -> None:
        pending, self._pending = self._pending, None
        skipped = None if pending is None else self._skipped.clone()
        super()._descend()
        # the exchange belongs to a completed step: one value comes from the device to know
        if pending is not None and bool(self._skipped == skipped):
            self._share(pending)
            self._take(pending)
            self._mask_updates += 1
            self._due = None
        every = getattr(self.policy, "update_every", None)
        if every is not None and self._steps % every == 0:
            # here and not in the ascent: the step at that time may not perturb (interval)
            self._due = float(self._steps)

    def restore(self) -> None:
        """As in ``SAM``; an exchange of the mask that was due stays due."""
        self._pending = None
        super().restore()

    # -- checkpoints -------------------------------------------------------------------------

    def _extra_state(self) -> dict[str, Any]:
        own: dict[str, Any] = {"mask_updates": self._mask_updates, "seed": self.seed}
        own.update(due=self._due, pattern=self.pattern.name, axis=self.pattern.axis)
        return {**super()._extra_state(), **own, **self._perturbation.state(self.param_groups)}

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        params, mask = MaskOfParams.read("SSAM.load_state_dict", self.param_groups, extra)
        super()._load_extra_state(extra)
        self._take(mask, params)
        self._mask_updates, self.seed = extra.get("mask_updates", 0), extra.get("seed", self.seed)
        self._due = extra.get("due")
