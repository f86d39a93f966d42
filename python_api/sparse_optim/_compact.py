"""Smaller dense layers: units that are constant, or that nothing reads, are taken out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LINKED = (nn.Linear, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# each entry by itself: a constant stays one
_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity, nn.Dropout,
    nn.Dropout2d,
)  # fmt: skip
# a constant channel stays one; average pooling with zeros around it would not leave it constant
_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
_FLATTEN = (nn.Flatten,)


def _is_plain(module: nn.Module) -> bool:
    """Nothing computes its weight or looks at what it gets and gives."""
    own = "weight" in module._parameters or not hasattr(module, "weight")
    return own and not module._forward_hooks and not module._forward_pre_hooks


def _passes_constants(module: nn.Module) -> bool:
    if isinstance(module, nn.AvgPool2d):
        return module.padding in (0, (0, 0)) or not module.count_include_pad
    if isinstance(module, _FLATTEN):
        return module.start_dim == 1 and module.end_dim == -1
    if isinstance(module, _NORMS) and module.running_mean is None:
        return False
    return type(module) in (*_ELEMENTWISE, *_NORMS, *_POOLS)


def _pairs(chain: nn.Sequential) -> list[tuple[nn.Module, list[nn.Module], nn.Module]]:
    """Consecutive weight layers with what stands between them, where that keeps constants."""
    found: list[tuple[nn.Module, list[nn.Module], nn.Module]] = []
    first: nn.Module | None = None
    between: list[nn.Module] = []
    for module in chain:
        if _is_plain(module) and type(module) in _LINKED and getattr(module, "groups", 1) == 1:
            if first is not None:
                found.append((first, between, module))
            first, between = module, []
        elif _is_plain(module) and _passes_constants(module):
            between.append(module)
        else:
            first = None
    return found


def _constants(first: Any, between: list[nn.Module]) -> Tensor:
    """What every unit gives if its weights are zero, [units]: the bias, passed on."""
    weight = first.weight
    bias = weight.new_zeros(len(weight)) if first.bias is None else first.bias.detach().clone()
    image = isinstance(first, nn.Conv2d)
    x = bias.reshape(1, -1, 1, 1) if image else bias.reshape(1, -1)
    for module in between:
        if type(module) in (*_ELEMENTWISE, *_NORMS):
            x = module(x)
    return x.reshape(-1)


def _columns(second: Any, units: int) -> Tensor:
    """The next layer's weight as [outputs, units, uses of one unit]."""
    return second.weight.detach().reshape(len(second.weight), units, -1)


def _removable(first: Any, between: list[nn.Module], second: Any) -> tuple[Tensor, Tensor]:
    """Mask of the units to take out, and what each of them gives."""
    weight = first.weight.detach()
    constants = _constants(first, between)
    constant = (weight.flatten(1) == 0).all(1)
    if isinstance(second, nn.Conv2d) and second.padding not in ((0, 0), 0, "valid"):
        constant &= constants == 0  # the border reads zeros, not the constant
    unread = (_columns(second, len(weight)) == 0).all(2).all(0)
    gone = constant | unread
    if bool(gone.all()):  # no layer without units
        gone[0] = False
    return gone, torch.where(constant, constants, 0.0)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


def _shrink_norm(norm: Any, keep: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        old = getattr(norm, name)
        if isinstance(old, nn.Parameter):
            setattr(norm, name, _parameter(old.detach()[keep]))
        elif isinstance(old, Tensor):
            setattr(norm, name, old[keep])
    norm.num_features = int(keep.sum())


def _fits(first: Any, between: list[nn.Module], second: Any) -> bool:
    """Whether the next layer's inputs are the units, each with all its places side by side."""
    flat = any(isinstance(m, _FLATTEN) for m in between)
    if isinstance(first, nn.Conv2d):
        if isinstance(second, nn.Conv2d):
            return not flat and second.in_channels == first.out_channels
        return flat and second.in_features % first.out_channels == 0
    spatial = any(isinstance(m, (*_POOLS, nn.AvgPool2d)) for m in between)
    return isinstance(second, nn.Linear) and not spatial and second.in_features == len(first.weight)


def _fold(first: Any, between: list[nn.Module], second: Any) -> int:
    """Take units out between two layers; how many."""
    units = len(first.weight)
    norms = [m for m in between if isinstance(m, _NORMS)]
    if not _fits(first, between, second) or any(m.num_features != units for m in norms):
        return 0
    gone, given = _removable(first, between, second)
    removed = int(gone.sum())
    if not removed:
        return 0
    keep = ~gone
    # only constants are read: what nothing reads is multiplied by zero
    shift = torch.einsum("oui,u->o", _columns(second, units)[:, gone], given[gone])
    if bool(shift.any()):
        bias = shift if second.bias is None else second.bias.detach() + shift
        second.bias = _parameter(bias)
    first.weight = _parameter(first.weight.detach()[keep])
    if first.bias is not None:
        first.bias = _parameter(first.bias.detach()[keep])
    for norm in norms:
        _shrink_norm(norm, keep)
    shape = second.weight.shape
    kept = int(keep.sum())
    columns = _columns(second, units)[:, keep]
    if isinstance(first, nn.Conv2d):
        first.out_channels = kept
    else:
        first.out_features = kept
    if isinstance(second, nn.Conv2d):
        second.in_channels = kept
        second.weight = _parameter(columns.reshape(shape[0], kept, *shape[2:]))
    else:
        second.weight = _parameter(columns.reshape(shape[0], -1))
        second.in_features = second.weight.shape[1]
    return removed


@torch.no_grad()
def compact_(model: nn.Module) -> int:
    """Take out what is constant or unread between the layers of every ``nn.Sequential``.

    A unit whose weights are all zero gives a constant ``act(b)``: it goes into the next bias (not
    through a convolution that pads with zeros, unless it is 0). One whose outputs all meet zero
    weights is not read. Layers that are used twice stay.

    Args:
        model: in eval mode; its layers are made smaller in place.

    Returns:
        Units taken out.
    """
    uses: dict[int, int] = {}
    tensors: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        uses[id(module)] = uses.get(id(module), 0) + 1
        for p in module._parameters.values():
            tensors[id(p)] = tensors.get(id(p), 0) + 1
    total, removed = 0, -1
    once = {i for i, n in uses.items() if n == 1}
    shared = {id(m) for m in model.modules() for p in m._parameters.values() if p is not None
              and tensors[id(p)] > 1}  # fmt: skip
    while removed:
        removed = 0
        for chain in model.modules():
            if type(chain) is nn.Sequential:
                for first, between, second in _pairs(chain):
                    touched = {id(m) for m in (first, *between, second)}
                    if touched <= once and not touched & shared:
                        removed += _fold(first, between, second)
        total += removed
    return total
