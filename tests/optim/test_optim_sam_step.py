"""SAM and SSAM: the ascent, the restore and the base step (sparse-sam.md section 9)."""

import copy

import pytest
import torch
from optim_cases import (
    DTYPES,
    assert_same_bits,
    assert_same_params,
    batch,
    bits,
    clone_grads,
    cross_entropy,
    full_masks,
    mlp,
    norm_of,
    perturbation,
    planted,
    train_sam,
)
from sparse_optim import SAM, SSAM, Phase, RandomMask
from torch import nn
from torch.optim import SGD


@pytest.mark.parametrize("norm", ["dense", "masked"])
def test_property_1_a_full_mask_is_sam(backend, norm):
    a, b = mlp(), mlp()
    start = copy.deepcopy(a)
    train_sam(a, SAM(a.parameters(), SGD, lr=0.1, momentum=0.9, backend=backend))
    opt = SSAM(b.parameters(), SGD, norm=norm, lr=0.1, momentum=0.9, backend=backend)
    opt.set_masks(full_masks(b, True))
    train_sam(b, opt)
    assert_same_params(a, b)
    assert not torch.equal(a[0].weight, start[0].weight)


@pytest.mark.parametrize("how", ["mask", "rho"])
def test_property_2_without_perturbation_it_is_the_base(backend, how):
    a, b = mlp(), mlp()
    x, y = batch()
    base = SGD(a.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(6):
        base.zero_grad()
        cross_entropy(a(x), y).backward()
        base.step()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    rho = 0.0 if how == "rho" else 0.7
    opt = SSAM(b.parameters(), SGD, rho=rho, backend=backend, **options)
    opt.set_masks(full_masks(b, how == "rho"))
    assert_same_params(a, train_sam(b, opt))


@pytest.mark.parametrize("norm", ["dense", "masked"])
def test_property_3_and_4_length_support_and_direction(backend, norm):
    params = [nn.Parameter(torch.randn(70, 11)), nn.Parameter(torch.randn(5))]
    grads = [torch.randn(70, 11), torch.randn(5)]
    masks = [torch.rand(70, 11) < 0.4, torch.rand(5) < 0.4]
    opt = SSAM(params, SGD, rho=0.3, norm=norm, lr=0.1, backend=backend)
    opt.set_masks(masks)
    e = perturbation(opt, params, grads)
    kept = [g.double() * m for g, m in zip(grads, masks, strict=True)]
    whole = norm_of(grads if norm == "dense" else kept)
    torch.testing.assert_close(norm_of(e), 0.3 * norm_of(kept) / whole, rtol=1e-5, atol=0)
    for part, g, m in zip(e, kept, masks, strict=True):
        assert torch.equal(part[~m], torch.zeros_like(part[~m]))
        expected = 0.3 * g / whole
        torch.testing.assert_close(part, expected, rtol=0, atol=5e-7)
    assert float(norm_of(e)) > 0.01


def test_property_3_zero_gradient_gives_no_perturbation(backend):
    p = nn.Parameter(torch.randn(9))
    opt = SAM([p], SGD, lr=0.1, backend=backend)
    (e,) = perturbation(opt, [p], [torch.zeros(9)])
    assert torch.equal(e, torch.zeros_like(e))


@pytest.mark.parametrize("ptype", DTYPES)
def test_property_4_unmasked_entries_keep_their_bits_while_perturbed(backend, ptype):
    p = planted(ptype)
    before = bits(p)
    mask = torch.arange(p.numel()) >= 8
    opt = SSAM([p], SGD, rho=1.0, lr=0.1, backend=backend)
    opt.set_masks([mask])
    p.grad = torch.ones_like(p)
    opt.first_step()
    assert torch.equal(bits(p)[~mask], before[~mask])
    assert (bits(p)[mask] != before[mask]).all()
    opt.restore()
    assert torch.equal(bits(p), before)


@pytest.mark.parametrize("c", [2.0**16, 3.7, -1.0])
def test_property_5_scaling_the_gradient(backend, c):
    start = torch.zeros(300)  # e is then w+ itself
    p = nn.Parameter(start.clone())
    opt = SAM([p], SGD, rho=0.5, lr=0.1, backend=backend)
    g = torch.randn(300)
    (e,) = perturbation(opt, [p], [g])
    (scaled,) = perturbation(opt, [p], [g * c])
    sign = 1.0 if c > 0 else -1.0
    torch.testing.assert_close(scaled, sign * e, rtol=1e-6, atol=1e-12)
    assert float(e.norm()) == pytest.approx(0.5, rel=1e-5)


def test_property_6_adaptive(backend):
    w = torch.randn(500, dtype=torch.float64)
    w[:5] = 0.0
    g = torch.randn(500, dtype=torch.float64)
    p = nn.Parameter(w.clone())
    opt = SAM([p], SGD, rho=0.7, adaptive=True, lr=0.1, backend=backend)
    (e,) = perturbation(opt, [p], [g])
    live = w != 0
    torch.testing.assert_close((e[live] / w[live].abs()).norm().item(), 0.7, rtol=1e-7, atol=0)
    assert torch.equal(e[~live], torch.zeros(5, dtype=torch.float64))
    q = nn.Parameter(4.0 * w)
    (scaled,) = perturbation(
        SAM([q], SGD, rho=0.7, adaptive=True, lr=0.1, backend=backend), [q], [g / 4.0]
    )
    torch.testing.assert_close(scaled, 4.0 * e, rtol=1e-9, atol=1e-12)
    shifted = SAM([p], SGD, rho=0.7, adaptive=True, eta=0.5, lr=0.1, backend=backend)
    (with_eta,) = perturbation(shifted, [p], [g])
    t = w.abs() + 0.5
    torch.testing.assert_close(with_eta, 0.7 * t * t * g / (t * g).norm(), rtol=1e-6, atol=1e-9)


def test_property_7_one_norm_over_the_groups(backend):
    grads = [torch.randn(200), torch.randn(30)]
    a, b = (nn.Parameter(torch.zeros_like(g)) for g in grads)
    groups = [{"params": [a], "rho": 0.1}, {"params": [b], "rho": 0.4}]
    e = perturbation(SAM(groups, SGD, lr=0.1, backend=backend), [a, b], grads)
    whole = norm_of(grads)
    for part, rho, g in zip(e, (0.1, 0.4), grads, strict=True):
        torch.testing.assert_close(part, rho * g.double() / whole, rtol=1e-6, atol=1e-12)
    one = perturbation(SAM([a, b], SGD, rho=0.3, lr=0.1, backend=backend), [a, b], grads)
    split = SAM([{"params": [a]}, {"params": [b]}], SGD, rho=0.3, lr=0.1, backend=backend)
    for x, y in zip(one, perturbation(split, [a, b], grads), strict=True):
        assert torch.equal(x, y)


def test_property_7_adaptive_and_plain_groups_share_the_norm(backend):
    wa, ga, gb = (torch.randn(50, dtype=torch.float64) for _ in range(3))
    a, b = nn.Parameter(wa.clone()), nn.Parameter(torch.zeros_like(gb))
    groups = [{"params": [a], "adaptive": True, "eta": 0.1}, {"params": [b], "adaptive": False}]
    e = perturbation(SAM(groups, SGD, rho=0.3, lr=0.1, backend=backend), [a, b], [ga, gb])
    t = wa.abs() + 0.1
    whole = norm_of([t * ga, gb])
    torch.testing.assert_close(e[0], 0.3 * t * t * ga / whole, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(e[1], 0.3 * gb / whole, rtol=1e-7, atol=1e-10)


def test_property_8_same_bits_for_any_thread_count(backend):
    p, g = nn.Parameter(torch.zeros(150_001)), torch.randn(150_001)
    opt = SAM([p], SGD, rho=0.5, lr=0.1, backend=backend)
    threads, seen = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            seen.append(perturbation(opt, [p], [g])[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert seen[0].abs().max() > 0


@pytest.mark.parametrize("ptype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_property_9_a_thousand_cycles_leave_the_bits(backend, ptype, masked):
    p = planted(ptype)
    before, pointer = bits(p), p.data_ptr()
    opt = SSAM([p], SGD, rho=3.0, sparsity=0.5, mask=RandomMask(), lr=0.1, backend=backend)
    if not masked:
        opt.set_masks([torch.ones_like(p, dtype=torch.bool)])
    p.grad = torch.empty_like(p)
    # the reference pads every sum to a chunk: a twentieth of the cycles takes as long
    for _ in range(1000 if backend == "auto" else 50):
        p.grad.normal_()
        opt.first_step()
        assert not torch.equal(bits(p), before)
        opt.restore()
    assert torch.equal(bits(p), before)
    assert p.data_ptr() == pointer


@pytest.mark.parametrize("way", ["closure", "context", "early"])
def test_property_9_restore_on_every_way_out(backend, way):
    model = mlp()
    x, y = batch()
    opt = SAM(model.parameters(), SGD, rho=0.5, lr=0.1, backend=backend)
    before = [bits(p) for p in model.parameters()]

    def boom():
        assert not torch.equal(bits(model[0].weight), before[0])
        raise KeyError("inside the second pass")

    cross_entropy(model(x), y).backward()
    if way == "closure":
        with pytest.raises(KeyError):
            opt.step(boom)
    elif way == "context":
        with pytest.raises(KeyError), opt.perturbed():
            boom()
    else:
        for _ in range(3):
            with opt.perturbed():
                break
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(bits(p), b)
    assert opt.phase is (Phase.RESTORED if way == "early" else Phase.IDLE)
    train_sam(model, opt, 1)
    assert not torch.equal(bits(model[0].weight), before[0])


def test_property_10_storage_aliases_and_ties(backend):
    flat = torch.randn(40)
    a, b = nn.Parameter(flat[:24].view(4, 6)), nn.Parameter(flat[24:])
    strides, pointers = a.stride(), (a.data_ptr(), b.data_ptr())
    opt = SAM([a, b], SGD, rho=0.5, lr=0.1, backend=backend)
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    opt.first_step()
    assert torch.equal(flat[:24], a.detach().reshape(-1))
    opt.second_step()
    assert (a.data_ptr(), b.data_ptr()) == pointers
    assert a.stride() == strides
    assert torch.equal(flat[24:], b.detach())

    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    opt = SAM(tied.parameters(), SGD, rho=0.5, lr=0.1, backend=backend)
    before = tied[0].weight.detach().clone()
    tied(torch.ones(2, 6)).square().sum().backward()
    length = norm_of([p.grad for p in tied.parameters()])
    opt.first_step()
    moved = tied[0].weight.detach() - before
    expected = 0.5 * tied[0].weight.grad / length
    torch.testing.assert_close(moved, expected.float(), rtol=0, atol=1e-6)


def test_property_11_the_base_sees_g2_at_restored_weights(backend):
    model = mlp()
    x, y = batch()
    start = [p.detach().clone() for p in model.parameters()]
    opt = SSAM(model.parameters(), SGD, rho=0.5, lr=0.1, momentum=0.9, backend=backend)
    masks = [torch.rand(p.shape) < 0.5 for p in model.parameters()]
    opt.set_masks(masks)
    cross_entropy(model(x), y).backward()
    opt.first_step(zero_grad=True)
    cross_entropy(model(x), y).backward()
    g2 = clone_grads(model)
    opt.second_step()
    for p, g, w, m in zip(model.parameters(), g2, start, masks, strict=True):
        assert_same_bits(opt.state[p]["momentum_buffer"], g)
        torch.testing.assert_close(p.detach(), w - 0.1 * g, rtol=1e-6, atol=1e-7)
        changed = (p.detach() != w) | (g == 0)
        assert changed[~m].all()  # unperturbed weights are trained too


def test_property_11_weight_decay_acts_on_restored_weights(backend):
    p = nn.Parameter(torch.tensor([2.0, -3.0]))
    opt = SAM([p], SGD, rho=1.0, lr=0.1, weight_decay=0.5, backend=backend)
    p.grad = torch.tensor([3.0, 4.0])
    opt.first_step()
    p.grad = torch.zeros(2)
    opt.second_step()
    torch.testing.assert_close(p.detach(), torch.tensor([2.0, -3.0]) * 0.95)
