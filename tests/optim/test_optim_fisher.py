"""The Fisher mask (sparse-sam.md section 9, property 24)."""

# ruff: noqa: NPY002  # the global numpy state is what is tested

import copy
import random

import numpy as np
import pytest
import torch
from optim_cases import batch, cross_entropy, loop_oracle, mlp
from sparse_optim import (
    SSAM,
    FisherMask,
    live_count,
)
from torch import nn
from torch.optim import SGD


@pytest.mark.parametrize("use_vmap", [True, False])
def test_property_24_fisher_equals_the_loop_and_is_additive(use_vmap):
    model = mlp(norm=True, dropout=0.5)
    x, y = batch(n=21)
    params = list(model.parameters())
    policy = FisherMask(num_samples=1000, chunk_size=4, use_vmap=use_vmap)

    def scores(a, b):
        return policy.scores(params, model, [(x[a:b], y[a:b])], cross_entropy, seed=0, update=0)

    whole, first, rest = scores(0, 21), scores(0, 8), scores(8, 21)
    for s, a, b, o in zip(whole, first, rest, loop_oracle(model, x, y), strict=True):
        torch.testing.assert_close(s.double(), o, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(a + b, s, rtol=1e-5, atol=1e-12)
        assert o.max() > 0


def test_property_24_unused_parameters_and_sample_counts():
    model = mlp()
    model.spare = nn.Parameter(torch.ones(4))
    x, y = batch(n=10)
    params = [*model.parameters(), nn.Parameter(torch.ones(3))]
    for use_vmap in (True, False):
        few = FisherMask(num_samples=3, use_vmap=use_vmap)
        batches = [(x[:2], y[:2]), (x[2:], y[2:])]
        scores = few.scores(params, model, batches, cross_entropy, seed=0, update=0)
        oracle = loop_oracle(mlp(), x[:3], y[:3])
        by_id = {id(p): s for p, s in zip(params, scores, strict=True)}
        assert not by_id[id(model.spare)].any()
        assert not scores[-1].any()
        torch.testing.assert_close(
            by_id[id(model[0].weight)].double(), oracle[0], rtol=1e-5, atol=1e-12
        )
    with pytest.raises(ValueError, match="no sample"):
        FisherMask().scores(params, model, [], cross_entropy, seed=0, update=0)
    with pytest.raises(ValueError, match="num_samples"):
        FisherMask(num_samples=0)
    with pytest.raises(ValueError, match="scalar"):
        FisherMask().scores(params, model, (x, y), lambda out, t: out, seed=0, update=0)


def test_property_24_accumulates_in_fp32_for_bf16_models():
    """4,096 equal samples: a bf16 sum would stop at 256 times the first one."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    x, y = torch.ones(4096, 1).bfloat16(), torch.zeros(4096)
    policy = FisherMask(num_samples=4096, chunk_size=1024)
    (score,) = policy.scores(
        [model.weight], model, (x, y), lambda o, t: o.square().sum(), seed=0, update=0
    )
    assert score.dtype == torch.float32
    assert score.item() == 4 * 4096


class Meddler(nn.Module):
    """Writes a buffer and draws random numbers even in eval mode."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(norm=True, dropout=0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        np.random.random()
        random.random()
        return self.inner(x + 0.0 * torch.rand(()))


@pytest.mark.parametrize("use_vmap", [True, False])
def test_property_24_fisher_leaves_everything_as_it_was(use_vmap):
    model = Meddler()
    model.inner[1].eval()  # one flag differs from the rest
    x, y = batch()
    cross_entropy(model(x), y).backward()
    model.inner[0].bias.grad = None
    params = list(model.parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in params]
    flags = [m.training for m in model.modules()]
    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    mask = FisherMask(use_vmap=use_vmap).compute(params, 0.5, model, loader, cross_entropy)
    assert mask.live == live_count(mask.numel, 0.5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[2], strict=True))
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k]), k
    for p, g in zip(params, grads, strict=True):
        assert (p.grad is None) == (g is None)
        assert g is None or torch.equal(p.grad, g)
        assert p.requires_grad
    assert [m.training for m in model.modules()] == flags


def test_fisher_selects_the_largest_scores():
    model, (x, y) = mlp(), batch()
    opt = SSAM(model.parameters(), SGD, sparsity=0.75, lr=0.1)
    opt.update_mask(model, (x, y), cross_entropy)
    scores = loop_oracle(model, x, y)
    live = torch.cat([s[m] for s, m in zip(scores, opt.mask.to_bool(), strict=True)])
    dead = torch.cat([s[~m] for s, m in zip(scores, opt.mask.to_bool(), strict=True)])
    assert live.min() >= dead.max() * (1 - 1e-5)
    assert opt.mask.live == live_count(opt.mask.numel, 0.75)


def test_train_mode_normalises_each_sample_by_itself_and_leaves_the_statistics():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2))
    x, y = torch.randn(6, 1, 5, 5), torch.randint(2, (6,))
    model.eval()
    buffers = [b.clone() for b in model.buffers()]
    params = list(model.parameters())
    scores = FisherMask(6, mode="train").scores(
        params, model, (x, y), cross_entropy, seed=0, update=0
    )
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    oracle = [torch.zeros_like(p) for p in params]
    other = copy.deepcopy(model).train()
    for i in range(6):
        loss = cross_entropy(other(x[i : i + 1]), y[i : i + 1])
        for total, g in zip(oracle, torch.autograd.grad(loss, other.parameters()), strict=True):
            total += g.square()
    for got, want in zip(scores, oracle, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-9)
    evaluated = FisherMask(6).scores(params, model, (x, y), cross_entropy, seed=0, update=0)
    assert not torch.allclose(evaluated[0], scores[0])
    with pytest.raises(ValueError, match="mode"):
        FisherMask(mode="both")
