"""Masks and mask policies (sparse-sam.md section 9, properties 17, 18, 24, 25, 26)."""

# the global numpy state is what is tested

import numpy as np
import pytest
import torch
from optim_cases import batch, cross_entropy, mlp, sorted_oracle
from sparse_optim import (
    SSAM,
    BitMask,
    FisherMask,
    MagnitudeMask,
    Pattern,
    RandomMask,
    SmallMagnitudeMask,
    live_count,
    select_top,
)
from torch import nn
from torch.optim import SGD


@pytest.mark.parametrize("sparsity", [0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1])
@pytest.mark.parametrize("numel", [1, 7, 1000])
def test_property_17_exact_live_counts(numel, sparsity):
    k = numel - int(np.floor(np.float64(numel) * sparsity + 0.5))
    assert live_count(numel, sparsity) == k
    params = [torch.randn(numel // 3), torch.randn(numel - numel // 3)]
    for policy in (RandomMask(), MagnitudeMask(), SmallMagnitudeMask()):
        mask = policy.compute(params, sparsity)
        assert mask.live == k
        assert mask.numel == numel
        assert sum(int(m.sum()) for m in mask.to_bool()) == k


def test_property_17_large_counts_and_parity_rules():
    assert live_count(11173962, 0.9) == 11173962 - 10056566
    assert live_count(1000, 0.9, "trunc") == 99
    assert live_count(1000, 0.8, "trunc") == 199
    assert live_count(1001, 0.5, "ceil") == 500
    assert live_count(1001, 0.5) == 500
    assert live_count(11173962, 1) == 0
    with pytest.raises(ValueError, match="sparsity"):
        live_count(10, 1.5)
    with pytest.raises(ValueError, match="count_rule"):
        FisherMask(count_rule="up")


@pytest.mark.parametrize("kind", ["random", "constant", "few", "special", "wide", "half"])
def test_property_18_order_of_selection(kind):
    n = 501
    scores = {
        "random": torch.randn(n),
        "constant": torch.full((n,), 2.5),
        "few": torch.randint(-2, 3, (n,)).float(),
        "special": torch.randn(n),
        "wide": torch.randn(n, dtype=torch.float64) * 1e-310,
        "half": torch.randn(n).bfloat16(),
    }[kind]
    if kind == "special":
        special = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, -1e-45]
        scores[torch.randperm(n)[:210]] = torch.tensor(special * 30)
        scores[-1] = -torch.tensor(float("nan"))
    parts = [scores[:200].reshape(20, 10), scores[200:]]
    for k in (0, 1, 7, 250, n - 1, n):
        got = torch.cat([m.reshape(-1) for m in select_top(parts, k)])
        assert torch.equal(got, sorted_oracle(parts, k)), k


def test_property_18_constant_scores_select_the_first_indices():
    first, second = select_top([torch.zeros(4), -torch.zeros(4)], 5)
    assert first.all()
    assert second.tolist() == [True, False, False, False]


def test_property_23_random_masks_ignore_the_global_stream():
    params = [torch.zeros(37), torch.zeros(5, 9)]
    a = RandomMask().compute(params, 0.7, seed=5, update=2)
    torch.manual_seed(99)
    torch.randn(100)
    state = torch.get_rng_state()
    assert RandomMask().compute(params, 0.7, seed=5, update=2) == a
    assert torch.equal(torch.get_rng_state(), state)
    assert RandomMask().compute(params, 0.7, seed=5, update=3) != a
    assert RandomMask().compute(params, 0.7, seed=6, update=2) != a
    together = RandomMask().compute([torch.zeros(82)], 0.7, seed=5, update=2)
    split = torch.cat([m.reshape(-1) for m in a.to_bool()])
    assert torch.equal(together.to_bool()[0], split)  # keyed by global index


def test_property_23_random_masks_are_uniform():
    """Live counts of the halves over 400 masks: mean within 5 standard errors of k / 2."""
    counts = [
        RandomMask().compute([torch.zeros(100)], 0.8, update=u).to_bool()[0][:50].sum()
        for u in range(400)
    ]
    variance = 20 * 0.25 * 80 / 99  # hypergeometric
    assert abs(np.mean(counts) - 10) < 5 * (variance / 400) ** 0.5
    assert np.var(counts) > variance / 2


@pytest.mark.parametrize("shape", [(), (0,), (1,), (31,), (32,), (33,), (4, 5, 7)])
def test_property_25_packing(shape):
    mask = torch.rand(shape) < 0.5
    packed = BitMask.from_bool([mask])
    assert torch.equal(packed.to_bool()[0], mask)
    assert BitMask.from_bool(packed.to_bool()) == packed
    assert packed.live == int(mask.sum())
    bits = sum(bin(w & 0xFFFFFFFF).count("1") for w in packed.words[0].tolist())
    assert bits == packed.live  # padding bits are 0
    again = BitMask.from_state(packed.state(), [torch.device("cpu")])
    assert again == packed
    other = torch.rand(shape) < 0.5
    both = BitMask.from_bool([other])
    assert torch.equal((packed & both).to_bool()[0], mask & other)
    assert torch.equal((packed | both).to_bool()[0], mask | other)


def test_property_25_a_mask_does_not_depend_on_memory_format():
    mask = torch.rand(2, 3, 4, 5) < 0.5
    strided = mask.contiguous(memory_format=torch.channels_last)
    assert BitMask.from_bool([mask]) == BitMask.from_bool([strided])


def test_property_26_updates_act_between_steps_and_are_never_guessed():
    model, (x, y) = mlp(), batch()
    opt = SSAM(model.parameters(), SGD, sparsity=0.5, lr=0.1)
    cross_entropy(model(x), y).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="no mask yet"):
        opt.first_step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    opt.update_mask(model, (x, y), cross_entropy)
    old = opt.mask
    with pytest.raises(ValueError, match="FisherMask needs"):
        opt.update_mask()
    assert opt.mask is old
    opt.first_step()
    for call in (lambda: opt.update_mask(model, (x, y), cross_entropy), lambda: opt.set_masks([])):
        with pytest.raises(RuntimeError, match="perturbed"):
            call()
    opt.restore()
    moved = opt.mask.to_bool()
    opt.first_step()
    for p, b, m in zip(model.parameters(), before, moved, strict=True):
        assert torch.equal(p.detach()[~m], b[~m])
    opt.restore()
    opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": 0.2})
    opt.param_groups[1]["params"][0].grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"param_groups\[1\]\['params'\]\[0\].*no mask"):
        opt.first_step()


def test_random_policy_has_its_mask_at_once_and_the_seed_counts():
    a, b, c = (SSAM(mlp().parameters(), SGD, mask=RandomMask(), seed=s, lr=0.1) for s in (1, 1, 2))
    assert a.mask == b.mask
    assert a.mask != c.mask
    old = a.mask
    a.update_mask()
    assert a.mask != old
    a.sparsity = 0.9
    a.update_mask()
    assert a.mask.live == live_count(a.mask.numel, 0.9)


def test_bad_masks_are_refused_by_name():
    model = mlp()
    opt = SSAM(model.named_parameters(), SGD, lr=0.1)
    good = [torch.ones(p.shape, dtype=torch.bool) for p in model.parameters()]
    opt.set_masks(good)
    old = opt.mask
    with pytest.raises(ValueError, match="3 masks for 4"):
        opt.set_masks(good[:3])
    with pytest.raises(ValueError, match=r"'0.bias'.*not a bool"):
        opt.set_masks([good[0], good[1].float(), *good[2:]])
    with pytest.raises(ValueError, match=r"'2.weight'.*shape"):
        opt.set_masks([*good[:2], good[2].t(), good[3]])
    assert opt.mask is old
    for options, word in (
        ({"sparsity": 1.2}, "sparsity"),
        ({"norm": "other"}, "norm"),
        ({"mask": good}, "policy"),
        ({"rho": -1.0}, "rho"),
        ({"eps": float("nan")}, "eps"),
        ({"seed": -1}, "seed"),
        ({"backend": "gpu"}, "backend"),
        ({"bn_modules": [1]}, "bn_modules"),
        ({"closure_calls": 3}, "closure_calls"),
    ):
        with pytest.raises(ValueError, match=word):
            SSAM(model.parameters(), SGD, **options, lr=0.1)
    with pytest.raises(ValueError, match="base_optimizer_cls"):
        SSAM(model.parameters(), SGD(model.parameters(), lr=0.1), lr=0.1)
    with pytest.raises(ValueError, match="empty parameter list"):
        SSAM([], SGD, lr=0.1)


def test_sparse_and_complex_gradients_are_refused():
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    before = table.weight.detach().clone()
    opt = SSAM(table.parameters(), SGD, mask=RandomMask(), lr=0.1)
    with pytest.raises(RuntimeError, match="layout"):
        opt.first_step()
    assert torch.equal(table.weight, before)


@pytest.mark.parametrize("per_layer", [False, True])
def test_small_magnitudes_are_the_first_of_the_order(per_layer):
    params = [torch.randn(40, 5), torch.randn(33) * 0.1, torch.zeros(8), torch.randn(3).bfloat16()]
    params[0][3] = torch.tensor([0.0, -0.0, 1e-40, float("-1e30"), 1.0])
    before = [p.clone() for p in params]
    pattern = Pattern(per_layer=per_layer)
    masks = SmallMagnitudeMask().compute(params, 0.7, pattern=pattern).to_bool()
    parts = [[i] for i in range(4)] if per_layer else [list(range(4))]
    for part in parts:
        sizes = torch.cat([params[i].double().abs().flatten() for i in part])
        chosen = torch.cat([masks[i].flatten() for i in part])
        order = sizes.argsort(stable=True)  # ties: the first in order
        k = live_count(len(sizes), 0.7)
        assert chosen[order[:k]].all()
        assert not chosen[order[k:]].any()
    assert all(torch.equal(b, p) for b, p in zip(before, params, strict=True))
    with pytest.raises(ValueError, match="takes no data"):
        SmallMagnitudeMask().compute(params, 0.7, "data")


def test_small_and_large_magnitudes_share_no_entry():
    params = [torch.randn(50, 7), torch.randn(31)]
    small = SmallMagnitudeMask().compute(params, 0.25)
    large = MagnitudeMask().compute(params, 0.75)
    assert (small & large).live == 0
    assert small.live + large.live == 381
    with pytest.raises(ValueError, match="not finite"):
        SmallMagnitudeMask().compute([torch.tensor([1.0, float("nan")])], 0.5)
