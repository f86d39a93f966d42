"""Smaller dense layers: what goes, what is folded, what stays."""

import copy

import pytest
import torch
from sparse_optim import export_model
from sparse_optim._compact import compact_
from sparse_optim.demo import models
from torch import nn

ACTIVATIONS = [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.Tanh(), nn.Sigmoid(), nn.Identity()]


def double(*layers):
    torch.manual_seed(7)
    model = nn.Sequential(*layers).double().eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for t in (module.weight, module.bias, module.running_mean, module.running_var):
                if t is not None:
                    t.data.uniform_(0.5, 1.5)
    return model


def agree(model, x):
    """Compact a copy; how many units went."""
    small = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x)
        removed = compact_(small)
        torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12)
    return small, removed


@torch.no_grad()
def clear(layer, *units):
    layer.weight[list(units)] = 0.0


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("biases", [(True, True), (False, True), (True, False)])
def test_constant_units_go_into_the_next_bias(activation, biases):
    model = double(nn.Linear(6, 9, biases[0]), activation, nn.Linear(9, 4, biases[1]))
    clear(model[0], 1, 4, 8)
    small, removed = agree(model, torch.randn(5, 6).double())
    assert removed == 3
    assert small[0].weight.shape == (6, 6)
    assert (small[0].out_features, small[2].in_features) == (6, 6)
    assert small[2].weight.shape == (4, 6)


def test_units_that_nothing_reads_and_chains_of_them():
    model = double(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[4].weight[:, [0, 2]] = 0.0  # nothing reads units 0 and 2 of the second layer
        model[2].weight[[1, 3, 4, 5], 6] = 0.0  # only those two read unit 6 of the first
    small, removed = agree(model, torch.randn(4, 5).double())
    assert removed == 3
    assert [small[i].weight.shape for i in (0, 2, 4)] == [(6, 5), (4, 6), (3, 4)]


@pytest.mark.parametrize("norm", [True, False])
def test_filters_through_pooling_and_flatten(norm):
    norms = [nn.BatchNorm2d(8)] if norm else []
    model = double(
        nn.Conv2d(2, 8, 3, padding=1), *norms, nn.ReLU(), nn.MaxPool2d(2, padding=1),
        nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 2 * 2, 5),
    )  # fmt: skip
    clear(model[0], 0, 3)
    small, removed = agree(model, torch.randn(3, 2, 8, 8).double())
    assert removed == 2
    assert small[0].out_channels == 6
    assert small[-1].weight.shape == (5, 24)
    if norm:
        assert small[1].num_features == 6


def test_a_border_of_zeros_lets_only_zeros_go():
    """A padded convolution reads zeros beside a constant channel: it stays unless it is 0."""
    model = double(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))
    clear(model[0], 0, 1, 2)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-1.0, 0.5, 0.0, 1, 1, 1]))
    x = torch.randn(2, 2, 9, 9).double()
    assert agree(model, x)[1] == 2
    model[2].padding = (0, 0)
    assert agree(model, x)[1] == 3


def test_one_unit_stays():
    model = double(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    clear(model[0], *range(5))
    small, removed = agree(model, torch.randn(3, 4).double())
    assert (removed, small[0].out_features) == (4, 1)


def test_what_stays():
    x = torch.randn(3, 6).double()
    layer = nn.Linear(6, 6)
    twice = double(layer, nn.ReLU(), layer)
    clear(twice[0], 1)
    softmax = double(nn.Linear(6, 6), nn.Softmax(1), nn.Linear(6, 2))
    clear(softmax[0], 1)
    hooked = double(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    clear(hooked[0], 1)
    hooked[0].register_forward_hook(lambda *args: None)
    flat = double(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2))
    clear(flat[0], 1)
    tokens = double(nn.Linear(6, 6), nn.Flatten(1), nn.Linear(12, 2))  # a unit in two places
    clear(tokens[0], 1)
    inputs = {id(tokens): torch.randn(3, 2, 6).double()}
    for model in (twice, softmax, hooked, flat, tokens):
        small, removed = agree(model, inputs.get(id(model), x))
        assert removed == 0
        assert small[0].weight.shape == (6, 6)


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet"])
def test_export_of_the_demo_models(name):
    sizes = {"depth": 1, "width": 8} if name == "resnet" else {}
    torch.manual_seed(1)
    model = models.build(name, (1, 8, 8), 10, **sizes)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        for layer in layers[:-1]:
            layer.weight[: len(layer.weight) // 2] = 0.0
            if layer.bias is not None:
                layer.bias.fill_(-0.5)  # a padded convolution follows: ReLU makes a zero of it
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = export_model(model, torch.randn(4, 1, 8, 8), layout="compact")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert report.exported_bytes < 0.85 * report.dense_bytes
    changed = [row for row in report.layers if row.layout == "compact"]
    assert len(changed) >= 2
    for row in changed:
        own = report.model.get_submodule(row.name)
        assert row.reason == f"now {'x'.join(map(str, own.weight.shape))}"
        assert row.exported_bytes < row.dense_bytes
        assert min(row.dense_ms, row.exported_ms) > 0.0
    dense = [row for row in report.layers if row.layout == "dense"]
    assert all(row.reason == "no unit that is constant or unread can go" for row in dense)


def test_a_sequential_that_is_read_in_part_is_found():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
            clear(self.body[0], 1)

        def forward(self, x):
            return self.body(x) + self.body[0](x)

    with pytest.raises(RuntimeError, match="is used outside of it too"):
        export_model(Partly(), torch.randn(2, 6), layout="compact")
