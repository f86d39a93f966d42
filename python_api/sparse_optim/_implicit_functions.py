"""Forwards of linear and convolution layers whose input gradient uses a masked weight.

The layer itself runs on the detached input, so torch's own formulas give the gradients of weight
and bias; a second node, which returns the layer's output as it is, adds the input gradient. No
forward product is computed twice, and the dense input gradient is not computed at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sparse_kernels import unpack_mask

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_CALLS = (F.conv1d, F.conv2d, F.conv3d)
KINDS = (nn.Linear, *_CONVS)


def why_not_maskable(module: nn.Module) -> str | None:
    """What keeps the input gradient of this module from being masked; None if nothing does."""
    kind = next((k for k in KINDS if isinstance(module, k)), None)
    if kind is None:
        return f"is a {type(module).__name__}, neither Linear nor Conv1d, Conv2d or Conv3d"
    if isinstance(module, LazyModuleMixin):
        return "has no weight yet; call the model once first"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "is never called: attention reads its weight"
    if any(
        getattr(type(module), method) is not getattr(kind, method)
        for method in ("forward", "_conv_forward")
        if hasattr(kind, method)
    ):
        return f"has a forward of its own in {type(module).__name__}"
    return None


def names_of_layers(model: nn.Module, layers: Iterable[str] | None) -> tuple[str, ...]:
    """The layers asked for, or all that can be masked; ValueError names what cannot."""
    if isinstance(layers, str):
        raise ValueError(f"layers must be an iterable of names, got the string {layers!r}")
    modules = dict(model.named_modules(remove_duplicate=layers is None))
    if layers is None:
        wanted = [
            n for n, m in modules.items()
            if isinstance(m, KINDS) and (isinstance(m, LazyModuleMixin) or not why_not_maskable(m))
        ]  # fmt: skip
    else:
        wanted = list(dict.fromkeys(layers))
    seen: dict[nn.Module, str] = {}
    for name in wanted:
        if name not in modules:
            raise ValueError(f"ImplicitMask: the model has no layer {name!r}")
        reason = why_not_maskable(modules[name])
        if reason is not None:
            raise ValueError(f"ImplicitMask: layer {name!r} {reason}")
        if modules[name] in seen:
            raise ValueError(f"ImplicitMask: {seen[modules[name]]!r} and {name!r} are one layer")
        seen[modules[name]] = name
    if not seen:
        raise ValueError("ImplicitMask: the model has no Linear or Conv layer to mask")
    return tuple(wanted)


class _EagerBlocks:
    """Compiled models run eagerly while a block is open.

    Traced with masked layers in it, a compiled model would break at each of them, and torch gives
    such a frame up for good: it would stay uncompiled outside the block.
    """

    def __init__(self) -> None:
        self._open = 0
        self._stance: Any = None

    def enter(self) -> None:
        if self._open == 0:
            self._stance = torch.compiler.set_stance("force_eager")
        self._open += 1

    def leave(self) -> None:
        self._open -= 1
        if self._open == 0:  # blocks of several objects need not be nested
            self._stance.__exit__(None, None, None)


eager_blocks = _EagerBlocks()


class Mask(NamedTuple):
    """The packed mask of one layer, and the names its messages and its unpacking need."""

    layer: str
    words: Tensor
    shape: tuple[int, ...]
    backend: str

    def check(self, weight: Tensor) -> None:
        """RuntimeError if the layer's weight is not the one the mask was made for."""
        if weight.shape != self.shape or weight.device != self.words.device:
            raise RuntimeError(
                f"ImplicitMask: the weight of layer {self.layer!r} has shape "
                f"{tuple(weight.shape)} on {weight.device}, its mask {self.shape} on "
                f"{self.words.device}"
            )


def _masked(weight: Tensor, words: Tensor, mask: Mask, dtype: torch.dtype) -> Tensor:
    """W∘m in the dtype of the layer's product; a selection, so NaN under a zero bit stays out."""
    (keep,) = unpack_mask([words], [weight.shape], backend=mask.backend)
    # out= keeps the weight's memory format, which convolutions choose their kernel by
    chosen = torch.where(keep, weight, weight.new_zeros(()), out=torch.empty_like(weight))
    return chosen.to(dtype)  # under autocast the product is narrower than the weight


class _LinearInputGradient(torch.autograd.Function):
    """``dx = dy (W∘m)``; y and its gradient pass through."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, words: Tensor, mask: Mask) -> Any:
        ctx.mask, ctx.shape, ctx.dtype = mask, x.shape, x.dtype
        ctx.by_columns = x.dim() == 2 and x.stride() == (1, x.shape[0])
        ctx.save_for_backward(weight, words)
        return y.detach()  # y itself would be a view that forbids in-place activations

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        weight, words = ctx.saved_tensors
        masked = _masked(weight, words, ctx.mask, dy.dtype)
        # the products torch takes for the dense layer, so that an all-ones mask changes no bit
        if dy.dim() == 1:
            dx = masked.t().mv(dy)
        elif ctx.by_columns:
            dx = masked.t().mm(dy.t()).t()
        else:
            dx = dy.flatten(0, -2).mm(masked).reshape(ctx.shape)
        return dy, dx.to(ctx.dtype), None, None, None


class _Geometry(NamedTuple):
    """Arguments of a convolution beside its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class _ConvInputGradient(torch.autograd.Function):
    """``dx = conv_transpose(dy, W∘m)``; y and its gradient pass through."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, weight: Tensor, words: Tensor, mask: Mask,
        geometry: _Geometry, biased: bool,
    ) -> Any:  # fmt: skip
        ctx.mask, ctx.geometry, ctx.biased = mask, geometry, biased
        ctx.save_for_backward(x, weight, words)
        return y.detach()  # y itself would be a view that forbids in-place activations

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, words = ctx.saved_tensors
        masked = _masked(weight, words, ctx.mask, dy.dtype)
        batched = x.dim() == weight.dim()
        stride, padding, dilation, groups = ctx.geometry
        dx, _, _ = torch.ops.aten.convolution_backward(
            dy if batched else dy.unsqueeze(0),
            (x if batched else x.unsqueeze(0)).to(dy.dtype),
            masked,
            [weight.shape[0]] if ctx.biased else None,
            stride, padding, dilation, False, [0] * len(stride), groups,
            [True, False, False],
        )  # fmt: skip
        return dy, (dx if batched else dx.squeeze(0)).to(x.dtype), *[None] * 5


def _padded(module: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input with what the convolution cannot pad itself, and what it pads with zeros."""
    none = (0,) * len(module.stride)
    if module.padding_mode != "zeros":
        return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), none
    if module.padding == "valid":
        return x, none
    if module.padding != "same":
        return x, module.padding
    total = [d * (k - 1) for d, k in zip(module.dilation, weight.shape[2:], strict=True)]
    if any(t % 2 for t in total):  # the odd one goes to the end of the axis
        x = F.pad(x, [side for t in reversed(total) for side in (0, t % 2)])
    return x, tuple(t // 2 for t in total)


def masked_forward(module: Any, mask: Mask, input: Tensor) -> Tensor:
    """The layer's forward; in the backward its input gradient is taken with the masked weight.

    Args:
        module: the layer; its weight may be parametrized and is computed once.
        mask: of the layer's weight.
        input: as for the layer, by its name.

    Returns:
        The layer's output, bit for bit.

    Raises:
        RuntimeError: the mask does not fit the weight.
    """
    if not (torch.is_grad_enabled() and input.requires_grad):
        return type(module).forward(module, input)  # no input gradient: an ordinary layer
    weight, bias = module.weight, module.bias
    mask.check(weight)
    if isinstance(module, nn.Linear):
        y = F.linear(input.detach(), weight, bias)
        return _LinearInputGradient.apply(y, input, weight.detach(), mask.words, mask)
    x, padding = _padded(module, input, weight)
    geometry = _Geometry(module.stride, padding, module.dilation, module.groups)
    y = _CONV_CALLS[weight.dim() - 3](x.detach(), weight, bias, *geometry)
    return _ConvInputGradient.apply(
        y, x, weight.detach(), mask.words, mask, geometry, bias is not None
    )
