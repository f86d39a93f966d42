"""SNIP, GraSP and lottery tickets (sparse-sam.md section 5, property 31)."""

import doctest

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    batch,
    bits,
    cross_entropy,
    mlp,
    sorted_oracle,
    through_disk,
)
from sparse_cases import closure, masks_of, train
from sparse_optim import (
    SNIP,
    ZOSAM,
    GraSP,
    LotteryTicket,
    RigL,
    class_balanced,
    live_count,
)
from sparse_optim.sparse_training import _lottery, static
from torch import nn
from torch.optim import SGD, Adam

SPARSITIES = [0.0, 0.25, 0.5, 0.9, 1.0]


def sgd(model):
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


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
    model[1].eval()
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


# -- lottery tickets ----------------------------------------------------------------------------


@pytest.mark.parametrize("rewind_steps", [0, 3])
def test_property_31_tickets_rewind_bit_for_bit(rewind_steps):
    model, data = mlp(norm=True), batch()
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    opt = sgd(model)
    ticket = LotteryTicket(model, opt, 0.3, rewind_steps=rewind_steps)
    point = None
    for step in range(9):
        if step == rewind_steps:
            point = {k: v.clone() for k, v in model.state_dict().items()}
        closure(model, opt, data)()
        if step == rewind_steps > 0:  # this forward advanced the statistics before the call
            point |= {k: v.clone() for k, v in model.named_buffers()}
        assert ticket.step() is False
        opt.step()
    k = 81
    for level in (1, 2):
        before = masks_of(ticket)
        scores = [
            p.detach().abs().masked_fill(~m, -1.0)
            for p, m in zip(ticket.weights.values(), before.values(), strict=True)
        ]
        k = live_count(k, 0.3)
        wanted = sorted_oracle(scores, k)
        assert any(not torch.equal(v, point[n]) for n, v in model.state_dict().items())
        ticket.prune()
        assert torch.equal(flat(ticket.mask.to_bool()), wanted)
        assert ticket.mask.live == k == sum(ticket.layer_live.values())
        assert ticket.level == level
        assert ticket.steps == rewind_steps
        assert not opt.state
        masks = masks_of(ticket)
        for name, value in model.state_dict().items():
            if name in masks:
                m = masks[name]
                assert torch.equal(bits(value)[m], bits(point[name])[m])
                assert not bits(value)[~m].any()
            else:
                assert torch.equal(value, point[name])
        train(model, opt, lambda m, o, d: o.step(), ticket, 4, data)
        for p, m in zip(ticket.weights.values(), ticket.mask.to_bool(), strict=True):
            assert not bits(p)[~m].any()


def test_eleven_levels_of_a_fifth_are_ninety_percent():
    model = nn.Linear(100, 100)
    ticket = LotteryTicket(model, sgd(model))
    live = []
    for _ in range(11):
        ticket.prune()
        live.append(ticket.mask.live)
    assert live[0] == 8000
    assert live[9] > 1000 > live[10]
    assert all(abs(k - 10000 * 0.8 ** (i + 1)) < 3 for i, k in enumerate(live))


def test_learning_rate_rewinding_keeps_the_weights():
    model, data = mlp(norm=True), batch()
    opt = Adam(model.parameters(), lr=0.1)
    ticket = LotteryTicket(model, opt, 0.3, rewind_steps=None)
    train(model, opt, lambda m, o, d: o.step(), ticket, 5, data)
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    ticket.prune()
    masks = masks_of(ticket)
    for name, value in model.state_dict().items():
        m = masks.get(name, torch.ones(value.shape, dtype=torch.bool))
        assert torch.equal(value, torch.where(m, trained[name], torch.zeros_like(value)))
    assert not opt.state


def test_tickets_refuse_to_prune_before_the_rewind_point_and_resume():
    model, data = mlp(norm=True), batch()
    opt = sgd(model)
    ticket = LotteryTicket(model, opt, 0.3, rewind_steps=2)
    with pytest.raises(RuntimeError, match="0 steps, the rewind point is after 2"):
        ticket.prune()
    assert ticket.mask.live == 81
    train(model, opt, lambda m, o, d: o.step(), ticket, 5, data)
    ticket.prune()
    train(model, opt, lambda m, o, d: o.step(), ticket, 3, data)
    saved = through_disk(
        {"model": model.state_dict(), "opt": opt.state_dict(), "sparse": ticket.state_dict()}
    )
    other = mlp(seed=7, norm=True)
    opt2 = sgd(other)
    again = LotteryTicket(other, opt2, 0.3, rewind_steps=2)
    other.load_state_dict(saved["model"])
    opt2.load_state_dict(saved["opt"])
    again.load_state_dict(saved["sparse"])
    for m, o, t in ((model, opt, ticket), (other, opt2, again)):
        train(m, o, lambda m, o, d: o.step(), t, 3, data)
        t.prune()
        train(m, o, lambda m, o, d: o.step(), t, 3, data)
    assert again.mask == ticket.mask
    for p, q in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert_same_bits(p, q)
    wider = nn.Sequential(*mlp(norm=True), nn.Linear(3, 3, bias=False))
    foreign = LotteryTicket(wider, sgd(wider), dense_layers=["4"])
    with pytest.raises(ValueError, match=r"'4.weight' is in one model only"):
        foreign.load_state_dict(ticket.state_dict())


# -- what all methods refuse --------------------------------------------------------------------


def test_bad_input_is_refused_by_name():
    model = mlp()
    opt = sgd(model)
    for make, word in (
        (lambda: SNIP(model, opt, 1.2), "sparsity"),
        (lambda: SNIP(model, opt, -0.1), "sparsity"),
        (lambda: SNIP(model, opt, 0.5, dense_layers=["5"]), "dense_layers.*'5'"),
        (lambda: SNIP(model, opt, 0.5, dense_layers=["0", "2"]), "no maskable layer"),
        (lambda: SNIP(nn.BatchNorm1d(3), opt, 0.5), "no maskable layer"),
        (lambda: SNIP(mlp(), opt, 0.5), r"optimizer: it does not train '0.weight'"),
        (lambda: SNIP(model, opt, 0.5, grown_state="other"), "grown_state"),
        (lambda: SNIP(model, opt, 0.5, seed=-1), "seed"),
        (lambda: SNIP(model, opt, 0.5, backend="gpu"), "backend"),
        (lambda: LotteryTicket(model, opt, 1.5), "prune_fraction"),
        (lambda: LotteryTicket(model, opt, rewind_steps=-1), "rewind_steps"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_masks_of_the_caller():
    model = mlp()
    sparse = SNIP(model, sgd(model), 0.5)
    good = [torch.rand(p.shape) < 0.5 for p in sparse.weights.values()]
    sparse.set_masks(good)
    mask = sparse.mask
    assert sparse.layer_live == {n: int(m.sum()) for n, m in zip(sparse.weights, good, strict=True)}
    for p, m in zip(sparse.weights.values(), good, strict=True):
        assert not bits(p)[~m].any()
        assert p.detach()[m].all()
    for wrong, word in (
        (good[:1], "1 masks for 2"),
        ([good[0], good[1].t()], r"'2.weight' has shape \(9, 3\)"),
        ([good[0].float(), good[1]], "'0.weight' is not a bool tensor"),
        ({"0.weight": good[0]}, "'2.weight' is not in both"),
    ):
        with pytest.raises(ValueError, match=word):
            sparse.set_masks(wrong)
    assert sparse.mask is mask
    sparse.set_masks(dict(zip(sparse.weights, good, strict=True)))
    sparse.set_masks(mask)
    assert sparse.mask == mask


def test_masks_change_in_the_idle_phase_only():
    model, (x, y) = mlp(), batch()
    opt = ZOSAM(model.parameters(), SGD, rho=0.05, lr=0.1)
    sparse = SNIP(model, opt, 0.5)
    ticket = LotteryTicket(model, opt)
    moving = RigL(model, opt, 0.5, update_every=1, stop_at=9)
    mask = moving.mask
    cross_entropy(model(x), y).backward()
    opt.probe(lambda: cross_entropy(model(x), y))
    calls = (
        sparse.step,
        moving.step,
        ticket.step,
        ticket.prune,
        lambda: sparse.prune(cross_entropy, x, y),
        lambda: moving.set_masks(mask),
        lambda: moving.load_state_dict(moving.state_dict()),
    )
    perturbed = [p.detach().clone() for p in model.parameters()]
    for call in calls:
        with pytest.raises(RuntimeError, match="perturbed"):
            call()
    assert moving.mask is mask
    assert moving.steps == 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), perturbed, strict=True))
    opt.restore()
    assert moving.step() is True


@pytest.mark.parametrize("module", [static, _lottery])
def test_docstring_examples(module):
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
