"""Trained sparse models for inference: CSR, 2:4 or smaller dense layers, checked and timed."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._compact import compact_
from ._export_layers import (
    WEIGHTED,
    CSRLinear,
    bytes_of,
    call_model,
    csr_refusal,
    full_precision,
    general_refusal,
    layer_inputs,
    median_ms,
    replace_module,
    rounding_bound,
    summing_error,
    two_four_linear,
    two_four_refusal,
)
from ._export_report import ExportedLayer, ExportReport
from ._support import check_number

LAYOUTS = ("auto", "csr", "2:4", "compact")

_MAKERS: dict[str, tuple[Callable[[Any], str | None], Callable[[Any], nn.Module]]] = {
    "csr": (csr_refusal, CSRLinear),
    "2:4": (two_four_refusal, two_four_linear),
}


def _sparse_forms(
    layer: Any, layouts: tuple[str, ...], x: Tensor
) -> tuple[dict[str, nn.Module], str]:
    """The layer in each layout that it can have, and why not in the others."""
    forms, reasons = {}, []
    for layout in layouts:
        refusal, make = _MAKERS[layout]
        reason = refusal(layer)
        if reason is None:
            try:
                form = make(layer)
                form(x)  # some shapes are refused only here
                forms[layout] = form
            except (RuntimeError, ValueError, NotImplementedError) as error:
                reason = f"torch refuses {layout}: {str(error).splitlines()[0]}"
        if reason is not None:
            reasons.append(reason)
    return forms, "; ".join(dict.fromkeys(reasons))


def _check_layer(name: str, layer: Any, form: nn.Module, x: Tensor) -> float:
    """Largest difference of one layer.

    Raises:
        RuntimeError: an output is off by more than two orders of summing can be.
    """
    with full_precision():
        gap = (form(x).to(torch.float64) - layer(x).to(torch.float64)).abs()
        bound = rounding_bound(layer, x).to(torch.float64)
    if not bool((gap <= bound).all()):  # NaN too
        raise RuntimeError(
            f"export_model: the outputs of {name!r} differ by {float(gap.max()):.3g}, more than "
            f"{float(bound.max()):.3g}"
        )
    return float(gap.max()) if gap.numel() else 0.0


def _convert(model: nn.Module, args: tuple[Any, ...], layout: str) -> list[ExportedLayer]:
    """Replace the layers of a copy in place; a row for each."""
    inputs = layer_inputs(model, args)
    layouts = ("csr", "2:4") if layout == "auto" else (layout,)
    rows = []
    swaps: list[tuple[ExportedLayer, nn.Module, nn.Module]] = []
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, WEIGHTED)]:
        row = _row(name, layer)
        rows.append(row)
        refusal = general_refusal(model, name, layer, name in inputs)
        if refusal is not None:
            row.reason = refusal
            continue
        x = inputs[name]
        forms, row.reason = _sparse_forms(layer, layouts, x)
        if not forms:
            continue
        gaps = {kind: _check_layer(name, layer, form, x) for kind, form in forms.items()}
        calls = [(m, (x,)) for m in (layer, *forms.values())]
        row.dense_ms, *times = median_ms(calls, x.device)
        best, row.exported_ms = min(zip(forms, times, strict=True), key=lambda pair: pair[1])
        row.exported_bytes, row.max_difference = bytes_of(forms[best]), gaps[best]
        row.layout, row.reason = best, ""
        replace_module(model, layer, forms[best])
        swaps.append((row, layer, forms[best]))
    if layout == "auto":
        _drop_slow(model, args, swaps)
    return rows


def _drop_slow(
    model: nn.Module,
    args: tuple[Any, ...],
    swaps: list[tuple[ExportedLayer, nn.Module, nn.Module]],
) -> None:
    """Go back to dense layers one by one where the whole model is faster with them.

    A layer's own time does not tell: the next one may have to copy what it gives.
    """
    device = next(t.device for t in (*model.parameters(), *model.buffers()))
    kept = list(swaps)
    for swap in swaps:
        row, layer, form = swap
        ways = [
            partial(replace_module, model, layer, form),
            partial(replace_module, model, form, layer),
        ]
        sparse_ms, dense_ms = median_ms([(model, args)] * 2, device, ways)
        if sparse_ms < dense_ms:
            ways[0]()
            continue
        kept.remove(swap)
        row.reason = f"the model is faster without {row.layout} here"
        row.layout = "dense"
    if not kept:
        return

    def put(sparse: bool) -> None:
        for _, layer, form in kept:
            replace_module(model, *((layer, form) if sparse else (form, layer)))

    ways = [partial(put, True), partial(put, False)]
    sparse_ms, dense_ms = median_ms([(model, args)] * 2, device, ways)
    if sparse_ms < dense_ms:
        put(True)
        return
    for row, _, _ in kept:
        row.reason = f"the model is faster without {row.layout}"
        row.layout = "dense"


def _row(name: str, layer: Any) -> ExportedLayer:
    weight = layer.weight.detach()
    return ExportedLayer(
        name, tuple(weight.shape), 100.0 * int((weight != 0).sum()) / max(weight.numel(), 1),
        dense_bytes=bytes_of(layer),
    )  # fmt: skip


def _compact(dense: nn.Module, model: nn.Module, args: tuple[Any, ...]) -> list[ExportedLayer]:
    compact_(model)
    before = layer_inputs(dense, args)
    try:
        after = layer_inputs(model, args)
    except RuntimeError as error:
        raise RuntimeError(
            f"export_model: a layer of an nn.Sequential is used outside of it too: {error}"
        ) from error
    rows = []
    for name, layer in dense.named_modules():
        if not isinstance(layer, WEIGHTED):
            continue
        row, own = _row(name, layer), model.get_submodule(name)
        rows.append(row)
        assert isinstance(own.weight, Tensor)
        if own.weight.shape == layer.weight.shape:
            row.reason = "no unit that is constant or unread can go"
            continue
        row.layout, row.exported_bytes = "compact", bytes_of(own)
        row.reason = f"now {'x'.join(map(str, own.weight.shape))}"
        if name in before:
            calls = [(layer, (before[name],)), (own, (after[name],))]
            row.dense_ms, row.exported_ms = median_ms(calls, before[name].device)
    return rows


def _double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def _check_whole(
    dense: nn.Module, rows: list[ExportedLayer], args: tuple[Any, ...], layout: str
) -> tuple[float, float]:
    """Relative difference of both models in float64, and its bound.

    In float64 a right export differs some 1e9 times less than its float32 sums may be off, however
    much the network amplifies; a wrong one does as much as ever.
    """
    wide = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    reference, other = _double(dense), _double(dense)
    if layout == "compact":
        compact_(other)
    for row in rows:
        if row.layout in ("csr", "2:4"):  # 2:4 has no float64: its zeros are tested as CSR
            layer: Any = other.get_submodule(row.name)
            replace_module(other, layer, CSRLinear(layer))
    with full_precision():
        expected, found = call_model(reference, wide), call_model(other, wide)
    size = max(float(expected.abs().max()), torch.finfo(torch.float64).tiny)
    gap = float((expected - found).abs().max()) / size
    fan_ins = [math.prod(row.shape[1:]) for row in rows]
    bound = 2.0 * sum(summing_error(k + 1, torch.float32) for k in fan_ins)
    if not gap <= bound:
        raise RuntimeError(
            f"export_model: in float64 the outputs differ by {gap:.3g} of the largest, more than "
            f"{bound:.3g}"
        )
    return gap, bound


@torch.no_grad()
def export_model(
    model: nn.Module, example_input: Any, layout: str = "auto", tolerance: float | None = None
) -> ExportReport:
    """Turn a trained model into one for inference that uses its zero weights, and measure it.

    Every layer's outputs on the example are compared with the dense layer's and must agree within
    the rounding bound of its dtype and fan-in; both models are compared in float64. The times are
    medians on this machine with torch's present threads: they say how it is here, for inputs of
    this size. Sparse is often slower.

    Args:
        model: stays as it is.
        example_input: a batch, or a tuple of the model's arguments, of the size to be fast for.
        layout: "csr": linear layers and 1x1 convolutions with a zero, whatever their speed; "2:4":
            linear layers with that pattern, where torch and the device have kernels; "auto": the
            faster of both, and dense where the whole model is faster on the example; "compact":
            smaller dense layers, without units that are constant or unread, in every
            ``nn.Sequential``.
        tolerance: largest difference allowed between the outputs of both models in their own
            dtype; None: only the bounds.

    Returns:
        The report, with the exported copy.

    Raises:
        ValueError: an argument is out of range, or the model has no linear or convolution layer or
            returns no tensor.
        RuntimeError: the outputs do not agree.

    Note:
        The copy does not train. ``state_dict`` of it loads into another export of the same layout.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(),
        ...                             torch.nn.Linear(32, 4))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:, 4:].zero_()
        >>> report = export_model(model, torch.ones(2, 64), layout="csr")
        >>> [(row.name, row.layout, row.reason) for row in report.layers]
        [('0', 'csr', ''), ('2', 'dense', 'no weight is zero')]
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    if tolerance is not None:
        check_number("tolerance", tolerance, 0.0)
    if not any(isinstance(m, WEIGHTED) for m in model.modules()):
        raise ValueError("export_model: the model has no linear or convolution layer")
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    # torch says once that CSR is in beta
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    dense = copy.deepcopy(model).eval()
    exported = copy.deepcopy(dense)
    if layout == "compact":
        rows = _compact(dense, exported, args)
    else:
        rows = _convert(exported, args, layout)
    relative, bound = _check_whole(dense, rows, args, layout)
    exported.requires_grad_(False)
    gap = float(
        (call_model(dense, args).double() - call_model(exported, args).double()).abs().max()
    )
    if tolerance is not None and not gap <= tolerance:
        raise RuntimeError(
            f"export_model: the outputs differ by {gap:.3g}, more than {tolerance:.3g}"
        )
    device = next(model.parameters()).device
    dense_ms, exported_ms = median_ms([(dense, args), (exported, args)], device)
    return ExportReport(
        exported, rows, bytes_of(dense), bytes_of(exported), dense_ms, exported_ms, gap, relative,
        bound,
    )  # fmt: skip
