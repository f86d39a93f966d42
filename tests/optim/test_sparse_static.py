"""SNIP and GraSP (sparse-sam.md section 5, property 31)."""

import doctest

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    batch,
    cross_entropy,
    mlp,
    sorted_oracle,
)
from sparse_cases import flat, masks_of, sgd
from sparse_optim import (
    SNIP,
    GraSP,
    class_balanced,
    live_count,
)
from sparse_optim.sparse_training import static
from torch import nn

SPARSITIES = [0.0, 0.25, 0.5, 0.9, 1.0]


def smooth(dtype=torch.float64, dropout=0.0):
    """A model with second derivatives, normalisation and dropout."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    ).to(dtype)


def everything(model):
    """Parameters, buffers, gradients, flags and the global random state."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return state, grads, [m.training for m in model.modules()], torch.get_rng_state()


def assert_untouched(model, before, weights=()):
    state, grads, flags, rng = before
    for name, value in model.state_dict().items():
        if name not in weights:
            assert torch.equal(value, state[name]), name
    for p, g in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None) == (g is None)
        assert g is None or torch.equal(p.grad, g)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), rng)


# -- SNIP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_property_31_snip_selects_as_the_oracle(backend, sparsity):
    model = mlp()
    sparse = SNIP(model, sgd(model), sparsity, backend=backend)
    with torch.no_grad():
        for p in sparse.weights.values():
            p.copy_(torch.randint(-3, 4, p.shape))
    old = {n: p.detach().clone() for n, p in sparse.weights.items()}
    grads = [torch.randint(-3, 4, p.shape).float() for p in old.values()]
    sparse.prune(grads=grads)
    scores = [(w * g).abs() for w, g in zip(old.values(), grads, strict=True)]
    k = live_count(81, sparsity)
    wanted = sorted_oracle(scores, k)
    assert torch.equal(flat(sparse.mask.to_bool()), wanted)
    assert sparse.mask.live == k == sum(sparse.layer_live.values())
    assert sparse.layer_live == {n: int(m.sum()) for n, m in masks_of(sparse).items()}
    for name, m in masks_of(sparse).items():
        assert_same_bits(sparse.weights[name].detach(), torch.where(m, old[name], 0.0))


def test_property_31_snip_score_is_the_derivative_by_a_connection():
    """abs(dL/dc) at c = 1 for w -> c w, taken by autograd on c itself."""
    model, (x, y) = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    sparse = SNIP(model, sgd(model), 0.7)
    ones = {n: torch.ones_like(p, requires_grad=True) for n, p in sparse.weights.items()}
    scaled = {n: ones[n] * p.detach() for n, p in sparse.weights.items()}
    loss = cross_entropy(torch.func.functional_call(model, scaled, (x,)), y)
    scores = [g.abs() for g in torch.autograd.grad(loss, list(ones.values()))]
    sparse.prune(cross_entropy, x, y)
    assert torch.equal(flat(sparse.mask.to_bool()), sorted_oracle(scores, live_count(81, 0.7)))


@pytest.mark.parametrize("method", [SNIP, GraSP])
def test_scoring_leaves_no_trace(method):
    model, (x, y) = smooth(dropout=0.5), batch(dtype=torch.float64)
    model[2].eval()  # one flag differs; the normalisation trains
    cross_entropy(model(x), y).backward()
    model[4].bias.grad = None
    sparse = method(model, sgd(model), 0.5)
    before = everything(model)
    if method is SNIP:
        sparse.prune(cross_entropy, x, y)
    else:
        sparse.prune((x, y))
    assert sparse.mask.live == live_count(sparse.mask.numel, 0.5)
    assert_untouched(model, before, weights=sparse.weights)


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_snip_scores_16_bit_weights_in_float32(short):
    model = mlp(dtype=short)
    sparse = SNIP(model, sgd(model), 0.6)
    grads = [(torch.randn(p.shape) * 1e-4).to(short) for p in sparse.weights.values()]
    scores = [
        (p.detach().float() * g.float()).abs()
        for p, g in zip(sparse.weights.values(), grads, strict=True)
    ]
    sparse.prune(grads=grads)
    assert torch.equal(flat(sparse.mask.to_bool()), sorted_oracle(scores, live_count(81, 0.6)))


def test_snip_refuses_bad_input_and_keeps_mask_and_weights():
    model, (x, y) = mlp(), batch()
    sparse = SNIP(model, sgd(model), 0.5)
    old = [p.detach().clone() for p in model.parameters()]
    mask = sparse.mask
    good = [torch.ones(p.shape) for p in sparse.weights.values()]
    bad = [good[0], good[1] * float("nan")]
    with pytest.raises(RuntimeError, match=r"gradient of '2.weight' is not finite"):
        sparse.prune(grads=bad)
    with pytest.raises(RuntimeError, match=r"gradient of '0.weight' is not finite"):
        sparse.prune(cross_entropy, x * float("inf"), y)
    with pytest.raises(RuntimeError, match="no gradient"):
        sparse.prune(grads=[None, None])
    for call, word in (
        (lambda: sparse.prune(), "loss_fn"),
        (lambda: sparse.prune(cross_entropy, x, y, grads=good), "loss_fn"),
        (lambda: sparse.prune(grads=good[:1]), "1 gradients for 2"),
        (lambda: sparse.prune(grads=[good[0], good[1].t()]), r"'2.weight' has shape \(9, 3\)"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
    assert sparse.mask is mask
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), old, strict=True))


# -- GraSP --------------------------------------------------------------------------------------


def finite_difference_scores(model, weights, halves, temperature):
    """-w (H g) in float64: central differences of the gradient along g, half by half."""

    def gradient(parts):
        total = [torch.zeros_like(w) for w in weights]
        for x, y in parts:
            loss = cross_entropy(model(x) / temperature, y)
            for t, g in zip(total, torch.autograd.grad(loss, weights), strict=True):
                t += g
        return total

    g = gradient(halves)
    start = [w.detach().clone() for w in weights]
    step = 1e-4 / float(flat(g).norm())
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, s, d in zip(weights, start, g, strict=True):
                w.copy_(s + sign * step * d)
        sides.append(gradient(halves))
    with torch.no_grad():
        for w, s in zip(weights, start, strict=True):
            w.copy_(s)
    return [-s * (a - b) / (2 * step) for s, a, b in zip(start, *sides, strict=True)]


@pytest.mark.parametrize("n", [16, 9, 1])
def test_property_31_grasp_score_is_w_h_g(n):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = batch(n=n, dtype=torch.float64)
    sparse = GraSP(model, sgd(model), 0.5, temperature=2.0)
    halves = [(x[: n // 2], y[: n // 2]), (x[n // 2 :], y[n // 2 :])]
    halves = [h for h in halves if len(h[0])]
    params = list(sparse.weights.values())
    wanted = finite_difference_scores(model, params, halves, 2.0)
    for got, want in zip(sparse.scores((x, y)), wanted, strict=True):
        assert float((got - want).norm() / want.norm()) < 1e-3
    if n == 9:  # unequal halves: not the gradient of the whole batch
        whole = finite_difference_scores(model, params, [(x, y)], 2.0)
        assert float((sparse.scores((x, y))[0] - whole[0]).norm() / whole[0].norm()) > 0.1
    split = [h for h in ((x[:4], y[:4]), (x[4:], y[4:])) if len(h[0])]
    assert [s.shape for s in sparse.scores(split)] == [p.shape for p in params]


class InjectedGraSP(GraSP):
    def scores(self, samples, logits_fn=None):
        return samples


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_property_31_grasp_removes_the_largest(sparsity):
    model = mlp()
    sparse = InjectedGraSP(model, sgd(model), sparsity)
    scores = [torch.randint(-2, 3, p.shape).float() for p in sparse.weights.values()]
    sparse.prune(scores)
    k = live_count(81, sparsity)
    wanted = sorted_oracle([-s for s in scores], k)  # ties too: exactly k
    assert torch.equal(flat(sparse.mask.to_bool()), wanted)
    with pytest.raises(RuntimeError, match=r"score of '2.weight' is not finite"):
        sparse.prune([scores[0], scores[1] / 0.0])
    assert torch.equal(flat(sparse.mask.to_bool()), wanted)


def test_grasp_takes_the_temperature_and_a_function_of_the_logits():
    model, data = smooth(), batch(dtype=torch.float64)
    cold = GraSP(model, sgd(model), 0.5, temperature=1.0).scores(data)
    warm = GraSP(model, sgd(model), 0.5).scores(data)
    assert not torch.allclose(cold[0] / cold[0].norm(), warm[0] / warm[0].norm(), rtol=1e-3)
    same = GraSP(model, sgd(model), 0.5).scores([data], lambda x: model(x) * 1.0)
    assert torch.equal(same[0], warm[0])
    with pytest.raises(ValueError, match="temperature"):
        GraSP(model, sgd(model), 0.5, temperature=0.0)
    with pytest.raises(ValueError, match="no sample"):
        GraSP(model, sgd(model), 0.5).prune([])


def test_grasp_goes_through_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
    sparse = GraSP(model, sgd(model), 0.5, temperature=1.0)
    sparse.prune((torch.randn(12, 4, 8), torch.arange(12) % 3))
    assert sparse.mask.live == live_count(sparse.mask.numel, 0.5)


def test_class_balanced_batches():
    y = torch.tensor([0, 0, 2, 1, 0, 2, 2, 1, 1, 0])
    x = torch.arange(10.0).reshape(10, 1)
    got_x, got_y = class_balanced([(x[:6], y[:6]), (x[6:], y[6:])], per_class=2, num_classes=3)
    assert got_y.tolist() == [0, 1, 2, 0, 1, 2]
    assert got_x.reshape(-1).tolist() == [0, 3, 2, 1, 7, 5]
    with pytest.raises(ValueError, match=r"fewer than 4 samples of the classes \{1: 3, 2: 3\}"):
        class_balanced((x, y), per_class=4, num_classes=3)


def test_docstring_examples():
    assert doctest.testmod(static, extraglobs={"torch": torch}).failed == 0
