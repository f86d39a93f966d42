"""Weight masks around optimizers (sparse-sam.md section 9, properties 29, 30, 33, 39)."""

import doctest

import pytest
import torch
from optim_cases import assert_same_bits, batch, bits, cross_entropy, mlp, through_disk
from sparse_cases import (
    METHODS,
    OPTIMIZERS,
    begin,
    build,
    closure,
    closure_step,
    masks_of,
    plain_step,
    probe_step,
    sgd,
    train,
)
from sparse_optim import MEST, SAM, SET, MeZO, RigL
from sparse_optim.sparse_training import _scheduler
from torch import nn
from torch.optim import LBFGS, SGD, AdamW


def state_tensors(opt, p):
    return [v for v in opt.state.get(p, {}).values() if getattr(v, "shape", None) == p.shape]


def watch_forwards(model, sparse):
    """Check in every forward that dead weights are +0.0; the list of what was looked at."""
    seen = []

    def look(module, args):
        for name, p in sparse.weights.items():
            if p is module.weight:
                dead = ~masks_of(sparse)[name]
                assert not bits(p)[dead].any(), name
                seen.append(int(dead.sum()))

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(look)
    return seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_property_29_dead_weights_are_zero_in_every_forward(method, optimizer):
    model, opt, step, sparse = build(method, optimizer)
    data = batch()
    begin(sparse, data)
    seen = watch_forwards(model, sparse)
    keeps = sparse.grown_state == "keep"
    moved = []

    def after():
        for (name, m), p in zip(masks_of(sparse).items(), sparse.weights.values(), strict=True):
            assert not bits(p)[~m].any(), name
            for value in [] if keeps else state_tensors(opt, p):
                assert not value[~m].any(), name
        moved.append(sparse.mask)

    train(model, opt, step, sparse, 100, data, after)
    assert sparse.layer_live == {n: int(m.sum()) for n, m in masks_of(sparse).items()}
    assert min(seen) >= 0
    assert max(seen) > 0
    forwards = {plain_step: 1, closure_step: 2, probe_step: 4}[step]
    assert len(seen) >= 2 * 100 * (1 if method == "rigl" else forwards) - 2
    assert any(v.abs().sum() > 0 for p in sparse.weights.values() for v in state_tensors(opt, p))
    static = method in ("snip", "grasp", "lottery")
    assert all(a == moved[0] for a in moved) == static


@pytest.mark.parametrize("method", METHODS)
def test_property_39_the_loss_goes_down(method):
    model, opt, step, sparse = build(method, "sgd")
    data = batch()
    begin(sparse, data)
    losses = train(model, opt, step, sparse, 80, data)
    assert losses[-1] < 0.6 * losses[0]


class Compact(nn.Module):
    """The same network over vectors of its live weights."""

    def __init__(self, model, masks):
        super().__init__()
        self.masks = masks
        self.shell = [model]  # hidden: its parameters are not ours
        self.live = nn.ParameterDict()
        for name, p in model.named_parameters():
            own = p.detach()[masks[name]] if name in masks else p.detach().clone()
            self.live[name.replace(".", "_")] = nn.Parameter(own)

    def forward(self, x):
        full = {}
        for name, p in self.shell[0].named_parameters():
            own = self.live[name.replace(".", "_")]
            if name in self.masks:
                own = torch.zeros_like(p).masked_scatter(self.masks[name], own)
            full[name] = own
        return torch.func.functional_call(self.shell[0], full, (x,))


@pytest.mark.parametrize("make", [
    lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    lambda p: AdamW(p, lr=0.02, weight_decay=0.1),
    lambda p: LBFGS(p, lr=0.5, max_iter=3),
    lambda p: SAM(p, SGD, rho=0.3, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda p: SAM(p, SGD, rho=1.0, adaptive=True, eta=0.05, lr=0.1, momentum=0.9),
], ids=["sgd", "adamw", "lbfgs", "sam", "asam"])  # fmt: skip
def test_property_30_equals_the_compacted_network(make):
    """Norm, clipping, momentum and update; LBFGS evaluates its closure several times a step."""
    model, data = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    opt = make(model.parameters())
    sparse = SET(model, opt, 0.6, update_every=10**6, seed=4)
    masks = masks_of(sparse)
    compact = Compact(model, masks)
    small = make(compact.parameters())
    for _ in range(20):
        norms = []
        for net, o in ((model, opt), (compact, small)):
            run = closure(net, o, data)
            run()
            if net is model:
                sparse.step()
                sparse.mask_grads_()
            norms.append(nn.utils.clip_grad_norm_(net.parameters(), 0.7))
            o.step(run) if isinstance(o, (LBFGS, SAM)) else o.step()
        assert norms[0] == pytest.approx(float(norms[1]), rel=1e-6)
        for name, p in model.named_parameters():
            own = p[masks[name]] if name in masks else p
            other = compact.live[name.replace(".", "_")]
            torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-9)
    assert float(norms[0]) > 0


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "zosam"])
@pytest.mark.parametrize("method", METHODS)
def test_property_33_a_checkpoint_continues_bit_for_bit(method, optimizer):
    data = batch()
    model, opt, step, sparse = build(method, optimizer)
    begin(sparse, data)
    train(model, opt, step, sparse, 17, data)
    saved = through_disk(
        {"model": model.state_dict(), "opt": opt.state_dict(), "sparse": sparse.state_dict()}
    )
    other, opt2, _, again = build(method, optimizer, seed=8)
    again.seed = 77  # the checkpoint's counts
    other.load_state_dict(saved["model"])
    opt2.load_state_dict(saved["opt"])
    again.load_state_dict(saved["sparse"])
    assert again.mask == sparse.mask
    assert again.layer_live == sparse.layer_live
    a = train(model, opt, step, sparse, 20, data)
    b = train(other, opt2, step, again, 20, data)
    assert_same_bits(a, b)
    assert again.mask == sparse.mask
    assert (again.steps, again.updates) == (sparse.steps, sparse.updates)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())


def test_checkpoints_that_do_not_fit_are_refused():
    model = mlp()
    sparse = SET(model, sgd(model), 0.5, update_every=3)
    state, mask = sparse.state_dict(), sparse.mask
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    shape = SET(other, sgd(other), 0.5).state_dict()
    for wrong, word in (
        ({**state, "version": 0}, "version 0"),
        ({**state, "method": "RigL"}, "checkpoint of RigL"),
        ({}, "checkpoint of None"),
        ({**state, "names": ["0.weight"]}, r"layers \['0.weight'\]"),
        (shape, r"mask of '2.weight' has shape \(4, 9\)"),
    ):
        with pytest.raises(ValueError, match=word):
            sparse.load_state_dict(wrong)
    assert sparse.mask is mask


@pytest.mark.parametrize("method", METHODS)
def test_the_global_random_state_is_left_alone(method):
    data, masks = batch(), []
    for seed in (0, 123):
        model = mlp()
        opt = sgd(model)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        sparse = METHODS[method](model, opt)
        begin(sparse, data)
        train(model, opt, plain_step, sparse, 15, data)
        assert torch.equal(torch.get_rng_state(), state)
        masks.append(sparse.mask)
    assert masks[0] == masks[1]


def test_seeds_give_other_masks():
    first, second = (SET(m, sgd(m), 0.5, seed=s) for m, s in ((mlp(), 1), (mlp(), 2)))
    assert first.mask != second.mask
    assert first.layer_live == second.layer_live


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
@pytest.mark.parametrize("grown_state", ["zero", "keep"])
def test_grown_weights_start_anew_or_keep_their_state(grown_state, optimizer):
    """Trap 23: the value of grown weights, and of their momentum."""
    model, data = mlp(), batch()
    opt = sgd(model)
    if optimizer == "sam":
        opt = SAM(model.parameters(), SGD, rho=0.1, lr=0.1, momentum=0.9)
    step = plain_step if optimizer == "sgd" else closure_step
    sparse = SET(model, opt, 0.5, drop_fraction=1.0, update_every=8, grown_state=grown_state)
    train(model, opt, step, sparse, 7, data)
    state = {p: opt.state[p]["momentum_buffer"].clone() for p in sparse.weights.values()}
    assert sparse.update_due
    sparse.step()
    for p, m in zip(sparse.weights.values(), sparse.mask.to_bool(), strict=True):
        assert m.any()
        assert not bits(p).any()
        now = opt.state[p]["momentum_buffer"]
        assert state[p].any()
        assert torch.equal(now, state[p]) if grown_state == "keep" else not bits(now).any()


def test_detach_lets_the_weights_grow_again():
    for optimizer in OPTIMIZERS:
        model, opt, step, sparse = build("set", optimizer)
        data = batch()
        train(model, opt, step, sparse, 2, data)
        dead = {n: ~m for n, m in masks_of(sparse).items()}
        sparse.detach()
        closure(model, opt, data)()
        step(model, opt, data)
        for name, p in sparse.weights.items():
            assert p.detach()[dead[name]].any(), optimizer


def test_mezo_is_told_the_mask():
    model, (x, y) = mlp(), batch()
    opt = MeZO(model.parameters(), lr=0.05, smoothing=1e-2, seed=3)
    sparse = SET(model, opt, 0.5, update_every=4, seed=1)
    seen = watch_forwards(model, sparse)
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(12):
        assert sparse.step() is False
        opt.step(lambda: cross_entropy(model(x), y))
    assert len(seen) == 2 * 2 * 12
    assert opt.num_active == sparse.mask.live + 12
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


def test_epochs_may_be_counted_instead_of_steps():
    model, data = mlp(), batch()
    opt = sgd(model)
    sparse = MEST(model, opt, 0.5, first_dense=False, update_every=5, lower=[(0, 0.7), (5, 0.5)])
    changes = []
    for epoch in range(11):
        old = sparse.mask
        sparse.step()  # at the start of the epoch
        if sparse.mask != old:
            changes.append(epoch)
        for _ in range(3):
            closure(model, opt, data)()
            opt.step()
    assert changes == [0]
    assert sparse.updates == 3


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_16_bit_weights(short):
    model = mlp(dtype=short)
    opt = sgd(model)
    x, y = batch()
    sparse = RigL(model, opt, 0.6, update_every=3, stop_at=20)
    losses = train(model, opt, plain_step, sparse, 20, (x.to(short), y))
    assert losses[-1] < losses[0]
    for p, m in zip(sparse.weights.values(), sparse.mask.to_bool(), strict=True):
        assert not bits(p)[~m].any()


def test_docstring_example():
    assert doctest.testmod(_scheduler, extraglobs={"torch": torch}).failed == 0
