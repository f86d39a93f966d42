"""What a forward of a model multiplies, and what an update moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_COUNTED = (nn.Linear, *_CONV, *_TRANSPOSED, nn.MultiheadAttention, *_RECURRENT)


@dataclass
class Layer:
    """One weight tensor.

    Attributes:
        uses: multiply-adds per entry and sample.
        input_uses: those whose input needs a gradient, so that a backward runs there.
    """

    name: str
    weight: Tensor
    uses: float = 0.0
    input_uses: float = 0.0

    @property
    def dense(self) -> float:
        """Dense FLOPs of one forward of one sample."""
        return 2.0 * self.uses * self.weight.numel()

    @property
    def issued_backward(self) -> float:
        """FLOPs of the gradients that a backward of one sample computes with dense kernels."""
        weight = self.uses if self.weight.requires_grad else 0.0
        return 2.0 * (weight + self.input_uses) * self.weight.numel()


def _tokens(x: Tensor) -> float:
    return x.numel() / x.shape[-1]


def _uses(
    module: nn.Module, inputs: tuple[Any, ...], output: Any
) -> Iterator[tuple[Tensor, float, bool]]:
    """Weights of a call, how often each entry is used, and whether its input needs a gradient."""
    x = inputs[0].data if isinstance(inputs[0], PackedSequence) else inputs[0]
    if isinstance(module, nn.MultiheadAttention):
        own = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        counts = [_tokens(t) for t in inputs[:3]]
        needs = [t.requires_grad for t in inputs[:3]]
        if module.in_proj_weight is not None:  # a third of it for each of the three
            yield module.in_proj_weight, sum(counts) / 3.0, any(needs)
        else:
            yield from zip(own, counts, needs, strict=True)
        yield module.out_proj.weight, counts[0], True
    elif isinstance(module, _RECURRENT):
        for name, p in module.named_parameters(recurse=False):
            if p.dim() == 2:  # only the first layer reads x
                first = name.removesuffix("_reverse") in ("weight_ih", "weight_ih_l0")
                yield p, _tokens(x), x.requires_grad or not first
    else:
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, _TRANSPOSED):
            count = x.numel() / x.shape[1]
        elif isinstance(module, _CONV):
            count = output.numel() / output.shape[1]
        else:
            count = _tokens(output)
        yield weight, count, x.requires_grad


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Eval mode, and only kernels that the counter of FLOPs sees, attention in single products."""
    flags = [(m, m.training) for m in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, flag in flags:
            module.training = flag


def trace_layers(model: nn.Module, example_input: Any) -> tuple[list[Layer], float]:
    """Collect what a forward multiplies, from one call in eval mode.

    Args:
        model: unchanged afterwards.
        example_input: a batch, or a tuple of the model's arguments; dim 0 is the batch.

    Returns:
        The layers in the order of their first call, and the FLOPs per sample of matrix products
        without a weight among the layers, such as attention scores (a causal mask saves none).
    """
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    batch = args[0].shape[0]
    found: dict[Tensor, Layer] = {}
    names = {id(p): n for n, p in model.named_parameters()}
    counter = FlopCounterMode(display=False)
    before: list[float] = []
    covered = 0.0  # of all counted FLOPs those of the layers

    def enter(module: nn.Module, inputs: Any, kwargs: Any) -> None:
        before.append(counter.get_total_flops())

    def leave(module: nn.Module, inputs: tuple, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal covered
        inside, own = counter.get_total_flops() - before.pop(), 0.0
        for weight, count, needs in _uses(module, (*inputs, *kwargs.values()), output):
            layer = found.setdefault(weight, Layer(names.get(id(weight), "weight"), weight))
            layer.uses += count / batch
            layer.input_uses += count / batch if needs else 0.0
            own += 2.0 * count * weight.numel()
        covered += own if isinstance(module, nn.MultiheadAttention) else inside

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _COUNTED):
                for handle in (
                    module.register_forward_pre_hook(enter, with_kwargs=True),
                    module.register_forward_hook(leave, with_kwargs=True),
                ):
                    stack.callback(handle.remove)
        with _countable(model), counter:
            model(*args)
    return list(found.values()), max(counter.get_total_flops() - covered, 0.0) / batch


def update_bytes(optimizer: Optimizer) -> int:
    """Bytes of a full update by an optimizer, or its base, that touches each dense array once."""
    base = getattr(optimizer, "base_optimizer", optimizer)
    total = 0
    for p in (p for g in base.param_groups for p in g["params"] if p.requires_grad):
        states = base.state.get(p, {})
        # gradient read, weight written; a weight with a dual is read off that
        total += (2 if "dual" in states else 3) * p.numel() * p.element_size()
        for t in states.values():
            if isinstance(t, Tensor) and t.shape == p.shape:
                total += 2 * t.numel() * t.element_size()
    return total
