"""What the implicit form of Sparse SAM refuses, and what it works together with."""

import contextlib
import doctest

import pytest
import sparse_optim.implicit
import torch
from optim_cases import assert_same_bits, batch, clone_grads, cross_entropy, mlp, through_disk
from sparse_optim import SAM, ImplicitMask, MagnitudeMask, RandomMask
from sparse_optim import _implicit_functions as functions
from torch import nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint


def masked_gradients(model, implicit, x, forward=None):
    model.zero_grad()
    with implicit:
        (forward or model)(x).square().sum().backward()
    return clone_grads(model)


class OwnForward(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


def test_layers_that_cannot_be_masked_are_refused_by_name():
    cases = {
        "up": nn.ConvTranspose2d(2, 2, 2),
        "act": nn.ReLU(),
        "own": OwnForward(2, 2, 2),
        "lazy": nn.LazyLinear(3),
    }
    for name, module in cases.items():
        model = nn.ModuleDict({"fc": nn.Linear(2, 2), name: module})
        with pytest.raises(ValueError, match=f"layer '{name}' (is a|has a|has no weight)"):
            ImplicitMask(model, layers=["fc", name])
        if name != "lazy":
            assert ImplicitMask(model).layers == ("fc",)
    with pytest.raises(ValueError, match=r"'lazy' has no weight yet"):
        ImplicitMask(model)  # never left out silently
    attention = nn.TransformerEncoderLayer(8, 2, 16)
    assert ImplicitMask(attention).layers == ("linear1", "linear2")
    with pytest.raises(ValueError, match="attention reads its weight"):
        ImplicitMask(attention, layers=["self_attn.out_proj"])
    with pytest.raises(ValueError, match="no layer 'fc2'"):
        ImplicitMask(model, layers=["fc2"])
    with pytest.raises(ValueError, match="no Linear or Conv"):
        ImplicitMask(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="no Linear or Conv"):
        ImplicitMask(model, layers=[])
    twice = nn.ModuleList([cases["up"], nn.Linear(2, 2)])
    twice.append(twice[1])
    assert ImplicitMask(twice).layers == ("1",)
    with pytest.raises(ValueError, match="'1' and '2' are one layer"):
        ImplicitMask(twice, layers=["1", "2"])


def test_bad_arguments_and_masks_are_refused():
    model = mlp()
    good = torch.ones(9, 6, dtype=torch.bool)
    for options, word in (
        ({"mask": good}, "policy"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"axis": "both"}, "axis"),
        ({"layers": "0"}, "iterable of names"),
        ({"seed": -1}, "seed"),
        ({"backend": "gpu"}, "backend"),
    ):
        with pytest.raises(ValueError, match=word):
            ImplicitMask(model, **options)
    implicit = ImplicitMask(model, MagnitudeMask())
    old = implicit.mask
    for masks, word in (
        ({"1": good}, "'1' is not one of the layers"),
        ({"0": good, "2": good}, r"'2' has shape \(9, 6\)"),
        ({"0": good.float()}, "'0' is not a bool"),
        ({"0": good.tolist()}, "'0' is not a bool"),
        ({"0": good.to("meta")}, "'0' has shape .* on meta"),
    ):
        with pytest.raises(ValueError, match=word):
            implicit.set_masks(masks)
        assert implicit.mask == old


def test_the_example_of_the_docstring():
    assert doctest.testmod(sparse_optim.implicit).failed == 0


@pytest.mark.parametrize("sparsity", [0.3, 1.0])
def test_state_dict_round_trip(sparsity):
    model = mlp()
    implicit = ImplicitMask(model, RandomMask(), sparsity=sparsity, seed=2**64 - 1)
    state = through_disk(implicit.state_dict())
    other = ImplicitMask(model, RandomMask(), sparsity=sparsity)
    assert sparsity == 1.0 or other.mask != implicit.mask
    other.load_state_dict(state)
    assert other.mask == implicit.mask
    implicit.update_mask()
    other.update_mask()
    assert other.mask == implicit.mask  # seed and count went along
    assert (other.pattern, other.axis) == (state["pattern"], state["axis"])


def test_a_state_that_does_not_fit_changes_nothing():
    implicit = ImplicitMask(mlp(), RandomMask())
    old, state = implicit.mask, implicit.state_dict()
    wider = ImplicitMask(nn.Sequential(nn.Linear(7, 9)), RandomMask()).state_dict()
    for bad, word in (
        ({**state, "axis": "in"}, "axis is 'in', here 'out'"),
        ({**state, "pattern": "2:4"}, "pattern is '2:4'"),
        ({**state, "format": 0}, "format is 0"),
        ({**state, "masks": {"5": state["masks"]["0"]}}, "no layer '5'"),
        (wider, r"'0' has shape \(9, 7\), expected \(9, 6\)"),
    ):
        with pytest.raises(ValueError, match=word):
            implicit.load_state_dict(bad)
        assert implicit.mask == old


def test_a_resumed_run_is_the_run():
    data = batch()

    def steps(model, opt, implicit, count):
        for _ in range(count):
            implicit.update_mask()
            with implicit:
                cross_entropy(model(data[0]), data[1]).backward()
            opt.first_step(zero_grad=True)
            cross_entropy(model(data[0]), data[1]).backward()
            opt.second_step(zero_grad=True)

    def start():
        model = mlp()
        opt = SAM(model.parameters(), SGD, rho=0.2, lr=0.1, momentum=0.9)
        return model, opt, ImplicitMask(model, RandomMask(), seed=4)

    a, b = start(), start()
    steps(*a, 3)
    for new, old in zip(b, a, strict=True):
        new.load_state_dict(through_disk(old.state_dict()))
    steps(*a, 5)
    steps(*b, 5)
    for p, q in zip(a[0].parameters(), b[0].parameters(), strict=True):
        assert_same_bits(p, q)


def test_only_needed_input_gradients_are_computed(monkeypatch):
    unpacked = []

    def counting(words, shapes, **options):
        unpacked.append(tuple(shapes[0]))
        return unpack(words, shapes, **options)

    unpack = functions.unpack_mask
    monkeypatch.setattr(functions, "unpack_mask", counting)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3), nn.Flatten(1), nn.Linear(20, 3))
    implicit, x = ImplicitMask(model, MagnitudeMask()), torch.randn(2, 2, 9)
    unpacked.clear()
    masked_gradients(model, implicit, x)
    assert unpacked == [(3, 20), (4, 4, 3)]  # the first layer's input needs no gradient
    unpacked.clear()
    with implicit, torch.no_grad():
        assert torch.equal(model(x), model(x))
    model[:2].requires_grad_(False)
    masked_gradients(model[3:], implicit, x.new_zeros(2, 20))
    assert unpacked == []
    with implicit:
        assert model(x.requires_grad_()).grad_fn.name() == "_LinearInputGradientBackward"


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant):
    model, x = mlp(), batch()[0].requires_grad_()
    implicit = ImplicitMask(model, MagnitudeMask())
    expected = masked_gradients(model, implicit, x)
    got = masked_gradients(
        model, implicit, x, lambda x: checkpoint(model, x, use_reentrant=reentrant)
    )
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("first", ["inside", "outside"])
def test_a_compiled_model_is_eager_inside_and_compiled_outside(first):
    counts = {"compiled": 0, "ran": 0}

    def backend(graph, example):
        counts["compiled"] += 1

        def call(*args):
            counts["ran"] += 1
            return graph(*args)

        return call

    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 9), nn.Linear(9, 3))
    implicit, x = ImplicitMask(model, RandomMask()), torch.randn(4, 6)
    compiled = torch.compile(model, backend=backend)
    dense = masked_gradients(model, contextlib.nullcontext(), x)
    for step in range(4):
        if step or first == "outside":
            got = masked_gradients(compiled, contextlib.nullcontext(), x)
            for a, b in zip(got, dense, strict=True):
                assert_same_bits(a, b)
            assert counts == {"compiled": 1, "ran": step + (first == "outside")}
        implicit.update_mask()
        sparse = masked_gradients(model, implicit, x)
        for a, b in zip(masked_gradients(compiled, implicit, x), sparse, strict=True):
            assert_same_bits(a, b)
        assert not torch.allclose(sparse[0], dense[0])
    parts = [ImplicitMask(model, RandomMask(), layers=[name]) for name in ("2", "3")]
    for call in (parts[0].begin_pass1, parts[1].begin_pass1, parts[0].end_pass1):
        call()
    ran = counts["ran"]
    compiled(x)
    assert counts["ran"] == ran  # a block is still open
    parts[1].end_pass1()
    compiled(x)
    assert counts == {"compiled": 1, "ran": ran + 1}
    torch.compiler.reset()


def test_function_transforms_are_refused_inside_the_block():
    model, x = mlp(), batch()[0]
    implicit = ImplicitMask(model, MagnitudeMask())
    slope = torch.func.grad(lambda x: model(x).sum())
    assert slope(x).shape == x.shape
    with implicit, pytest.raises(RuntimeError, match="setup_context"):
        slope(x)


def test_both_passes_under_a_gradient_scaler():
    def run(scaled):
        model, (x, y) = mlp(), batch()
        opt = SAM(model.parameters(), SGD, rho=0.2, lr=0.1)
        implicit = ImplicitMask(model, MagnitudeMask())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for _ in range(3):
            implicit.update_mask()
            with implicit:
                scaler.scale(cross_entropy(model(x), y)).backward()
            opt.first_step(zero_grad=True)
            scaler.scale(cross_entropy(model(x), y)).backward()
            scaler.step(opt) if scaled else opt.second_step()
            scaler.update()
            opt.zero_grad()
        return list(model.parameters())

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # property 35 of the dense step
