"""export_model: layouts, checks, refusals, checkpoints of exported models."""

import copy
import io

import pytest
import torch
from sparse_optim import export_model, sparse_init_
from sparse_optim._export_layers import (
    CSRLinear,
    full_precision,
    is_two_four,
    rounding_bound,
    summing_error,
)
from sparse_optim.demo import models
from torch import nn


@torch.no_grad()
def sparse_(model, density=0.1):
    """Zeros in every weight, and biases that are not zero."""
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        if p.dim() > 1:
            p *= torch.rand(p.shape, generator=generator) < density
    return model


def layouts(report):
    return {row.name: row.layout for row in report.layers}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 3, 4)])
def test_csr_linear_on_any_batch(lead, bias, kind):
    layer = sparse_(nn.Linear(33, 17, bias=bias)).to(kind)
    form = CSRLinear(layer)
    x = torch.randn(*lead, 33, dtype=kind)
    expected, found = layer(x), form(x)
    assert found.shape == expected.shape
    assert found.dtype == kind
    assert ((found - expected).abs() <= rounding_bound(layer, x)).all()
    assert form.values.numel() == int((layer.weight != 0).sum())
    assert not list(form.parameters())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batched", [True, False])
def test_csr_convolution_1x1(stride, batched):
    layer = sparse_(nn.Conv2d(12, 9, 1, stride=stride))
    x = torch.randn(*([3] if batched else []), 12, 7, 5)
    expected, found = layer(x), CSRLinear(layer)(x)
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= rounding_bound(layer, x)).all()


def test_the_model_stays_and_the_copy_agrees():
    model = sparse_(models.mlp((1, 8, 8), 10, hidden=50))
    model.train()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(7, 1, 8, 8)
    report = export_model(model, x, layout="csr")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not report.model.training
    assert layouts(report) == {"1": "csr", "3": "csr"}
    assert isinstance(report.model[1], CSRLinear)
    with torch.no_grad():
        gap = (report.model(x) - model.eval()(x)).abs().max()
    assert float(gap) == pytest.approx(report.max_difference)
    assert report.relative_difference <= 1e-13 < report.bound
    # per nonzero weight a value and an int32 column; a row start more than outputs; the bias
    nonzero = int((model[1].weight != 0).sum())
    row = report.layers[0]
    assert row.exported_bytes == 8 * nonzero + 4 * 51 + 4 * 50
    assert row.dense_bytes == 4 * (64 * 50 + 50)
    assert report.dense_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert report.exported_bytes == sum(r.exported_bytes for r in report.layers)
    assert min(row.dense_ms, row.exported_ms, report.dense_ms, report.exported_ms) > 0.0


def test_why_layers_stay_dense():
    shared = nn.Linear(6, 6)
    hooked = sparse_(nn.Linear(6, 6))
    hooked.register_forward_hook(lambda *args: None)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        sparse_(shared), nn.ReLU(), shared, hooked, nn.Linear(6, 6),
        nn.Unflatten(1, (1, 6)), nn.ConvTranspose1d(1, 1, 2), nn.Flatten(),
    )  # fmt: skip
    model.add_module("spare", nn.Identity())
    report = export_model(model, torch.randn(2, 3, 5, 5), layout="csr")
    reasons = {row.name: row.reason for row in report.layers}
    assert reasons["0"] == reasons["1"] == "torch has no CSR convolution (only 1x1, as a product)"
    assert reasons["7"] == "has forward hooks"
    assert reasons["8"] == "no weight is zero"
    assert reasons["10"] == "no sparse form of ConvTranspose1d"
    assert layouts(report)["4"] == "csr"
    assert report.model[4] is report.model[6]
    assert "torch has no CSR" in report.as_table()


def test_attention_keeps_the_layers_whose_weights_it_reads():
    model = sparse_(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    report = export_model(model, torch.randn(2, 5, 8), layout="csr")
    assert set(layouts(report).values()) == {"dense"}
    text = models.transformer((12,), 20, depth=1, width=64)
    report = export_model(sparse_(text), torch.zeros(2, 12, dtype=torch.int64), layout="csr")
    assert set(layouts(report).values()) == {"csr"}


@pytest.mark.parametrize("layout", ["2:4", "csr", "auto"])
def test_16_bits_on_the_cpu_are_refused_layer_by_layer(layout):
    model = nn.Sequential(nn.Linear(64, 64)).to(torch.bfloat16)
    with torch.no_grad():
        model[0].weight.view(-1, 4)[:, :2] = 0
    report = export_model(model, torch.randn(3, 64, dtype=torch.bfloat16), layout=layout)
    assert layouts(report) == {"0": "dense"}
    reason = report.layers[0].reason
    assert ("CUDA only" in reason) == (layout != "csr")
    assert ("no CSR product in torch.bfloat16" in reason) == (layout != "2:4")


def test_the_2_4_pattern():
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 0], [0, 3, 0, 0, 4, 5, 0, 0]])
    assert is_two_four(weight)
    weight[1, 6] = 1
    assert not is_two_four(weight)
    assert not is_two_four(torch.zeros(2, 6))
    model = nn.Sequential(nn.Linear(8, 2))
    report = export_model(model, torch.ones(1, 8), layout="2:4")
    assert report.layers[0].reason == "the zeros have no 2:4 pattern"


def test_auto_takes_the_faster_one(monkeypatch):
    """Times are made up: sparse costs 1 where the test says so, dense 2."""
    model = sparse_(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))

    def times(fast):
        def median(calls, device, prepare=None):
            if prepare is None:
                return [2.0, 1.0, 1.0][: len(calls)]
            found = []
            for (whole, _), put in zip(calls, prepare, strict=True):
                put()
                sparse = sum(isinstance(m, CSRLinear) for m in whole)
                found.append(2.0 - sparse * fast)
            return found

        return median

    x = torch.randn(2, 8)
    monkeypatch.setattr("sparse_optim.export.median_ms", times(0.5))
    assert set(layouts(export_model(model, x)).values()) == {"csr"}
    monkeypatch.setattr("sparse_optim.export.median_ms", times(-0.5))
    report = export_model(model, x)
    assert set(layouts(report).values()) == {"dense"}
    assert type(report.model[0]) is nn.Linear
    assert report.layers[0].reason == "the model is faster without csr here"


def test_what_torch_refuses_is_a_reason(monkeypatch):
    """As its 2:4 kernels do with shapes, when the weight is made or when it is used."""

    class Refusing(CSRLinear):
        def forward(self, x):
            raise NotImplementedError("not with this shape\nand more")

    def refuse(layer):
        raise RuntimeError("no kernel")

    model, x = sparse_(nn.Sequential(nn.Linear(16, 16))), torch.randn(4, 16)
    for make, says in ((Refusing, "not with this shape"), (refuse, "no kernel")):
        monkeypatch.setattr("sparse_optim.export._MAKERS", {"2:4": (lambda layer: None, make)})
        report = export_model(model, x, layout="2:4")
        assert layouts(report) == {"0": "dense"}
        assert report.layers[0].reason == f"torch refuses 2:4: {says}"


# -- checks --------------------------------------------------------------------------------------


def test_a_wrong_layer_is_found(monkeypatch):
    class Wrong(CSRLinear):
        def forward(self, x):
            return super().forward(x) * (1 + 1e-4)

    model = sparse_(nn.Sequential(nn.Linear(16, 16)))
    x = torch.randn(4, 16)
    monkeypatch.setattr("sparse_optim.export._MAKERS", {"csr": (lambda layer: None, Wrong)})
    with pytest.raises(RuntimeError, match="outputs of '0' differ by"):
        export_model(model, x, layout="csr")


def test_a_model_that_looks_at_its_weights_is_found():
    class Norm(nn.Module):
        """Reads what is no output of the layer."""

        def __init__(self):
            super().__init__()
            self.layer = sparse_(nn.Linear(8, 8))

        def forward(self, x):
            extra = 1.0 if isinstance(self.layer, nn.Linear) else 0.0
            return self.layer(x) + extra

    with pytest.raises(RuntimeError, match="in float64 the outputs differ"):
        export_model(Norm(), torch.randn(2, 8), layout="csr")


class Pair(nn.Linear):
    def __init__(self):
        super().__init__(300, 2)

    def forward(self, x):
        return x, x


def test_tolerance_and_arguments():
    model = sparse_(nn.Sequential(nn.Linear(300, 50)))
    x = torch.randn(64, 300)
    report = export_model(model, x, layout="csr")
    assert report.max_difference > 0.0
    with pytest.raises(RuntimeError, match="the outputs differ by"):
        export_model(model, x, layout="csr", tolerance=report.max_difference / 1e3)
    with pytest.raises(ValueError, match="layout must be one of"):
        export_model(model, x, layout="coo")
    with pytest.raises(ValueError, match="tolerance"):
        export_model(model, x, tolerance=-1.0)
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        export_model(nn.Sequential(nn.ReLU()), x)
    with pytest.raises(ValueError, match="must return a tensor, got tuple"):
        export_model(Pair(), x)


def test_the_bound_follows_dtype_and_fan_in():
    u = 2.0**-24
    assert summing_error(1000, torch.float32) == pytest.approx(1000 * u, rel=1e-3)
    assert summing_error(10, torch.float64) == pytest.approx(10 * 2.0**-53)
    assert summing_error(10, torch.bfloat16) == pytest.approx(2.0**-8, rel=1e-3)
    layer, x = nn.Linear(100, 3), torch.randn(2, 100)
    exact = x.double().abs() @ layer.weight.double().abs().t() + layer.bias.double().abs()
    bound = rounding_bound(layer, x).detach().double()
    torch.testing.assert_close(bound, 2 * 101 * u * exact, rtol=1e-4, atol=0.0)
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction
    with full_precision():
        assert not matmul.allow_fp16_reduced_precision_reduction
    assert matmul.allow_fp16_reduced_precision_reduction == before


def test_exported_models_are_saved_and_loaded():
    """Also into the export of a model with other zeros; and deepcopy and other dtypes work."""
    first, second = (models.mlp((1, 8, 8), 10, hidden=20) for _ in range(2))
    for model, density in ((first, 0.2), (second, 0.4)):
        sparse_init_(model, density)
    x = torch.randn(3, 1, 8, 8)
    a, b = (export_model(m, x, layout="csr").model for m in (first, second))
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        assert not torch.equal(a(x), b(x))
        b.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(a(x), b(x))
        assert torch.equal(copy.deepcopy(a)(x), a(x))
        torch.testing.assert_close(copy.deepcopy(a).double()(x.double()).float(), a(x))
