"""Layers in the implicit form of Sparse SAM (sparse-sam.md section 4, properties 27 and 28)."""

import contextlib
import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from optim_cases import assert_same_bits, batch, clone_grads, cross_entropy, mlp
from sparse_optim import ImplicitMask, MagnitudeMask
from torch import nn
from torch.nn.utils import parametrizations, prune

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
SIZES = [(9, 7, 8), (6, 11, 5)]  # not square, and one layer sees both


def with_masks(model, make):
    """An ImplicitMask over the whole model with ``make(shape)`` as the mask of each layer."""
    implicit = ImplicitMask(model)
    modules = dict(model.named_modules())
    implicit.set_masks({n: make(modules[n].weight.shape) for n in implicit.layers})
    return implicit


def ones(shape):
    return torch.ones(shape, dtype=torch.bool)


def half(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5


def passes(model, inputs, block, autocast=False):
    """Outputs and gradients of inputs and parameters, summed over the inputs; fixed dy."""
    found = []
    model.zero_grad()
    for x in inputs:
        x = x.detach().requires_grad_()
        with block or contextlib.nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                y = model(x)
            generator = torch.Generator().manual_seed(5)
            y.backward(torch.randn(y.shape, generator=generator).to(y.dtype))
        found += [y.detach(), x.grad]
    return found + [p.grad for p in model.parameters()]


def check_property_27(layer, inputs, autocast=False):
    """All ones: every bit of the layer's own. All zeros: dx = 0 and the rest unchanged."""
    dense = passes(copy.deepcopy(layer), inputs, None, autocast)
    full = passes(layer, inputs, with_masks(layer, ones), autocast)
    empty = passes(layer, inputs, with_masks(layer, lambda s: ~ones(s)), autocast)
    for i, (d, a, z) in enumerate(zip(dense, full, empty, strict=True)):
        assert_same_bits(a, d)
        assert a.stride() == d.stride()
        input_gradient = i < 2 * len(inputs) and i % 2 == 1
        if input_gradient:
            assert torch.equal(z, torch.zeros_like(d))
        else:
            assert_same_bits(z, d)
    assert all(d.count_nonzero() > 0 for d in dense)


@pytest.mark.parametrize("shape", [(8,), (5, 8), (1, 8), (3, 5, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_property_27_linear(shape, bias, dtype):
    layer = nn.Linear(8, 6, bias=bias).to(dtype)
    x = torch.randn(shape).to(dtype)
    check_property_27(layer, [x, x[:1], torch.randn(4, 8).to(dtype)][:: 1 if len(shape) > 1 else 2])
    columns = torch.randn(shape[::-1]).to(dtype).permute(*range(len(shape))[::-1])
    check_property_27(layer, [columns])


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 1, "each", "same", "valid"])
@pytest.mark.parametrize("bias", [True, False])
def test_property_27_convolution(dims, mode, padding, bias):
    for kernel in (3, 2, tuple(range(1, dims + 1))):
        for stride, dilation, groups in [(1, 1, 1), (2, 1, 2), (1, 2, 4), ((1, 2, 3)[:dims], 1, 1)]:
            if padding == "same" and stride != 1:
                continue  # torch refuses it
            pads = tuple(range(dims)) if padding == "each" else padding
            layer = CONVS[dims](
                4, 8, kernel, stride=stride, padding=pads, dilation=dilation, groups=groups,
                bias=bias, padding_mode=mode,
            )  # fmt: skip
            check_property_27(layer, [torch.randn(2, 4, *s[:dims]) for s in SIZES])
            check_property_27(layer, [torch.randn(4, *SIZES[0][:dims])])  # unbatched


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [1, "same"])
def test_property_27_convolution_dtypes_and_memory_formats(dims, padding, dtype):
    layer = CONVS[dims](4, 8, 2, padding=padding, groups=2).to(dtype)
    inputs = [torch.randn(2, 4, *s[:dims]).to(dtype) for s in SIZES]
    check_property_27(layer, inputs)
    if dims in FORMATS:
        layer = layer.to(memory_format=FORMATS[dims])
        check_property_27(layer, [x.to(memory_format=FORMATS[dims]) for x in inputs])
        check_property_27(layer, inputs)  # the weight alone decides the format of dx


def test_property_27_under_autocast(dtype):
    """The layer decides the dtype of its product: float64 stays, float32 becomes bfloat16."""
    conv = nn.Conv2d(4, 6, 2, padding="same", padding_mode="reflect", dtype=dtype)
    check_property_27(conv, [torch.randn(2, 4, 9, 7, dtype=dtype)], autocast=True)
    linear = nn.Linear(8, 6, dtype=dtype)
    check_property_27(linear, [torch.randn(5, 8, dtype=dtype)], autocast=True)


def test_property_27_frozen_weights_pass_the_gradient_on():
    layer = nn.Linear(8, 6).requires_grad_(False)
    x = torch.randn(5, 8)
    expected = passes(copy.deepcopy(layer), [x], None)
    for a, b in zip(passes(layer, [x], with_masks(layer, ones))[:2], expected[:2], strict=True):
        assert_same_bits(a, b)
    conv = nn.Conv2d(4, 6, 3).requires_grad_(False)
    x = torch.randn(2, 4, 9, 7)
    expected = passes(copy.deepcopy(conv), [x], None)
    for a, b in zip(passes(conv, [x], with_masks(conv, ones))[:2], expected[:2], strict=True):
        assert_same_bits(a, b)


def test_property_28_linear_against_the_product():
    layer = nn.Linear(8, 6, dtype=torch.float64)
    x, dy = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    x.requires_grad_()
    mask = half(layer.weight.shape)
    with with_masks(layer, half):
        layer(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ (layer.weight.detach() * mask), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.weight.grad, dy.t() @ x.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.bias.grad, dy.sum(0), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(x.grad, dy @ layer.weight.detach())


def test_property_28_convolution_against_the_transposed_product():
    layer = nn.Conv2d(4, 6, (3, 2), padding=(1, 0), groups=2, dtype=torch.float64)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 6, 9, 6, dtype=torch.float64)
    sparse = layer.weight.detach() * half(layer.weight.shape)
    with with_masks(layer, half):
        layer(x).backward(dy)
    expected = F.conv_transpose2d(dy, sparse, padding=(1, 0), groups=2)
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_property_28_is_the_input_gradient_of_the_sparse_layer(dims, mode, padding):
    """dx does not depend on x: a dense layer with the weights W∘m has the same one, bit for bit."""
    layer = CONVS[dims](4, 8, 2, padding=padding, padding_mode=mode, groups=2)
    sparse, dense = copy.deepcopy(layer), copy.deepcopy(layer)
    with torch.no_grad():
        sparse.weight.mul_(half(layer.weight.shape))
    x = torch.randn(2, 4, *SIZES[0][:dims])
    y, dx, dw, db = passes(layer, [x], with_masks(layer, half))
    assert_same_bits(dx, passes(sparse, [x], None)[1])
    expected = passes(dense, [x], None)
    for a, b in zip((y, dw, db), (expected[0], *expected[2:]), strict=True):
        assert_same_bits(a, b)
    assert not torch.equal(dx, expected[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_behind_a_zero_bit_reaches_the_input_gradient(bad):
    for layer, x in ((nn.Linear(8, 6), torch.randn(5, 8)), (nn.Conv1d(4, 6, 3), torch.randn(4, 9))):
        keep = ones(layer.weight.shape)
        keep[0, 1] = False
        with torch.no_grad():
            layer.weight[0, 1] = bad
        x.requires_grad_()
        with with_masks(layer, lambda _, keep=keep: keep):
            layer(x).sum().backward()
        assert x.grad.isfinite().all()


def test_in_place_activations_and_repeated_backwards():
    for x, first in (
        (torch.randn(2, 4, 9, 7), nn.Conv2d(4, 4, 3, padding=1)),
        (torch.randn(4, 9, 7), nn.Conv2d(4, 4, 3, padding=1)),
        (torch.randn(3, 5, 8), nn.Linear(8, 8)),
    ):
        model = nn.Sequential(first, nn.ReLU(inplace=True), copy.deepcopy(first))
        plain = nn.Sequential(first, nn.ReLU(), model[2])
        expected = passes(plain, [x], with_masks(plain, half))
        for a, b in zip(passes(model, [x], with_masks(model, half)), expected, strict=True):
            assert_same_bits(a, b)
        x.requires_grad_()
        with with_masks(model, half):
            y = model(x).sum()
        once = torch.autograd.grad(y, x, retain_graph=True)[0]
        assert_same_bits(torch.autograd.grad(y, x, retain_graph=True)[0], once)
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def parametrized(kind):
    layer = nn.Linear(6, 6)
    if kind == "weight_norm":
        return parametrizations.weight_norm(layer)
    if kind == "spectral_norm":
        return parametrizations.spectral_norm(layer)
    return prune.random_unstructured(layer, "weight", 0.3)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "prune"])
def test_a_parametrized_weight_is_masked_as_the_layer_uses_it(kind):
    model = nn.Sequential(nn.Linear(6, 6), parametrized(kind))
    buffers = [b.clone() for b in model.buffers()]
    implicit = ImplicitMask(model, MagnitudeMask())
    for a, b in zip(model.buffers(), buffers, strict=True):
        assert torch.equal(a, b)  # scores are taken without a power iteration
    model[1].eval()
    weight = model[1].weight.detach()
    assert implicit.mask == MagnitudeMask().compute([model[0].weight, weight], 0.5)
    x = torch.randn(5, 6, requires_grad=True)
    hidden = model[0](x).detach().requires_grad_()
    with implicit:
        model[1](hidden).sum().backward()
    keep = implicit.mask.to_bool()[1]
    expected = torch.ones(5, 6) @ torch.where(keep, weight, 0.0)
    torch.testing.assert_close(hidden.grad, expected)
    sparse = clone_grads(model[1])
    model.zero_grad()
    model[1](hidden.detach()).sum().backward()
    for a, b in zip(sparse, clone_grads(model[1]), strict=True):
        assert_same_bits(a, b)
    with pytest.raises(ValueError, match="weight of layer '1' is computed"):
        ImplicitMask(model).update_mask(model, batch(), cross_entropy)
    own = ImplicitMask(model)
    own.set_masks({"0": keep, "1": keep})
    assert own.mask.live == 2 * int(keep.sum())


def test_a_tied_weight_has_a_mask_per_layer():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    first, second = torch.rand(4, 4) < 0.5, torch.rand(4, 4) < 0.5
    implicit = ImplicitMask(model)
    implicit.set_masks({"0": first, "1": second})
    x, w = torch.randn(3, 4, requires_grad=True), model[0].weight.detach()
    with implicit:
        model(x).sum().backward()
    middle = torch.ones(3, 4) @ (w * second)
    torch.testing.assert_close(x.grad, middle @ (w * first))
    hidden = x.detach() @ w.t()
    expected = middle.t() @ x.detach() + torch.ones(3, 4).t() @ hidden
    torch.testing.assert_close(model[0].weight.grad, expected)
    implicit.update_mask(model, batch_of(x), nn.functional.mse_loss)  # the sum over both uses
    assert implicit.mask.live == 16


def batch_of(x):
    return x.detach(), torch.zeros(len(x), 4)


def test_a_weight_replaced_after_the_mask_is_refused_by_name():
    model = mlp()
    implicit = ImplicitMask(model, MagnitudeMask())
    model[2].weight = nn.Parameter(torch.randn(3, 5))
    with (
        pytest.raises(RuntimeError, match=r"layer '2' has shape \(3, 5\).*mask \(3, 9\)"),
        implicit,
    ):
        model[2](torch.randn(2, 5, requires_grad=True))
    assert "forward" not in vars(model[2])


def test_a_weight_changed_between_forward_and_backward_is_refused():
    layer = nn.Linear(4, 3).requires_grad_(False)
    with ImplicitMask(layer, MagnitudeMask()):
        y = layer(torch.randn(2, 4, requires_grad=True))
        layer.weight.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
