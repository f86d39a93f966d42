"""Sparse sharpness-aware minimisation: the perturbation is masked, the update is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._sam import SAM
from ._support import check_int, check_number, label, trainable
from .masks import BitMask, FisherMask, MaskPolicy

NORMS = ("dense", "masked")


class SSAM(SAM):
    """Sparse SAM: only the entries of a mask are perturbed; every weight is trained.

    ``norm="dense"``: ``e = m rho g / (||g|| + eps)``, as published, shorter than rho.
    ``norm="masked"``: ``e = rho m g / (||m g|| + eps)``, of length rho.

    Args:
        params, base_optimizer_cls, rho, adaptive, eta, eps, bn_modules, closure_calls, backend,
            base_kwargs: as in ``SAM``.
        sparsity: s in [0, 1], fraction of entries NOT perturbed, over all parameters together; may
            be set later, the next ``update_mask`` uses it.
        mask: policy; default ``FisherMask()``, whose mask must be asked for with
            ``update_mask(model, samples, loss_fn)`` before the first step. Policies without data
            make theirs at construction.
        norm: "dense" or "masked".
        seed: of policies that draw numbers, in [0, 2^64).

    Raises:
        ValueError: an argument is out of range.

    State:
        As ``SAM``, and the packed mask: 1/8 byte per parameter.

    Source: Sparse SAM, arXiv 2210.05177, as its released code (Mi-Peng) computes it.

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
        sparsity: float = 0.5,
        mask: MaskPolicy | None = None,
        norm: str = "dense",
        eta: float = 0.0,
        eps: float = 1e-12,
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
        self.sparsity = check_number("sparsity", sparsity, 0.0, 1.0)
        self.norm_form, self.seed = norm, check_int("seed", seed, 0, 2**64)
        self.policy = FisherMask() if mask is None else mask
        self._mask: BitMask | None = None
        self._mask_params: list[Tensor] = []
        self._mask_updates = 0
        super().__init__(
            params, base_optimizer_cls, rho, adaptive, eta=eta, eps=eps, bn_modules=bn_modules,
            closure_calls=closure_calls, backend=backend, **base_kwargs,
        )  # fmt: skip
        if not self.policy.needs_data:
            self.update_mask()

    @property
    def mask(self) -> BitMask | None:
        """The mask in force, over the trainable parameters in group order, or None."""
        return self._mask

    def update_mask(self, *data: Any) -> None:
        """Make a new mask by the policy at the present weights; it acts from the next step on.

        Args:
            data: what the policy needs; for ``FisherMask`` (model, samples, loss_fn).

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: data are missing or the sparsity is out of range; the old mask stays.
        """
        self._refuse_perturbed("update_mask")
        sparsity = check_number("sparsity", self.sparsity, 0.0, 1.0)
        params = trainable(self.param_groups)
        mask = self.policy.compute(
            params, sparsity, *data, seed=self.seed, update=self._mask_updates
        )
        self._mask, self._mask_params = mask, params
        self._mask_updates += 1

    def set_masks(self, masks: Sequence[Tensor] | BitMask) -> None:
        """Use a mask of your own: True (or bit 1) where the entry is perturbed.

        Args:
            masks: bool tensors shaped like the trainable parameters, in group order, or a BitMask.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: number, shape, dtype or device does not fit; the old mask stays.
        """
        self._refuse_perturbed("set_masks")
        params = trainable(self.param_groups)
        given = masks.to_bool() if isinstance(masks, BitMask) else list(masks)
        if len(given) != len(params):
            raise ValueError(
                f"set_masks: {len(given)} masks for {len(params)} trainable parameters"
            )
        for m, p in zip(given, params, strict=True):
            name = label(self.param_groups, p)
            if not isinstance(m, Tensor) or m.dtype != torch.bool:
                raise ValueError(f"set_masks: the mask of {name} is not a bool tensor")
            if m.shape != p.shape or m.device != p.device:
                raise ValueError(
                    f"set_masks: the mask of {name} has shape {tuple(m.shape)} on {m.device}, "
                    f"expected {tuple(p.shape)} on {p.device}"
                )
        self._mask, self._mask_params = BitMask.from_bool(given), params

    def _mask_words(self, params: list[Tensor]) -> list[Tensor]:
        if self._mask is None:
            raise RuntimeError(
                f"SSAM: no mask yet; call update_mask(...) for {type(self.policy).__name__} "
                "or set_masks(...) before the first step"
            )
        words = dict(zip(self._mask_params, self._mask.words, strict=True))
        for p in params:
            if p not in words:
                raise RuntimeError(
                    f"SSAM: {label(self.param_groups, p)} has no mask; call update_mask"
                )
        return [words[p] for p in params]

    def _norm_masks(self, words: list[Tensor] | None) -> list[Tensor] | None:
        return words if self.norm_form == "masked" else None

    def _extra_state(self) -> dict[str, Any]:
        extra = {**super()._extra_state(), "mask_updates": self._mask_updates, "seed": self.seed}
        extra["mask"] = None
        if self._mask is not None:
            index = {p: i for i, p in enumerate(p for g in self.param_groups for p in g["params"])}
            extra["mask"] = self._mask.state()
            extra["mask_params"] = [index[p] for p in self._mask_params]
        return extra

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        params = [p for g in self.param_groups for p in g["params"]]
        mask, masked = None, []
        if extra.get("mask") is not None:
            masked = [params[i] for i in extra["mask_params"]]
            mask = BitMask.from_state(extra["mask"], [p.device for p in masked])
            for p, shape in zip(masked, mask.shapes, strict=True):
                if tuple(p.shape) != shape:
                    raise ValueError(
                        f"SSAM.load_state_dict: the mask of {label(self.param_groups, p)} "
                        f"has shape {shape}"
                    )
        super()._load_extra_state(extra)
        self._mask, self._mask_params = mask, masked
        self._mask_updates, self.seed = extra.get("mask_updates", 0), extra.get("seed", self.seed)
