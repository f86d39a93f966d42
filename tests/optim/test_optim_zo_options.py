"""Scope, masks of a policy, loss scaling without the hook, bad closures, the check of signs."""

import math

import pytest
import sparse_optim._directions
import sparse_optim._sweeps
import torch
from optim_cases import (
    assert_same_bits,
    batch,
    bits,
    cross_entropy,
    directions,
    mlp,
    through_disk,
)
from sparse_optim import ZOSAM, MagnitudeMask, MeZO, Phase, RandomMask
from torch import nn
from torch.optim import SGD

from sparse_kernels import derive_key


def test_scope_says_which_parameters_are_perturbed(backend):
    model = mlp(norm=True)
    x, y = batch()
    opt = ZOSAM(model.named_parameters(), SGD, 0.3, seed=1, lr=0.1, backend=backend,
                perturb_scope=lambda name, p: p.dim() == 2 and name != "3.weight")  # fmt: skip
    before = [bits(p) for p in model.parameters()]
    opt.probe(lambda: cross_entropy(model(x), y))
    moved = [not torch.equal(bits(p), b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [name == "0.weight" for name, _ in model.named_parameters()]
    assert opt.num_active == model[0].weight.numel()
    assert opt.last_probe.smoothing == pytest.approx(0.3 / math.sqrt(54))
    opt.zero_grad()
    cross_entropy(model(x), y).backward()
    opt.step()
    assert all(not torch.equal(bits(p), b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("policy", [MagnitudeMask(), RandomMask()])
def test_a_policys_mask_is_perturbed_and_everything_is_trained(backend, policy):
    model = mlp()
    x, y = batch()
    params = list(model.parameters())
    exists = [torch.rand(p.shape) < 0.7 for p in params]
    opt = ZOSAM(params, SGD, 0.3, 2, seed=1, lr=0.1, weight_mask=exists, backend=backend)
    mask = policy.compute(params, 0.8, seed=4, within=opt.weight_mask)
    opt.set_masks(mask)
    assert opt.mask == mask
    chosen = mask.to_bool()
    assert (
        opt.num_active
        == mask.live
        == sum(int((m & e).sum()) for m, e in zip(chosen, exists, strict=True))
    )
    before = [bits(p) for p in params]
    opt.probe(lambda: cross_entropy(model(x), y))
    for p, b, m in zip(params, before, chosen, strict=True):
        assert torch.equal((bits(p) != b), m)
    opt.zero_grad()
    cross_entropy(model(x), y).backward()
    opt.step()
    for p, b, e in zip(params, before, exists, strict=True):
        assert torch.equal(bits(p) != b, e & (p.grad != 0))
    again = ZOSAM(mlp().parameters(), SGD, 0.3, 2, seed=9, lr=0.1, backend=backend)
    again.load_state_dict(through_disk(opt.state_dict()))
    assert again.mask == mask
    assert again.num_active == opt.num_active
    opt.set_masks(None)
    assert opt.num_active == sum(int(e.sum()) for e in exists)


def test_masks_of_a_policy_that_do_not_fit():
    model = mlp()
    opt = ZOSAM(model.parameters(), SGD, 0.3, seed=1, lr=0.1)
    with pytest.raises(ValueError, match="set_masks"):
        opt.set_masks([torch.ones(2, dtype=torch.bool)])
    opt.probe(lambda: 0.0)
    with pytest.raises(RuntimeError, match="perturbed"):
        opt.set_masks(None)


def test_without_the_amp_hook_the_backward_stands_inside_perturbed():
    model = mlp()
    x, y = batch()
    opt = ZOSAM(model.parameters(), SGD, 0.3, seed=1, lr=0.1, amp_hook=False)
    assert not opt._step_supports_amp_scaling
    before = [bits(p) for p in model.parameters()]
    opt.probe(lambda: cross_entropy(model(x), y))
    with pytest.raises(RuntimeError, match="amp_hook"):
        opt.step()
    opt.restore()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    for overflow in (True, False):
        opt.zero_grad()
        with opt.perturbed(lambda: cross_entropy(model(x), y)):
            scaler.scale(cross_entropy(model(x), y)).backward()
        assert opt.phase is Phase.RESTORED
        if overflow:
            model[0].weight.grad[0, 0] = math.inf
        scaler.unscale_(opt)
        scaler.step(opt)  # does not call step at all on overflow
        scaler.update()
        same = all(torch.equal(bits(p), b) for p, b in zip(model.parameters(), before, strict=True))
        assert same == overflow
    assert ZOSAM(mlp().parameters(), SGD, lr=0.1)._step_supports_amp_scaling


CLASSES = {
    "ZOSAM": lambda params, **own: ZOSAM(params, SGD, 0.3, 2, lr=0.1, **own),
    "MeZO": lambda params, **own: MeZO(params, 0.1, 2, 0.05, **own),
}


def call(opt, closure):
    return opt.probe(closure) if isinstance(opt, ZOSAM) else opt.step(closure)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("restore", ["exact", "replay"])
def test_bad_closures_leave_the_weights(backend, name, restore):
    model = mlp(dtype=torch.float64)
    opt = CLASSES[name](model.parameters(), seed=1, restore=restore, backend=backend)
    before = [p.detach().clone() for p in model.parameters()]
    extra = nn.Parameter(torch.zeros(3))

    def grows():
        opt.param_groups[0]["params"].append(extra)
        return 0.0

    def through_the_front():
        opt.add_param_group({"params": [extra]})

    for bad, error, word in (
        (lambda: torch.ones(2), ValueError, "scalar"),
        (lambda: None, ValueError, "scalar"),
        (lambda: torch.ones((), dtype=torch.complex64), ValueError, "scalar"),
        (lambda: "1", ValueError, "scalar"),
        (grows, RuntimeError, "number of parameters from 4 to 5"),
        (through_the_front, RuntimeError, "perturbed|closure"),
        (lambda: call(opt, lambda: 0.0), RuntimeError, "own loss closure"),
        (opt.state_dict, RuntimeError, "perturbed|closure"),
    ):
        with pytest.raises(error, match=word):
            call(opt, bad)
        del opt.param_groups[0]["params"][4:]
        for p, b in zip(model.parameters(), before, strict=True):
            if restore == "exact":
                assert_same_bits(p.detach(), b)
            torch.testing.assert_close(p.detach(), b, rtol=1e-12, atol=1e-14)
    assert len(opt.param_groups) == 1
    assert opt.state_dict()["sparse_optim"]


@pytest.mark.parametrize("name", CLASSES)
def test_nan_losses_are_counted_and_move_nothing(backend, name):
    model = mlp()
    opt = CLASSES[name](model.parameters(), seed=1, backend=backend)
    before = [bits(p) for p in model.parameters()]
    call(opt, lambda: float("nan"))
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(bits(p), b)
    assert (int(opt.nonfinite), int(opt.ties)) == (2, 0)


@pytest.mark.parametrize("options", [{"smoothing": math.nan}, {"smoothing": -1.0},
                                     {"num_directions": 0}, {"seed": 2**64}, {"seed": -1},
                                     {"sync": "both"}, {"rng_rounds": 9}, {"uids": [0]},
                                     {"firsts": [0]}, {"uids": [0, 1, 2, 2**32]},
                                     {"firsts": [0, 0, 0, -1]}])  # fmt: skip
def test_arguments_out_of_range(options):
    word = next(iter(options))
    with pytest.raises(ValueError, match=word):
        ZOSAM(mlp().parameters(), SGD, lr=0.1, **options)
    with pytest.raises(ValueError, match=word):
        MeZO(mlp().parameters(), 0.1, **options)


@pytest.mark.parametrize("q", [1, 3])
def test_forward_difference_takes_one_forward_at_w(backend, q):
    """Slopes (L(w + delta z) - L(w)) / delta, their bias delta z'Hz / 2, and q + 1 forwards."""
    a = torch.randn(30, dtype=torch.float64)
    p = nn.Parameter(torch.randn(30, dtype=torch.float64))
    w, points = p.detach().clone(), []
    opt = MeZO([p], 0.1, q, 0.2, seed=3, forward_difference=True, backend=backend)

    def loss():
        points.append(p.detach().clone())
        return a @ p + p.square().sum()

    mean = opt.step(loss)
    z = directions(opt.last_probe, 0, 30, q)
    assert len(points) == q + 1
    assert_same_bits(points[0], w)
    slopes = z @ (a + 2 * w) + 0.2 * z.square().sum(1)  # H = 2 I
    torch.testing.assert_close(opt.last_probe.coef, slopes, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(p.detach(), w - 0.1 / q * slopes @ z, rtol=1e-6, atol=1e-6)
    values = [a @ v + v.square().sum() for v in points]
    torch.testing.assert_close(mean, torch.stack(values).mean())
    assert opt.last_probe.losses.shape == (q, 2)


@pytest.mark.parametrize("name", CLASSES)
def test_sign_check_tells_slopes_from_noise(backend, name):
    a = torch.randn(200)
    p = nn.Parameter(torch.randn(200))
    mask = torch.arange(200) % 3 > 0
    opt = CLASSES[name]([p], seed=1, weight_mask=[mask], backend=backend)
    before, random = bits(p), torch.get_rng_state()
    assert opt.sign_check(lambda: a @ p, 40) == 1.0
    assert opt.sign_check(lambda: (a @ p) - 2 * (a @ p).detach(), 40) == 0.0
    generator = torch.Generator().manual_seed(1)
    noisy = opt.sign_check(lambda: 0 * (a @ p) + torch.randn((), generator=generator), 40)
    assert noisy == 0.0  # the gradient is 0
    share = opt.sign_check(lambda: 1e-9 * (a @ p) + torch.randn((), generator=generator), 200)
    assert 0.5 - 5 * 0.5 / 200**0.5 < share < 0.5 + 5 * 0.5 / 200**0.5
    assert torch.equal(bits(p), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert (opt.probe_count, opt.ties, opt.nonfinite, p.grad) == (0, None, None, None)
    with pytest.raises(ValueError, match="directions"):
        opt.sign_check(lambda: a @ p, 0)


def test_sign_check_shares_dropout_and_keeps_statistics():
    model = mlp(norm=True, dropout=0.5)
    x, y = batch()
    opt = ZOSAM(model.parameters(), SGD, 0.05, seed=1, bn_modules=model, lr=0.1)
    before = [v.clone() for v in model.state_dict().values()]
    share = opt.sign_check(lambda: cross_entropy(model(x), y), 50)
    assert share > 0.9
    for v, b in zip(model.state_dict().values(), before, strict=True):
        assert torch.equal(v, b)


def test_sign_check_between_probe_and_step_is_refused():
    p = nn.Parameter(torch.zeros(5))
    opt = ZOSAM([p], SGD, 0.1, seed=1, lr=0.1)
    opt.probe(lambda: 0.0)
    with pytest.raises(RuntimeError, match="perturbed"):
        opt.sign_check(lambda: p.sum())


def test_a_captured_graph_needs_pair_rng_off(monkeypatch):
    """Generators cannot be set back while a CUDA graph is captured."""
    p = nn.Parameter(torch.zeros(5))
    monkeypatch.setattr(sparse_optim._directions, "is_capturing", lambda: True)
    opt = ZOSAM([p], SGD, 0.1, seed=1, lr=0.1)
    with pytest.raises(RuntimeError, match="pair_rng=False"):
        opt.probe(lambda: 0.0)
    assert not p.detach().any()
    opt = ZOSAM([p], SGD, 0.1, seed=1, pair_rng=False, lr=0.1)
    opt.probe(lambda: 1.0)


def test_probing_again_for_each_micro_batch_restores_in_between(backend):
    """Property 23: one e per micro-batch; gradients add up."""
    model, by_hand = mlp(), mlp()
    opt = ZOSAM(model.parameters(), SGD, 0.3, seed=1, lr=0.1, backend=backend)
    hand = ZOSAM(by_hand.parameters(), SGD, 0.3, seed=1, lr=0.1, backend=backend)
    total = [torch.zeros_like(p) for p in by_hand.parameters()]
    for seed in (3, 4):
        x, y = batch(seed=seed)
        opt.probe(lambda x=x, y=y: cross_entropy(model(x), y))
        cross_entropy(model(x), y).backward()
        hand.probe(lambda x=x, y=y: cross_entropy(by_hand(x), y))
        by_hand.zero_grad()
        cross_entropy(by_hand(x), y).backward()
        hand.restore()
        for t, p in zip(total, by_hand.parameters(), strict=True):
            t += p.grad
    opt.step()
    with torch.no_grad():
        for p, t in zip(by_hand.parameters(), total, strict=True):
            p -= 0.1 * t
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert opt.probe_count == 2


def test_seed_none_reads_torchs_seed_and_does_not_advance_it():
    torch.manual_seed(77)
    state = torch.get_rng_state()
    opt = MeZO([nn.Parameter(torch.zeros(3))], 0.1)
    assert opt.seed == 77
    opt.step(lambda: 0.0)
    assert int(opt.last_probe.key) % 2**64 == derive_key(77, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_sweeps_of_a_step(backend, monkeypatch):
    """2 m + 1 passes over the weights, whatever the number of tensors; the base step restores."""
    model = mlp()
    x, y = batch()
    calls = []
    real = sparse_optim._sweeps.zo_combine_

    def counted(tensors, *args, **kwargs):
        calls.append(len(tensors))
        real(tensors, *args, **kwargs)

    monkeypatch.setattr(sparse_optim._sweeps, "zo_combine_", counted)
    opt = ZOSAM(model.parameters(), SGD, 0.3, 3, seed=1, lr=0.1, backend=backend)
    opt.probe(lambda: cross_entropy(model(x), y))
    assert calls == [4] * 7
    mezo = MeZO(model.parameters(), 0.1, 3, seed=1, backend=backend)
    opt.restore()
    calls.clear()
    mezo.step(lambda: cross_entropy(model(x), y))
    assert calls == [4] * 7
