"""The implicit form of Sparse SAM around a model (sparse-sam.md section 4, 28 and 39)."""

import copy
import pickle

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    assert_same_params,
    batch,
    clone_grads,
    cross_entropy,
    mlp,
)
from sparse_optim import (
    SAM,
    BitMask,
    FisherMask,
    ImplicitMask,
    MagnitudeMask,
    MaskPolicy,
    RandomMask,
)
from torch import nn
from torch.optim import SGD

from sparse_kernels import mask_nm, unpack_mask


def smooth(seed=1, dtype=torch.float32):
    """Three linear layers without exact zeros in any gradient."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    ).to(dtype)  # fmt: skip


def two_of_four(model, axis="out"):
    """2:4 masks of the largest weights of every linear layer."""
    weights = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    words = mask_nm([w.detach() for w in weights.values()], 2, 4, axis, kind="abs")
    return dict(zip(weights, unpack_mask(words, [w.shape for w in weights.values()]), strict=True))


def gradients(model, block=None, data=None):
    x, y = batch() if data is None else data
    model.zero_grad()
    if block is None:
        cross_entropy(model(x), y).backward()
    else:
        with block:
            cross_entropy(model(x), y).backward()
    return clone_grads(model)


def manual_gradients(model, masks):
    """Backpropagation by hand through ``smooth``, input gradients with the masked weights."""
    x, y = batch(dtype=torch.float64)
    w = {n: model[int(n)].weight.detach() for n in ("0", "2", "4")}
    b = {n: model[int(n)].bias.detach() for n in w}
    h0 = (x @ w["0"].t() + b["0"]).tanh()
    h2 = (h0 @ w["2"].t() + b["2"]).tanh()
    d4 = (h2 @ w["4"].t() + b["4"]).softmax(1)
    d4[torch.arange(len(y)), y] -= 1
    d4 /= len(y)
    d2 = d4 @ (w["4"] * masks["4"]) * (1 - h2.square())
    d0 = d2 @ (w["2"] * masks["2"]) * (1 - h0.square())
    pairs = ((d0, x), (d2, h0), (d4, h2))
    return [g for d, h in pairs for g in (d.t() @ h, d.sum(0))]


@pytest.mark.parametrize("axis", ["in", "out"])
def test_property_28_gradients_by_hand_and_a_dense_second_pass(axis):
    model = smooth(dtype=torch.float64)
    dense_model = copy.deepcopy(model)
    data = batch(dtype=torch.float64)
    implicit, masks = ImplicitMask(model), two_of_four(model, axis)
    implicit.set_masks(masks)
    sparse = gradients(model, implicit, data)
    for a, b in zip(sparse, manual_gradients(model, masks), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)
    for a, b in zip(gradients(model, None, data), gradients(dense_model, None, data), strict=True):
        assert_same_bits(a, b)
    assert not torch.allclose(sparse[0], model[0].weight.grad)
    assert_same_bits(sparse[4], model[4].weight.grad)  # the last layer's own gradients are dense
    # along "out" no column of a weight is empty, so that no unit is cut from the backward
    assert axis == "in" or all(g.count_nonzero() == g.numel() for g in sparse)


def test_property_28_the_perturbation_has_no_zeros():
    model, (x, y) = smooth(), batch()
    implicit = ImplicitMask(model)
    implicit.set_masks(two_of_four(model))
    dense = copy.deepcopy(model)
    moves = []
    for m, block in ((model, implicit), (dense, None)):
        opt = SAM(m.parameters(), SGD, rho=0.5, lr=0.1)
        before = [p.detach().clone() for p in m.parameters()]
        gradients(m, block)
        opt.first_step(zero_grad=True)
        moves.append([p.detach() - b for p, b in zip(m.parameters(), before, strict=True)])
        cross_entropy(m(x), y).backward()
        opt.second_step()
    assert all(e.count_nonzero() == e.numel() for e in moves[0])
    assert not torch.allclose(moves[0][0], moves[1][0])  # the direction is another one


def train(model, implicit, opt, data, steps):
    losses = []
    for _ in range(steps):
        with implicit:
            loss = cross_entropy(model(data[0]), data[1])
            loss.backward()
        opt.first_step(zero_grad=True)
        cross_entropy(model(data[0]), data[1]).backward()
        opt.second_step(zero_grad=True)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["2:4", "fisher", "magnitude", "random"])
def test_property_39_the_loss_goes_down(kind):
    model, (x, _) = smooth(), batch(n=64)
    y = (x[:, 0] > x[:, 1]).long() + (x[:, 2] > 0.5).long()
    policy = {"magnitude": MagnitudeMask(), "random": RandomMask()}.get(kind, FisherMask(16))
    implicit = ImplicitMask(model, mask=policy)
    if kind == "2:4":
        implicit.set_masks(two_of_four(model))
    elif kind == "fisher":
        implicit.update_mask(model, (x, y), cross_entropy)
    opt = SAM(model.parameters(), SGD, rho=0.05, lr=0.2, momentum=0.9)
    losses = train(model, implicit, opt, (x, y), 60)
    assert losses[-1] < 0.3 * losses[0]
    assert implicit.mask.sparsity == pytest.approx(0.5, abs=0.04)  # 3 rows: short groups of 3


def test_masks_of_the_policies():
    model, data = smooth(), batch()
    weights = [model[i].weight for i in (0, 2, 4)]
    implicit = ImplicitMask(model, RandomMask(), sparsity=0.7, seed=5)
    assert implicit.mask == RandomMask().compute(weights, 0.7, seed=5, update=0)
    implicit.sparsity = 0.2
    implicit.update_mask()
    assert implicit.mask == RandomMask().compute(weights, 0.2, seed=5, update=1)
    implicit = ImplicitMask(model, layers=["4", "2"])
    assert implicit.mask is None
    implicit.update_mask(model, data, cross_entropy)
    assert implicit.layers == ("4", "2")
    assert implicit.mask == FisherMask().compute(
        weights[:0:-1], 0.5, model, data, cross_entropy, seed=0, update=0
    )
    old = implicit.mask
    with pytest.raises(ValueError, match="FisherMask needs"):
        implicit.update_mask()
    assert implicit.mask == old
    own = {"2": torch.zeros(8, 8, dtype=torch.bool)}
    implicit.set_masks(own)
    assert implicit.mask.to_bool()[0].equal(old.to_bool()[0])
    assert not implicit.mask.to_bool()[1].any()


class PatternPolicy(MaskPolicy):
    """n:m masks of the largest weights, as a policy that knows patterns gives them."""

    def compute(self, params, sparsity, *data, seed=0, update=0, pattern=None, axis=None):
        n, m = map(int, pattern.split(":"))
        words = mask_nm([p.detach() for p in params], n, m, axis, kind="abs")
        return BitMask(words, [p.shape for p in params])


@pytest.mark.parametrize("axis", ["in", "out"])
def test_the_pattern_and_its_axis_go_to_the_policy(axis):
    model = smooth()
    implicit = ImplicitMask(model, PatternPolicy(), pattern="2:4", axis=axis)
    expected = two_of_four(model, axis)
    for got, name in zip(implicit.mask.to_bool(), implicit.layers, strict=True):
        assert torch.equal(got, expected[name])
    assert ImplicitMask(model, PatternPolicy(), pattern="2:4").axis == "out"


def test_the_model_is_what_it_was_after_the_block():
    model = mlp(norm=True)
    seen = []
    model[0].register_forward_hook(lambda m, args, out: seen.append(args[0].requires_grad))
    implicit = ImplicitMask(model, MagnitudeMask())
    before = [(m, type(m), dict(vars(m)), m.forward) for m in model.modules()]
    keys = list(model.state_dict())
    x = batch()[0].requires_grad_()
    with implicit:
        assert "forward" in vars(model[0])
        model(x).sum().backward()
    assert seen == [True]  # hooks run, and see the layer's input as it came
    for (m, kind, attributes, forward), now in zip(before, model.modules(), strict=True):
        assert now is m
        assert type(m) is kind
        assert set(vars(m)) == set(attributes)
        assert all(vars(m)[k] is v for k, v in attributes.items() if k != "training")
        assert m.forward == forward
    assert list(model.state_dict()) == keys
    model[0]._forward_hooks.clear()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_params(again, model)
    assert_same_params(copy.deepcopy(implicit).model, model)


def test_the_block_ends_on_every_way_out():
    model = mlp()
    implicit = ImplicitMask(model, MagnitudeMask())
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), implicit:
            raise error
        assert "forward" not in vars(model[0])
    implicit.begin_pass1()
    for call in (
        implicit.begin_pass1,
        implicit.update_mask,
        lambda: implicit.set_masks({}),
        lambda: implicit.load_state_dict({}),
    ):
        with pytest.raises(RuntimeError, match="not inside the block"):
            call()
    other = ImplicitMask(model, MagnitudeMask(), layers=["2"])
    with pytest.raises(RuntimeError, match="'2' is replaced already"):
        other.begin_pass1()
    assert "forward" in vars(model[2])
    implicit.end_pass1()
    with pytest.raises(RuntimeError, match="begin_pass1 first"):
        implicit.end_pass1()
    with other:
        assert "forward" not in vars(model[0])
    assert "forward" not in vars(model[2])


def test_a_missing_mask_is_named_before_anything_is_patched():
    model = mlp()
    implicit = ImplicitMask(model)
    implicit.set_masks({"0": torch.ones(9, 6, dtype=torch.bool)})
    with pytest.raises(RuntimeError, match=r"'2' has no mask.*update_mask.*FisherMask"), implicit:
        pass
    assert "forward" not in vars(model[0])
