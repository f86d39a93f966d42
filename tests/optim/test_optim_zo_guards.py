"""What goes wrong in the middle: nested calls, conversions, checkpoints that do not fit."""

import math

import pytest
import torch
from optim_cases import assert_same_bits, batch, bits, cross_entropy, mlp, through_disk
from sparse_optim import SSAM, ZOSAM, MeZO, Phase
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR


@pytest.mark.parametrize("what", ["restore", "step"])
def test_a_loss_closure_cannot_end_its_own_probe(backend, what):
    model = mlp()
    opt = ZOSAM(model.parameters(), SGD, 0.3, seed=1, lr=0.1, momentum=0.9, backend=backend)
    before = [bits(p) for p in model.parameters()]
    with pytest.raises(RuntimeError, match="own loss closure"):
        opt.probe(getattr(opt, what))
    assert opt.phase is Phase.IDLE
    assert not opt.state
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(bits(p), b)


@pytest.mark.parametrize("what", ["step", "sign_check", "load", "mask"])
def test_a_loss_closure_of_mezo_cannot_change_the_step(backend, what):
    p = nn.Parameter(torch.randn(30))
    opt = MeZO([p], 0.0, seed=1, backend=backend)
    state, before = opt.state_dict(), bits(p)
    calls = {
        "step": lambda: opt.step(lambda: 0.0),
        "sign_check": lambda: opt.sign_check(lambda: p.sum()),
        "load": lambda: opt.load_state_dict(state),
        "mask": lambda: opt.set_weight_mask(None),
    }
    with pytest.raises(RuntimeError, match="own loss closure"):
        opt.step(calls[what])
    assert torch.equal(bits(p), before)
    opt.step(lambda: 0.0)


def test_a_log_that_fails_leaves_the_weights(monkeypatch):
    p = nn.Parameter(torch.randn(30))
    opt = ZOSAM([p], SGD, 0.3, seed=1, lr=0.1, replay_log=True)
    before = bits(p)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(opt.replay_log, "record", full)
    with pytest.raises(MemoryError):
        opt.probe(lambda: 1.0)
    assert torch.equal(bits(p), before)
    assert opt.phase is Phase.IDLE


@pytest.mark.parametrize("cls", [ZOSAM, MeZO])
def test_an_exception_gives_the_random_state_back(cls):
    p = nn.Parameter(torch.randn(30))
    opt = cls([p], SGD, seed=1, lr=0.1) if cls is ZOSAM else MeZO([p], 0.1, seed=1)

    def loss():
        torch.rand(())
        raise KeyError

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        (opt.probe if cls is ZOSAM else opt.step)(loss)
    assert torch.equal(torch.get_rng_state(), before)


def test_sign_check_after_an_exception_leaves_nothing_behind():
    model = mlp(norm=True)
    x, y = batch()
    opt = ZOSAM(model.parameters(), SGD, 0.0, seed=1, lr=0.1, bn_modules=model)
    active = ZOSAM(model.parameters(), SGD, 0.1, seed=1, lr=0.1, bn_modules=model)

    def loss():
        cross_entropy(model(x), y)
        raise KeyError

    with pytest.raises(KeyError):
        active.sign_check(loss)
    for _ in range(2):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
        active.step()
    assert int(model[1].num_batches_tracked) == 2
    for bad in (lambda: 1.0, lambda: model(x), lambda: cross_entropy(model(x), y).detach()):
        with pytest.raises(ValueError, match=r"scalar|autograd"):
            active.sign_check(bad)


def test_sign_check_keeps_bits_in_the_replay_mode():
    p = nn.Parameter(torch.randn(300))
    opt = MeZO([p], 0.1, seed=1, restore="replay")
    before = bits(p)
    assert opt.sign_check(lambda: p.sum(), 30) == 1.0
    assert torch.equal(bits(p), before)


@pytest.mark.parametrize("cls", [ZOSAM, MeZO, SSAM])
def test_packed_copies_follow_a_conversion(backend, cls):
    model = mlp()
    x, y = batch()
    masks = [torch.arange(p.numel()).reshape(p.shape) % 5 == 0 for p in model.parameters()]
    if cls is MeZO:
        opt = MeZO(model.parameters(), 0.0, 1, 0.1, seed=1, weight_mask=masks, backend=backend)
    elif cls is ZOSAM:
        opt = ZOSAM(model.parameters(), SGD, 0.3, seed=1, lr=0.0, backend=backend)
        opt.set_masks(masks)
    else:
        opt = SSAM(model.parameters(), SGD, rho=0.3, lr=0.0, backend=backend)
        opt.set_masks(masks)
    for ptype in (torch.float32, torch.bfloat16, torch.float32):
        model.to(ptype)
        opt.zero_grad()
        before = [bits(p) for p in model.parameters()]
        if cls is MeZO:
            opt.step(lambda t=ptype: cross_entropy(model(x.to(t)).float(), y))
        elif cls is ZOSAM:
            opt.probe(lambda t=ptype: cross_entropy(model(x.to(t)).float(), y))
            opt.restore()
        else:
            cross_entropy(model(x.to(ptype)).float(), y).backward()
            opt.first_step()
            opt.restore()
        for p, b in zip(model.parameters(), before, strict=True):
            assert torch.equal(bits(p), b)


@pytest.mark.parametrize("cls", [ZOSAM, MeZO])
def test_a_group_whose_name_collides_is_not_added(cls):
    one, two = ("w", nn.Parameter(torch.zeros(3))), ("w", nn.Parameter(torch.zeros(3)))
    opt = ZOSAM([one], SGD, 0.1, seed=1, lr=0.1) if cls is ZOSAM else MeZO([one], 0.1, seed=1)
    with pytest.raises(ValueError, match="uid"):
        opt.add_param_group({"params": [two]})
    assert len(opt.param_groups) == 1
    (opt.probe if cls is ZOSAM else opt.step)(lambda: 0.0)


def test_checkpoints_that_do_not_fit_change_nothing():
    a, b, c = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    state = MeZO([{"params": [a]}, {"params": [b, c]}], 0.1, seed=3).state_dict()
    opt = MeZO([{"params": [a, b]}, {"params": [c]}], 0.1, seed=9)
    with pytest.raises(ValueError, match="groups of"):
        opt.load_state_dict(state)
    assert (opt.seed, opt.probe_count) == (9, 0)
    coordinate = MeZO([a], 0.1, 3, distribution="coordinate", seed=3).state_dict()
    with pytest.raises(ValueError, match="coordinate"):
        MeZO([a], 0.1, restore="replay").load_state_dict(coordinate)
    old = ZOSAM([a], SGD, seed=1, lr=0.1).state_dict()
    old["sparse_optim"]["version"] = 0
    sam = ZOSAM([a], SGD, seed=9, lr=0.1)
    with pytest.raises(ValueError, match="version"):
        sam.load_state_dict(old)
    assert sam.seed == 9


def test_a_checkpoint_of_other_directions_and_the_log():
    p = nn.Parameter(torch.zeros(3))
    state = through_disk(MeZO([p], 0.1, distribution="rademacher", seed=3).state_dict())
    opt = MeZO([p], 0.1, seed=9, replay_log=True)
    opt.load_state_dict(state)
    opt.step(lambda: p.sum())
    opt.step(lambda: p.sum() + 1)
    again = [torch.zeros(3)]
    opt.replay_log.replay_(again)
    assert_same_bits(again[0], p.detach())
    begun = MeZO([p], 0.1, seed=9, replay_log=True)
    begun.step(lambda: p.sum())
    with pytest.raises(ValueError, match="begun"):
        begun.load_state_dict(state)


@pytest.mark.parametrize("scheduled", [False, True])
def test_the_log_stays_small_under_a_schedule(scheduled):
    """A mask is stored once, decay and learning rate as two numbers a step and group."""
    p = nn.Parameter(torch.randn(8000))
    opt = MeZO([p], 0.01, 1, seed=3, weight_decay=0.1, replay_log=True)
    opt.set_weight_mask([torch.arange(8000) % 4 == 0])
    schedule = LambdaLR(opt, lambda t: 1.0 / (1 + t))
    start = p.detach().clone()
    for _ in range(50):
        opt.step(lambda: p.square().sum())
        if scheduled:
            schedule.step()
    state = opt.replay_log.state_dict()
    assert len(state["masks"]) == len(state["settings"]) == 1
    assert state["factors"].shape == (50, 1, 2)
    again = [start.clone()]
    opt.replay_log.replay_(again)
    assert_same_bits(again[0], p.detach())


def test_a_rate_that_is_not_a_number_is_refused_and_restored():
    p = nn.Parameter(torch.randn(9))
    opt = MeZO([p], 0.1, seed=1)
    opt.param_groups[0]["lr"] = math.nan
    before = bits(p)
    with pytest.raises(ValueError, match="lr"):
        opt.step(lambda: p.sum())
    assert torch.equal(bits(p), before)
    with pytest.raises(ValueError, match="diverge"):
        MeZO([p], 0.1, sync="local")


@pytest.mark.parametrize("tiny", [5e-324, 1e-310])
def test_the_smallest_slopes_do_not_overflow(tiny):
    p = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    opt = ZOSAM([p], SGD, 0.3, 1, 1e-3, seed=1, lr=0.1)
    losses = iter([tiny, 0.0])
    opt.probe(lambda: torch.tensor(next(losses), dtype=torch.float64))
    assert float(p.detach().norm()) == pytest.approx(0.3, rel=1e-5)


# -- aliases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ZOSAM, MeZO])
@pytest.mark.parametrize("mode", ["exact", "replay"])
def test_property_17_tied_weights_and_views_follow(backend, cls, mode):
    """One tensor under two names moves once; views and addresses stay."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    view, pointers = model[0].weight.detach()[1:], [p.data_ptr() for p in model.parameters()]
    x = torch.randn(4, 5)
    if cls is ZOSAM:
        opt = ZOSAM(model.parameters(), SGD, 0.3, seed=1, lr=0.1, restore=mode, backend=backend)
        opt.probe(lambda: model(x).square().sum())
        moved = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        assert moved.numel() == 35
        assert_same_bits(view, model[1].weight.detach()[1:])
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()
    else:
        MeZO(model.parameters(), 0.01, seed=1, restore=mode, backend=backend).step(
            lambda: model(x).square().sum()
        )
    assert model[1].weight is model[0].weight
    assert_same_bits(view, model[1].weight.detach()[1:])
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert [p.stride() for p in model.parameters()] == [(5, 1), (1,), (1,)]


@pytest.mark.parametrize("base", [SGD, AdamW])
@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16])
def test_property_16_thousand_steps_without_learning_change_no_bit(base, ptype):
    """lr 0: probe, backward and base step, the fused one and the base's own."""
    p = nn.Parameter(torch.randn(64).to(ptype))
    opt = ZOSAM([p], base, 0.5, 2, 0.05, seed=3, lr=0.0, weight_decay=0.0)
    before = bits(p)
    for step in range(1000):
        opt.probe(lambda s=step: float(s % 7))
        p.grad = torch.ones_like(p)
        opt.step()
    assert torch.equal(bits(p), before)


# -- masters --------------------------------------------------------------------------------------


def live_pair(ptype=torch.bfloat16):
    live = nn.Parameter(torch.randn(40).to(ptype))
    return live, nn.Parameter(live.detach().float())


def test_masters_and_masks_of_mezo(backend):
    """A weight that is dropped is 0 in every forward, and a checkpoint rounds anew."""
    live, master = live_pair()
    opt = MeZO([master], 0.01, 1, 0.05, seed=3, live=[live], forward_difference=True,
               backend=backend)  # fmt: skip
    keep = torch.arange(40) % 2 == 0
    with torch.no_grad():
        master.mul_(keep)
    opt.set_weight_mask([keep])
    seen = []
    opt.step(lambda: seen.append(live.detach().clone()) or live.float().sum())
    assert all(not t[~keep].any() for t in seen)
    state = through_disk(opt.state_dict())
    with torch.no_grad():
        master.fill_(1.5)
    opt.load_state_dict(state)
    assert_same_bits(live.detach(), master.detach().bfloat16())


def test_masters_are_resumed(backend):
    """Property 25 with masters: the same steps after a checkpoint."""
    live, master = live_pair()
    a = ZOSAM([master], AdamW, 0.3, seed=3, live=[live], lr=0.05, backend=backend)

    def train(opt, own, steps):
        for _ in range(steps):
            opt.probe(lambda: own.float().square().sum())
            opt.zero_grad()
            own.float().square().sum().backward()
            opt.step()

    train(a, live, 3)
    state, weights = through_disk(a.state_dict()), master.detach().clone()
    other, copy = live_pair()
    with torch.no_grad():
        copy.copy_(weights)
    b = ZOSAM([copy], AdamW, 0.3, seed=8, live=[other], lr=0.05, backend=backend)
    b.load_state_dict(state)
    train(a, live, 3)
    train(b, other, 3)
    assert_same_bits(copy.detach(), master.detach())
    assert_same_bits(other.detach(), live.detach())
    assert master.grad is None


def test_masters_clip_what_exists():
    live, master = live_pair()
    keep = torch.arange(40) % 4 == 0
    opt = ZOSAM([master], SGD, 0.3, seed=3, live=[live], weight_mask=[keep], lr=0.05)
    live.grad = torch.ones_like(live)
    opt.mask_grads_()
    assert_same_bits(live.grad, keep.to(live.dtype))


def test_masters_that_are_mixed_or_missing():
    pairs = [live_pair(), live_pair(torch.float16)]
    masters = [m for _, m in pairs]
    opt = ZOSAM(masters, SGD, 0.3, seed=3, live=[t for t, _ in pairs], lr=0.05)
    opt.probe(lambda: pairs[0][0].float().sum() + pairs[1][0].float().sum())
    e = [t.detach().float() - m.detach() for t, m in pairs]
    assert float(torch.cat(e).norm()) == pytest.approx(0.3, rel=1e-2)
    opt.restore()
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    live, master = live_pair()
    opt = MeZO([master, frozen], 0.1, seed=3, live=[live])
    frozen.requires_grad_()
    with pytest.raises(ValueError, match="no live"):
        opt.step(lambda: 0.0)
