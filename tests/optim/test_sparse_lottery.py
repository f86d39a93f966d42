"""Lottery tickets (sparse-sam.md section 5, property 31)."""

import doctest

import pytest
import torch
from optim_cases import assert_same_bits, batch, bits, mlp, sorted_oracle, through_disk
from sparse_cases import closure, flat, masks_of, plain_step, sgd, train
from sparse_optim import LotteryTicket, live_count
from sparse_optim.sparse_training import _lottery
from torch import nn
from torch.optim import Adam


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
        train(model, opt, plain_step, ticket, 4, data)
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
    train(model, opt, plain_step, ticket, 5, data)
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
    train(model, opt, plain_step, ticket, 5, data)
    ticket.prune()
    train(model, opt, plain_step, ticket, 3, data)
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
        train(m, o, plain_step, t, 3, data)
        t.prune()
        train(m, o, plain_step, t, 3, data)
    assert again.mask == ticket.mask
    for p, q in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert_same_bits(p, q)
    wider = nn.Sequential(*mlp(norm=True), nn.Linear(3, 3, bias=False))
    foreign = LotteryTicket(wider, sgd(wider), dense_layers=["4"])
    with pytest.raises(ValueError, match=r"'4.weight' is in one model only"):
        foreign.load_state_dict(ticket.state_dict())


def test_docstring_examples():
    assert doctest.testmod(_lottery, extraglobs={"torch": torch}).failed == 0
