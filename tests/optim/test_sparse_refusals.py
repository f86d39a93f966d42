"""What every sparse training method refuses, and masks of the caller's."""

import pytest
import torch
from optim_cases import batch, bits, cross_entropy, mlp
from sparse_cases import sgd
from sparse_optim import SNIP, ZOSAM, LotteryTicket, RigL
from torch import nn
from torch.optim import SGD


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
        (good[:1], "1 masks for 2 trainable"),
        ([good[0], good[1].t()], r"'2.weight'.*has shape \(9, 3\)"),
        ([good[0].float(), good[1]], "'0.weight'.*is not a bool tensor"),
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
