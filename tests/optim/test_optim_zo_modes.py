"""Ways to come back: packed copies, replay and its drift, float32 masters (zero-order.md 5)."""

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    assert_same_params,
    batch,
    bits,
    cross_entropy,
    mlp,
    planted,
    through_disk,
)
from sparse_optim import ZOSAM, MeZO
from torch import nn
from torch.optim import SGD, AdamW

# relative L2 after 1 and 100 steps: zero-order.md section 5; property 16 allows twice as much
DRIFT = {
    torch.float32: (5.9e-8, 5.9e-7, 5.4e-8, 5.4e-7),
    torch.float16: (4.9e-4, 4.9e-3, 4.4e-4, 4.4e-3),
    torch.bfloat16: (3.9e-3, 3.9e-2, 3.5e-3, 3.5e-2),
}


def take_steps(opt, model, x, y, count):
    """Whole steps of either optimizer."""

    def loss():
        return cross_entropy(model(x).float(), y)

    def closure():
        opt.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(count):
        if isinstance(opt, ZOSAM):
            opt.step(closure, loss_closure=loss)
        else:
            opt.step(loss)


def backup_bytes(opt):
    """Bytes of the copies an optimizer holds."""
    held = opt._directions._backups
    whole = held._whole._copies.values()
    packed = () if held._packed is None else held._packed._buffers.values()
    return sum(t.numel() * t.element_size() for t in (*whole, *packed))


@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("period", "entries"), [(10, 10), (3, 34), (1, 100)])
def test_a_copy_holds_what_moves_where_that_is_less_than_half(backend, ptype, period, entries):
    p = nn.Parameter(torch.randn(100).to(ptype))
    mask = torch.arange(100) % period == 0
    opt = ZOSAM([p], SGD, 0.5, 2, 0.05, seed=3, weight_mask=[mask], lr=0.0, backend=backend)
    before = bits(p)
    opt.probe(lambda: p.float().sum())
    assert backup_bytes(opt) == entries * p.element_size()
    assert torch.equal(bits(p)[~mask], before[~mask])
    opt.restore()
    assert torch.equal(bits(p), before)


@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("cls", [ZOSAM, MeZO])
def test_packed_and_whole_copies_give_the_same_steps(backend, cls, ptype, monkeypatch):
    x, y = batch(dtype=ptype)
    models = []
    for packed in (True, False):
        model = mlp(dtype=ptype)
        masks = [torch.arange(p.numel()).reshape(p.shape) % 4 == 1 for p in model.parameters()]
        shared = {"num_directions": 2, "smoothing": 0.05, "seed": 3, "weight_mask": masks}
        if cls is ZOSAM:
            opt = ZOSAM(model.parameters(), AdamW, 0.2, lr=0.02, **shared, backend=backend)
        else:
            opt = MeZO(model.parameters(), 0.05, weight_decay=0.1, **shared, backend=backend)
        if not packed:
            held = opt._directions._backups
            monkeypatch.setattr(
                held, "parts", lambda local, mask, live, h=held: h.whole(local, list(mask.words))
            )

        take_steps(opt, model, x, y, 4)
        assert (opt._directions._backups._packed is not None) == packed
        models.append(model)
    assert_same_params(*models)
    assert not torch.equal(models[0][0].weight, mlp(dtype=ptype)[0].weight)


def test_a_mask_that_changes_gets_a_copy_of_its_own(backend):
    p = nn.Parameter(torch.randn(200))
    opt = ZOSAM([p], SGD, 0.5, seed=3, lr=0.0, backend=backend)
    for period in (4, 10, 7):
        mask = torch.arange(200) % period == 0
        opt.set_masks([mask])
        before = bits(p)
        opt.probe(lambda: p.sum())
        assert backup_bytes(opt) == 4 * int(mask.sum())
        changed = bits(p) != before
        assert torch.equal(changed, mask)
        opt.restore()
        assert torch.equal(bits(p), before)


@pytest.mark.parametrize("ptype", list(DRIFT))
@pytest.mark.parametrize("masked", [False, True])
def test_property_16_replay_drifts_as_documented(ptype, masked):
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(262144, generator=generator)).to(ptype)
    mask = [torch.arange(262144) % 2 == 0] if masked else None
    after = []
    for cls in (MeZO, ZOSAM):
        p = nn.Parameter(start.clone())
        shared = {"smoothing": 1e-3, "seed": 2, "restore": "replay", "allow_drift": True}
        if cls is MeZO:
            opt = MeZO([p], 0.1, **shared, weight_mask=mask)
        else:
            opt = ZOSAM([p], SGD, 0.05, lr=0.1, **shared)
            opt.set_masks(mask)
        script = iter(range(10**6))
        for step in range(1, 101):
            if cls is MeZO:  # equal losses: no update, only the moves and back
                opt.step(lambda: 1.0)
            else:
                opt.probe(lambda s=script: float(next(s)))
                opt.restore()
            if step in (1, 100):
                after.append(
                    float((p.detach().float() - start.float()).norm() / start.float().norm())
                )
        if masked:
            assert torch.equal(bits(p)[1::2], bits(start)[1::2])
    share = 0.5**0.5 if masked else 1.0
    for found, published in zip(after, DRIFT[ptype], strict=True):
        assert share * published / 2 < found < 2 * share * published


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("cls", [ZOSAM, MeZO])
@pytest.mark.parametrize("distribution", ["normal", "rademacher", "sphere"])
def test_replay_is_the_exact_mode_up_to_rounding(backend, cls, m, distribution):
    x, y = batch()
    models = []
    for mode in ("exact", "replay"):
        model = mlp()
        masks = [torch.arange(p.numel()).reshape(p.shape) % 3 > 0 for p in model.parameters()]
        groups = [
            {"params": [model[0].weight, model[2].bias]},
            {"params": [model[0].bias, model[2].weight]},
        ]
        shared = {"seed": 3, "restore": mode, "distribution": distribution, "weight_mask": masks}
        shared["weight_mask"] = [masks[i] for i in (0, 3, 1, 2)]
        if cls is ZOSAM:
            groups[1]["rho"] = 0.05
            opt = ZOSAM(groups, SGD, 0.2, m, lr=0.1, **shared, backend=backend)
        else:
            groups[1].update(lr=0.01, weight_decay=0.0)
            opt = MeZO(groups, 0.05, m, 0.01, weight_decay=0.2, **shared, backend=backend)

        take_steps(opt, model, x, y, 3)
        if mode == "replay":
            assert backup_bytes(opt) == 0
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    moved = float((models[0][0].weight - mlp()[0].weight).detach().norm())
    assert moved > 1e-3


def test_replay_refuses_16_bit_weights_unless_asked():
    p = nn.Parameter(torch.zeros(5, dtype=torch.bfloat16))
    for opt in (
        ZOSAM([p], SGD, 0.1, seed=1, restore="replay", lr=0.1),
        MeZO([p], 0.1, seed=1, restore="replay"),
    ):
        call = opt.probe if isinstance(opt, ZOSAM) else opt.step
        with pytest.raises(ValueError, match=r"bfloat16.*drift"):
            call(lambda: 0.0)
        assert not p.detach().any()
        assert opt.probe_count == 0


def test_replay_after_an_exception_takes_the_move_back():
    p = nn.Parameter(torch.randn(64, dtype=torch.float64))
    start, calls = p.detach().clone(), []

    def loss():
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("in a probe")
        return float(len(calls))

    for opt in (
        ZOSAM([p], SGD, 0.1, 3, seed=1, restore="replay", lr=0.1),
        MeZO([p], 0.1, 3, 0.01, seed=1, restore="replay"),
    ):
        calls.clear()
        with pytest.raises(KeyError):
            (opt.probe if isinstance(opt, ZOSAM) else opt.step)(loss)
        torch.testing.assert_close(p.detach(), start, rtol=1e-12, atol=1e-14)


def masters_of(model):
    return [nn.Parameter(p.detach().float().clone()) for p in model.parameters()]


@pytest.mark.parametrize("ptype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_masters_round_every_point_from_float32(backend, ptype, masked):
    model = mlp().to(ptype)
    masters = masters_of(model)
    with torch.no_grad():  # masters between the 16-bit values
        for t in masters:
            t.add_(1e-4 * torch.randn(t.shape))
    live = list(model.parameters())
    masks = [torch.rand(p.shape) < 0.6 for p in live] if masked else None
    opt = ZOSAM(masters, SGD, 0.5, 2, 0.05, seed=3, live=live, lr=0.1, momentum=0.9,
                weight_mask=masks, backend=backend)  # fmt: skip
    twin = [nn.Parameter(t.detach().clone()) for t in masters]
    plain = ZOSAM(twin, SGD, 0.5, 2, 0.05, seed=3, lr=0.1, momentum=0.9, weight_mask=masks,
                  backend=backend)  # fmt: skip
    for p, t in zip(live, masters, strict=True):
        assert_same_bits(p.detach(), t.detach().to(ptype))
    fixed = [t.detach().clone() for t in masters]
    script, seen = iter(range(100)), ([], [])

    def watch(tensors, where):
        def loss():
            where.append([t.detach().clone() for t in tensors])
            return float(next(script) % 4)

        return loss

    opt.probe(watch(live, seen[0]))
    plain.probe(watch(twin, seen[1]))
    seen[0].append([t.detach().clone() for t in live])
    seen[1].append([t.detach().clone() for t in twin])
    for ours, exact in zip(*seen, strict=True):
        for a, b in zip(ours, exact, strict=True):
            assert_same_bits(a, b.to(ptype))
    for t, f in zip(masters, fixed, strict=True):
        assert_same_bits(t.detach(), f)
    for p, q in zip(live, twin, strict=True):
        p.grad = torch.randn(p.shape).to(ptype)
        q.grad = p.grad.float()
    opt.step()
    plain.step()
    for p, t, q in zip(live, masters, twin, strict=True):
        assert_same_bits(t.detach(), q.detach())
        assert_same_bits(p.detach(), t.detach().to(ptype))
    opt.zero_grad()
    assert all(p.grad is None for p in (*live, *masters))


def test_masters_follow_mezo_and_checkpoints(backend):
    x, y = batch()
    model = mlp().bfloat16()
    masters = masters_of(model)
    opt = MeZO(masters, 0.02, 2, 0.05, seed=3, live=list(model.parameters()), backend=backend)

    def loss():
        return cross_entropy(model(x.bfloat16()).float(), y)

    before = float(loss().detach())
    for _ in range(30):
        opt.step(loss)
    for p, t in zip(model.parameters(), masters, strict=True):
        assert_same_bits(p.detach(), t.detach().bfloat16())
    assert float(loss().detach()) < before
    again = ZOSAM(masters_of(model), SGD, 0.1, seed=1, live=list(model.parameters()), lr=0.1,
                  backend=backend)  # fmt: skip
    again.load_state_dict(through_disk(again.state_dict()))
    for what, word in (
        ({"live": list(model.parameters())[:1]}, "live has 1"),
        ({"live": masters_of(model)}, "does not go with"),
        ({"restore": "master"}, "needs live"),
        ({"live": list(model.parameters()), "restore": "replay"}, "exclude"),
    ):
        with pytest.raises(ValueError, match=word):
            MeZO(masters_of(model), 0.1, **what)
    with pytest.raises(RuntimeError, match="live"):
        again.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_masters_after_an_exception(backend):
    model = mlp().bfloat16()
    live, masters = list(model.parameters()), masters_of(model)
    opt = MeZO(masters, 0.1, 2, 0.05, seed=3, live=live, backend=backend)
    before = [bits(p) for p in live]

    def loss():
        if not torch.equal(bits(live[0]), before[0]) and len(calls) == 2:
            raise KeyError
        calls.append(1)
        return 0.0

    calls = []
    with pytest.raises(KeyError):
        opt.step(loss)
    for p, b in zip(live, before, strict=True):
        assert torch.equal(bits(p), b)


@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16, torch.float16])
def test_property_16_packed_copies_keep_every_bit(backend, ptype):
    p = planted(ptype)
    mask = [torch.arange(40) % 4 == 0]
    opt = ZOSAM([p], SGD, 0.5, 2, 0.05, "rademacher", 3, lr=0.1, backend=backend)
    opt.set_masks(mask)
    mezo = MeZO([p], 0.0, 2, 0.05, seed=4, weight_mask=mask, weight_decay=0.1, backend=backend)
    before, script = bits(p), iter(range(10**6))
    for _ in range(20):
        opt.probe(lambda: next(script))
        assert torch.equal(bits(p)[~mask[0]], before[~mask[0]])
        opt.restore()
        mezo.step(lambda: next(script))
    assert torch.equal(bits(p), before)
