"""The implicit form of Sparse SAM: the first backward takes input gradients by sparse weights."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_kernels import pack_mask

from ._fisher import _eval_mode
from ._implicit_functions import Mask, eager_blocks, masked_forward, names_of_layers
from ._patterns import Pattern
from ._support import check_backend, check_int, check_number
from ._weight_mask import check_bool_mask
from .masks import BitMask, FisherMask, MaskPolicy

_FORMAT = 1


class ImplicitMask:
    """Mask the weight in the input-gradient products of one backward pass.

    Inside the block, for a layer ``y = x W^T + b``: ``dx = dy (W∘m)``; the forward,
    ``dW = dy^T x`` and ``db = sum dy`` are those of the layer. Convolutions alike:
    ``dx = conv_transpose(dy, W∘m)``. The optimizer around it is plain ``SAM``, its
    perturbation is dense; only an input whose weights are all masked passes no gradient on, so a
    mask of zeros cuts the backward at its layer. Outside the block the model is what it was: no
    module is replaced, nothing is registered or kept in it.

    Args:
        model: the model; not modified outside the block.
        mask: policy; default ``FisherMask()``, whose masks must be asked for with
            ``update_mask(model, samples, loss_fn)`` or given with ``set_masks``. Policies without
            data make theirs at construction.
        sparsity: s in [0, 1], fraction of zeros over all layers together; may be set later, the
            next ``update_mask`` uses it. An n:m pattern does not use it.
        pattern: "unstructured", "2:4" or any n:m, "row" or "tensor", as the policy knows them.
        axis: "out" or "in", along which an n:m pattern groups; the input gradient reduces over the
            outputs.
        layers: names of the layers; default every Linear, Conv1d, Conv2d and Conv3d whose class
            keeps torch's forward. A parametrized weight is masked as the layer uses it; a weight
            that layers share has a mask for each of them.
        seed: of policies that draw numbers, in [0, 2^64).
        backend: "auto", "cuda", "triton", "cpp" or "reference"; unpacks the masks.

    Raises:
        ValueError: an argument is out of range, a name is not that of such a layer, there is none.

    State:
        The packed masks, 1/8 byte per weight; W∘m exists only while its layer's input gradient is
        computed.

    Note:
        The forward must run inside the block, and with activation checkpoints the backward too.
        First derivatives only; transforms of ``torch.func`` refuse the model inside the block.
        A compiled model runs eagerly inside the block, and compiled as before outside. A layer
        whose input needs no gradient, such as the first, has no product to mask.

    Source: arXiv 2306.17504, as its released code runs it.

    Example:
        >>> from sparse_optim import SAM, MagnitudeMask
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
        >>> loss_fn = nn.functional.cross_entropy
        >>> opt = SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1)
        >>> implicit = ImplicitMask(model, mask=MagnitudeMask(), sparsity=0.5)
        >>> with implicit:
        ...     loss_fn(model(x), y).backward()
        >>> opt.first_step(zero_grad=True)
        >>> loss_fn(model(x), y).backward()
        >>> opt.second_step(zero_grad=True)
        >>> implicit.layers, implicit.mask.live
        (('0', '2'), 24)
    """

    def __init__(
        self,
        model: nn.Module,
        mask: MaskPolicy | None = None,
        sparsity: float = 0.5,
        pattern: str = "unstructured",
        axis: str = "out",
        layers: Iterable[str] | None = None,
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        if mask is not None and not isinstance(mask, MaskPolicy):
            raise ValueError(
                f"mask must be a policy such as FisherMask(), got {type(mask).__name__}; "
                "masks of your own go to set_masks"
            )
        form = Pattern(pattern, axis=axis)
        self.model, self.pattern, self.axis = model, form.name, form.axis
        self.policy = FisherMask() if mask is None else mask
        self.sparsity = check_number("sparsity", sparsity, 0.0, 1.0)
        self.seed = check_int("seed", seed, 0, 2**64)
        self.backend = check_backend(backend)
        self.layers = names_of_layers(model, layers)  #: names of the masked layers
        self._masks: dict[str, BitMask] = {}
        self._updates = 0
        self._patched: list[nn.Module] | None = None
        if not self.policy.needs_data:
            self.update_mask()

    # -- masks -------------------------------------------------------------------------------

    @property
    def mask(self) -> BitMask | None:
        """The masks in force, one per layer in the order of ``layers``; None if one is missing."""
        if len(self._masks) < len(self.layers):
            return None
        masks = [self._masks[name] for name in self.layers]
        return BitMask([m.words[0] for m in masks], [m.shapes[0] for m in masks])

    def update_mask(self, *data: Any) -> None:
        """Make new masks by the policy at the present weights; call it between steps.

        Args:
            data: what the policy needs; for ``FisherMask`` (model, samples, loss_fn).

        Raises:
            RuntimeError: called inside the block.
            ValueError: data are missing or wrong for the policy; the old masks stay.
        """
        self._refuse_active("update_mask")
        weights = [self._weight(name) for name in self.layers]
        mask = self._compute(weights, data)
        pairs = zip(mask.words, mask.shapes, strict=True)
        self._masks = {n: BitMask([w], [s]) for n, (w, s) in zip(self.layers, pairs, strict=True)}
        self._updates += 1

    def _compute(self, weights: list[Tensor], data: Sequence[Any]) -> BitMask:
        sparsity = check_number("sparsity", self.sparsity, 0.0, 1.0)
        return self.policy.compute(
            weights, sparsity, *data, seed=self.seed, update=self._updates,
            pattern=self.pattern, axis=self.axis,
        )  # fmt: skip

    def _weight(self, name: str) -> Tensor:
        """The weight as the layer uses it; the parameter itself where it is one."""
        module = self._layer(name)
        own = module._parameters.get("weight")
        if own is not None:
            return own
        if self.policy.needs_data:
            raise ValueError(
                f"ImplicitMask: the weight of layer {name!r} is computed from other parameters, "
                f"{type(self.policy).__name__} scores parameters; use MagnitudeMask or set_masks"
            )
        with torch.no_grad(), _eval_mode(module):  # spectral norms iterate when training
            weight: Tensor = module.weight  # type: ignore[assignment]
            return weight.detach()

    def _expected(self, name: str) -> tuple[tuple[int, ...], torch.device]:
        """Shape and device of a layer's mask, without computing a parametrized weight."""
        module: Any = self._layer(name)
        own = module._parameters.get("weight")
        if own is not None:
            return tuple(own.shape), own.device
        device = next(module.parameters()).device
        if isinstance(module, nn.Linear):
            return (module.out_features, module.in_features), device
        inputs = module.in_channels // module.groups
        return (module.out_channels, inputs, *module.kernel_size), device

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Use masks of your own; layers that are not named keep the ones they have.

        Args:
            masks: by layer name, bool tensors shaped like the layer's weight, on its device; True
                where the weight takes part in the input gradient.

        Raises:
            RuntimeError: called inside the block.
            ValueError: no such layer, or dtype, shape or device does not fit; the old masks stay.
        """
        self._refuse_active("set_masks")
        for name, m in masks.items():
            if name not in self.layers:
                raise ValueError(f"set_masks: {name!r} is not one of the layers {self.layers}")
            shape, device = self._expected(name)
            check_bool_mask(f"set_masks: the mask of layer {name!r}", m, shape, device)
        words = pack_mask(list(masks.values()), backend=self.backend)
        for name, w in zip(masks, words, strict=True):
            self._masks[name] = BitMask([w], [masks[name].shape])

    # -- the block ---------------------------------------------------------------------------

    def begin_pass1(self) -> None:
        """Turn the masked input gradients on.

        Raises:
            RuntimeError: they are on already, a layer has no mask, or its forward is replaced by
                something else; the model stays as it was.
        """
        self._refuse_active("begin_pass1")
        modules = [self._layer(name) for name in self.layers]
        for name, module in zip(self.layers, modules, strict=True):
            if name not in self._masks:
                raise RuntimeError(
                    f"ImplicitMask: layer {name!r} has no mask; call update_mask(...) for "
                    f"{type(self.policy).__name__} or set_masks(...) first"
                )
            if "forward" in vars(module):
                raise RuntimeError(
                    f"ImplicitMask: the forward of layer {name!r} is replaced already, "
                    "by another ImplicitMask or by other code"
                )
        eager_blocks.enter()
        for name, module in zip(self.layers, modules, strict=True):
            mask = self._masks[name]
            bound = Mask(name, mask.words[0], mask.shapes[0], self.backend)
            # an attribute of the instance hides the method of its class, hooks still run
            module.forward = functools.partial(masked_forward, module, bound)
        self._patched = modules

    def end_pass1(self) -> None:
        """Turn them off again; the model is what it was before ``begin_pass1``.

        Raises:
            RuntimeError: they are not on.
        """
        if self._patched is None:
            raise RuntimeError("ImplicitMask.end_pass1: call begin_pass1 first")
        for module in self._patched:
            vars(module).pop("forward", None)
        self._patched = None
        eager_blocks.leave()

    def __enter__(self) -> ImplicitMask:
        self.begin_pass1()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end_pass1()

    def _refuse_active(self, what: str) -> None:
        if self._patched is not None:
            raise RuntimeError(f"ImplicitMask.{what}: not inside the block, call end_pass1 first")

    def _layer(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    # -- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Masks, their pattern and axis, and what the next update draws from; plain values."""
        return {
            "format": _FORMAT,
            "pattern": self.pattern,
            "axis": self.axis,
            "masks": {name: mask.state() for name, mask in self._masks.items()},
            "mask_updates": self._updates,
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the masks of ``state_dict``.

        Args:
            state: of an object with the same layers, pattern and axis.

        Raises:
            RuntimeError: called inside the block.
            ValueError: it does not fit this object; nothing is changed.
        """
        self._refuse_active("load_state_dict")
        for key, own in (("format", _FORMAT), ("pattern", self.pattern), ("axis", self.axis)):
            if state.get(key) != own:
                raise ValueError(
                    f"ImplicitMask.load_state_dict: {key} is {state.get(key)!r}, here {own!r}"
                )
        masks = {}
        for name, packed in state["masks"].items():
            if name not in self.layers:
                raise ValueError(f"ImplicitMask.load_state_dict: there is no layer {name!r}")
            shape, device = self._expected(name)
            masks[name] = BitMask.from_state(packed, [device])
            if masks[name].shapes != [shape]:
                raise ValueError(
                    f"ImplicitMask.load_state_dict: the mask of layer {name!r} has shape "
                    f"{masks[name].shapes[0]}, expected {shape}"
                )
        self._masks = masks
        self._updates, self.seed = state["mask_updates"], state["seed"]
