"""Layers with sparse weights for inference, and which layers can have one."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_WARM_UP = 5
_REPEATS = 31
_CUDA_SPARSE = (torch.float16, torch.bfloat16)  # of torch's 2:4 kernels, beside int8
_CPU_SPARSE = (torch.float32, torch.float64)  # of the library behind torch's CSR product

_FIXED_FORM = (nn.TransformerEncoderLayer, nn.MultiheadAttention)  # read their layers' weights
WEIGHTED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)  # fmt: skip


class CSRLinear(nn.Module):
    """A linear layer, or a 1x1 convolution, whose weight is in CSR form; for inference only.

    The weight lies in buffers (``values``, ``columns``, ``rows``, the latter int32), so that
    ``state_dict``, ``to`` and ``copy.deepcopy`` work; it gets no gradient. A state with another
    number of nonzero weights loads too.
    """

    values: Tensor
    columns: Tensor
    rows: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach().flatten(1)
        self.shape = (weight.shape[0], weight.shape[1])
        at = weight.nonzero()
        counts = torch.bincount(at[:, 0], minlength=self.shape[0])
        rows = functional.pad(counts.cumsum(0), (1, 0))
        self.register_buffer("rows", rows.to(torch.int32))
        self.register_buffer("columns", at[:, 1].to(torch.int32))
        self.register_buffer("values", weight[at[:, 0], at[:, 1]])
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.stride = tuple(layer.stride) if isinstance(layer, nn.Conv2d) else None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("values", "columns"):
            found, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(found, Tensor) and found.dim() == 1:
                setattr(self, name, own.new_empty(found.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Shape and nonzero weights."""
        return f"{self.shape[1]}, {self.shape[0]}, nonzero={self.values.numel()}"

    def _product(self, x: Tensor) -> Tensor:
        """Weight times x [inputs, columns], plus the bias."""
        weight = torch.sparse_csr_tensor(
            self.rows, self.columns, self.values, self.shape, check_invariants=False
        )
        # the weight on the left: several times faster on the CPU than as functional.linear has it
        return weight @ x if self.bias is None else torch.addmm(self.bias[:, None], weight, x)

    def forward(self, x: Tensor) -> Tensor:
        """Same as the dense layer up to the order of its sums; the strides may differ."""
        if self.stride is None:
            out = self._product(x.reshape(-1, x.shape[-1]).t()).t()
            return out.reshape(*x.shape[:-1], self.shape[0])
        x = x[..., :: self.stride[0], :: self.stride[1]]
        columns = x.movedim(-3, 0)  # channels first: each row of the product is one
        out = self._product(columns.reshape(columns.shape[0], -1))
        return out.reshape(self.shape[0], *columns.shape[1:]).movedim(0, -3)


def bytes_of(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    total = 0
    for t in tensors.values():
        parts = [getattr(t, name, None) for name in ("packed", "meta")]  # of a 2:4 weight
        own = [p for p in parts if isinstance(p, Tensor)] or [t]
        total += sum(p.numel() * p.element_size() for p in own)
    return total


def is_two_four(weight: Tensor) -> bool:
    """Whether every 4 weights in a row of the matrix hold at most 2 that are not zero."""
    if weight.dim() != 2 or weight.shape[1] % 4:
        return False
    groups = (weight.detach() != 0).view(weight.shape[0], -1, 4)
    return bool((groups.sum(2) <= 2).all())


def csr_refusal(layer: nn.Linear | nn.Conv2d) -> str | None:
    """Why a layer cannot have a CSR weight, or None."""
    weight = layer.weight
    pointwise = not isinstance(layer, nn.Conv2d) or (
        layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "valid")
    )
    if not pointwise:
        return "torch has no CSR convolution (only 1x1, as a product)"
    if weight.device.type == "cpu" and weight.dtype not in _CPU_SPARSE:
        return f"no CSR product in {weight.dtype} on the CPU"
    if bool((weight != 0).all()):
        return "no weight is zero"
    return None


def two_four_refusal(layer: nn.Linear | nn.Conv2d) -> str | None:
    """Why a layer cannot have a 2:4 weight, or None; what torch's kernels refuse comes later."""
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        return "torch has no 2:4 convolution"
    if not is_two_four(weight):
        return "the zeros have no 2:4 pattern"
    if weight.device.type != "cuda":
        return f"torch has 2:4 kernels on CUDA only, the weight is on {weight.device.type}"
    if weight.dtype not in _CUDA_SPARSE:
        return f"no 2:4 kernel in {weight.dtype}, only in float16 and bfloat16"
    return None


def two_four_linear(layer: nn.Linear) -> nn.Linear:
    """A copy of a linear layer with a semi-structured weight.

    Raises:
        RuntimeError, ValueError, NotImplementedError: torch or the device has no kernel for it.
    """
    from torch.sparse import to_sparse_semi_structured

    copy = nn.Linear(
        layer.in_features, layer.out_features, layer.bias is not None, device=layer.weight.device,
        dtype=layer.weight.dtype,
    )  # fmt: skip
    packed = to_sparse_semi_structured(layer.weight.detach().contiguous())
    copy.weight = nn.Parameter(packed, requires_grad=False)
    if layer.bias is not None:
        copy.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return copy


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32, and 16-bit ones summed in float32, on CUDA too."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    flags = (
        (matmul, "allow_tf32"), (matmul, "allow_fp16_reduced_precision_reduction"),
        (matmul, "allow_bf16_reduced_precision_reduction"), (cudnn, "allow_tf32"),
    )  # fmt: skip
    before = [getattr(owner, name) for owner, name in flags]
    try:
        for owner, name in flags:
            setattr(owner, name, False)
        yield
    finally:
        for (owner, name), value in zip(flags, before, strict=True):
            setattr(owner, name, value)


def summing_error(k: int, dtype: torch.dtype) -> float:
    """Relative error bound of a sum of k products, ``k u / (1 - k u)`` with unit roundoff u.

    16-bit products are summed in float32 and rounded once more.
    """
    wide = torch.promote_types(dtype, torch.float32)
    u = k * torch.finfo(wide).eps / 2.0
    return u / (1.0 - u) + (0.0 if wide == dtype else torch.finfo(dtype).eps / 2.0)


def rounding_bound(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """Largest difference per output of two right ways to sum: twice the error of one."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size, weight = x.detach().abs().to(wide), layer.weight.detach().abs().to(wide)
    bias = None if layer.bias is None else layer.bias.detach().abs().to(wide)
    if isinstance(layer, nn.Conv2d):
        total = functional.conv2d(size, weight, bias, layer.stride)
    else:
        total = functional.linear(size, weight, bias)
    gamma = summing_error(weight[0].numel() + 1, x.dtype)
    return 2.0 * gamma * (1.0 + gamma) * total  # the magnitudes are themselves a computed sum


def median_ms(
    calls: Sequence[tuple[nn.Module, tuple[Any, ...]]],
    device: torch.device,
    prepare: Sequence[Callable[[], None]] | None = None,
) -> list[float]:
    """Median milliseconds of several calls that take turns, after some that do not count.

    What stands in ``prepare`` runs before the call of the same number and is not timed.
    """

    def once(i: int) -> float:
        module, args = calls[i]
        if prepare is not None:
            prepare[i]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        module(*args)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    times = [[once(i) for i in range(len(calls))] for _ in range(_WARM_UP + _REPEATS)]
    return [statistics.median(column) for column in zip(*times[_WARM_UP:], strict=True)]


# -- what a forward shows ------------------------------------------------------------------------


def call_model(model: nn.Module, args: tuple[Any, ...]) -> Tensor:
    out = model(*args)
    if not isinstance(out, Tensor):
        raise ValueError(f"export_model: the model must return a tensor, got {type(out).__name__}")
    return out


def layer_inputs(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """First input of every weight layer that is called as a module."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED):

            def hook(m: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                if inputs:
                    found.setdefault(name, inputs[0].detach().clone())

            handles.append(module.register_forward_pre_hook(hook))
    try:
        call_model(model, args)
    finally:
        for handle in handles:
            handle.remove()
    return found


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in all places of another."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def general_refusal(model: nn.Module, name: str, layer: nn.Module, called: bool) -> str | None:
    parts = name.split(".")
    above = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"no sparse form of {type(layer).__name__}"
    if any(isinstance(m, _FIXED_FORM) for m in above):
        return "the module around it reads the weight itself"
    if not called:
        return "not called as a module on the example"
    if layer._forward_hooks or layer._forward_pre_hooks or "weight" not in layer._parameters:
        return "has forward hooks"
    return None
