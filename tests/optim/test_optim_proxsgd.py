"""ProxSGD, and oracles that are other algorithms (bregman.md 2.3, T1, T2, T4)."""

import pytest
import torch
from optim_cases import assert_same_bits, run, shrink, zero_param
from regularizer_cases import GROUPED, REGS, group_sums, threshold, weight
from sparse_optim import LinBreg, ProxSGD
from torch import nn
from torch.optim import SGD

F64 = torch.float64


def plain_prox(case, y, step, lam):
    """prox of step J at y, from the definitions."""
    if case in ("l1", "l1_pos"):
        return (y - step * lam).clamp(min=0) if case == "l1_pos" else shrink(y, step * lam)
    entries, groups = threshold(case, lam)
    s = shrink(y, step * entries)
    norms = group_sums(case, s.square()).sqrt()
    bound = step * groups * group_sums(case, torch.ones_like(s)).sqrt()
    return torch.where(norms > bound, s * (1 - bound / norms.clamp(min=1e-300)), 0.0)


@pytest.mark.parametrize("case", REGS)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_steps_are_proximal_gradient_steps(backend, case, momentum, nesterov):
    p, lr, lam, decay = weight(case, F64), 0.2, 0.7, 0.05
    opt = ProxSGD([p], lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay, lam=lam,
                  backend=backend, **REGS[case])  # fmt: skip
    w, b = p.detach().clone(), torch.zeros_like(p)
    partly = 0
    for _ in range(12):
        p.grad = torch.randn(p.shape, dtype=F64) * 0.3
        b = momentum * b + p.grad
        d = (p.grad + momentum * b if nesterov else b) if momentum else p.grad
        w = plain_prox(case, w - lr * d - lr * decay * w, lr, lam)
        opt.step()
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)
        assert torch.equal(p.detach() == 0, w == 0)
        assert int(opt.live_counts()[0]) == int(w.count_nonzero())
        partly += 0 < int(w.count_nonzero()) < w.numel()
    assert partly > 1


def test_singular_values_are_shrunk_by_lr_lam(backend):
    p = nn.Parameter(torch.randn(5, 3, 2, 2, dtype=F64))
    opt = ProxSGD([p], lr=0.2, reg="nuclear", lam=14.0, backend=backend)
    p.grad = torch.randn_like(p)
    y = (p.detach() - 0.2 * p.grad).reshape(5, 12)
    opt.step()
    shown = torch.linalg.svdvals(p.detach().reshape(5, 12))
    torch.testing.assert_close(shown, (torch.linalg.svdvals(y) - 2.8).clamp(min=0))
    assert shown[-1] < 1e-12 < shown[0]


def test_without_lam_it_is_sgd(backend):
    a = nn.Parameter(torch.randn(30, dtype=F64))
    b = nn.Parameter(a.detach().clone())
    opts = [ProxSGD([a], lr=0.05, momentum=0.9, reg="l1", backend=backend),
            SGD([b], lr=0.05, momentum=0.9)]  # fmt: skip
    for _ in range(50):
        a.grad = torch.randn(30, dtype=F64)
        b.grad = a.grad.clone()
        for opt in opts:
            opt.step()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ptype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["l1", "rows", "sparse_blocks"])
def test_16_bit_weights_have_a_master(backend, ptype, case):
    p = weight(case, ptype)
    q = nn.Parameter(p.detach().float())
    opts = [ProxSGD([x], lr=1e-3, lam=0.3, backend=backend, **REGS[case]) for x in (p, q)]
    for _ in range(40):
        p.grad = torch.randn(p.shape).to(ptype)
        q.grad = p.grad.float()
        for opt in opts:
            opt.step()
    assert_same_bits(p.detach(), q.detach().to(ptype))
    assert_same_bits(opts[0].state[p]["master"], q.detach())
    with torch.no_grad():
        p.fill_(2.0)
    opts[0].sync_from_params()
    master = opts[0].state[p]["master"]
    assert not master.requires_grad
    assert set(master.unique().tolist()) == {2.0}
    assert opts[0].sparsity() == 0.0


def test_a_cycle_is_a_type_error():
    with pytest.raises(TypeError, match="coarse_steps"):
        ProxSGD([nn.Parameter(torch.ones(2))], coarse_steps=3)
    with pytest.raises(TypeError, match="coarse_steps"):
        ProxSGD([{"params": [nn.Parameter(torch.ones(2))], "coarse_steps": 3}])
    for name, value in (("delta", 2.0), ("dual_leak", 0.1), ("fine_scale", 2.0)):
        with pytest.raises(ValueError, match=name):
            ProxSGD([{"params": [nn.Parameter(torch.ones(2))], name: value}])


def test_t2_limits_differ_by_lam_over_curvature(backend):
    """L = sum a (w - b)^2 / 2: LinBreg ends at b, ProxSGD at S_{lam / a}(b)."""
    a = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=F64)
    b = torch.tensor([2.0, -1.5, 0.1, -0.3], dtype=F64)
    lam, ends = 0.5, []
    for cls, tau in ((ProxSGD, 0.3), (LinBreg, 0.3)):
        p = zero_param(4)
        opt = cls([p], lr=tau, reg="l1", lam=lam, backend=backend)
        ends.append(run(opt, p, lambda w: a * (w - b), 600)[-1])
    expected = b.sign() * (b.abs() - lam / a).clamp(min=0)
    torch.testing.assert_close(ends[0], expected, rtol=1e-12, atol=1e-12)
    assert ends[0].tolist()[2:] == [0.0, 0.0]
    torch.testing.assert_close(ends[1], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["rows", "blocks", "filters"])
def test_t2_of_groups(backend, case):
    """The same for groups: a target's group is shortened by lam sqrt(n_g) / a, or not at all."""
    assert case in GROUPED
    b, a, lam, ends = weight(case, F64).detach() + 0.05, 0.8, 0.3, []
    for cls in (ProxSGD, LinBreg):
        p = nn.Parameter(torch.zeros_like(b))
        opt = cls([p], lr=0.5, lam=lam, backend=backend, **REGS[case])
        ends.append(run(opt, p, lambda w: a * (w - b), 300)[-1])
    torch.testing.assert_close(ends[0], plain_prox(case, b, 1 / a, lam), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ends[1], b, rtol=1e-10, atol=1e-10)
    assert (ends[0] == 0).any()


def test_t1_linbreg_is_dual_averaging_with_a_growing_number_of_steps(backend):
    """RDA: w = argmin <mean g, w> + (lam / t) |w|_1 + |w|^2 / (2 delta tau t), from its definition.

    An independent loop on the running mean of its own gradients.
    """
    a = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=F64)
    b = torch.tensor([2.0, -0.7, 1.0, 0.4], dtype=F64)
    lam, delta, tau = 0.45, 1.3, 0.11
    p = zero_param(4)
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
    values = run(opt, p, lambda w: a * (w - b), 120)
    w, mean = torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64)
    for t in range(1, 121):
        mean = mean + (a * (w - b) - mean) / t
        # minimiser of mean w + (lam / tau / t) |w| + w^2 / (2 delta tau t)
        w = -delta * tau * t * mean.sign() * (mean.abs() - lam / (tau * t)).clamp(min=0)
        torch.testing.assert_close(values[t - 1], w, rtol=1e-10, atol=1e-10)
    assert (w != 0).all()


@pytest.mark.parametrize(("case", "seed"), [("l1", 0), ("l1", 1), ("l1", 2), ("rows", 0)])
@pytest.mark.parametrize(("lam", "delta"), [(0.5, 1.0), (3.0, 2.0)])
def test_t4_basis_pursuit_in_general(seed, lam, delta, case):
    """The limit solves min J + |w|^2 / (2 delta), A w = b; the dual is in range(A^T)."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(5, 12, generator=generator, dtype=F64)
    truth = torch.zeros(12, dtype=F64)
    truth[torch.randperm(12, generator=generator)[:3]] = 1.5
    b, lip = matrix @ truth, float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    p = nn.Parameter(torch.zeros(4, 3, dtype=F64) if case == "rows" else torch.zeros(12, dtype=F64))
    opt = LinBreg([p], lr=1.8 / (delta * lip), lam=lam, delta=delta, **REGS[case])
    for _ in range(2500):
        p.grad = (matrix.T @ (matrix @ p.detach().reshape(-1) - b)).reshape(p.shape)
        opt.step()
    w, v = p.detach().reshape(-1), opt.state[p]["dual"].reshape(-1)
    assert float((matrix @ w - b).abs().max()) < 1e-8
    solution = torch.linalg.lstsq(matrix.T, v.unsqueeze(1)).solution
    torch.testing.assert_close(matrix.T @ solution.squeeze(1), v, rtol=1e-8, atol=1e-8)
    # KKT: v = A^T y is a subgradient of the objective at w, so w minimises it among A w = b
    if case == "l1":
        torch.testing.assert_close(w, delta * shrink(v, lam), rtol=1e-12, atol=1e-12)
    else:
        rows = v.reshape(4, 3)
        length = rows.norm(dim=1, keepdim=True)
        expected = delta * rows * (1 - lam * 3**0.5 / length).clamp(min=0)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("offset", [0, 3, 9])
def test_m4_skipped_steps_do_not_count(offset):
    """Every fourth call is skipped by the loss scaler; a full step that is skipped comes again."""
    p = nn.Parameter(torch.zeros(3))
    opt = LinBreg([p], lr=0.1, reg="l1", lam=0.5, coarse_steps=9, phase_offset=offset)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
    full = taken = skipped_full = 0
    for n in range(1, 500):
        scale = float(scaler.scale(torch.ones(())))
        skipped = n % 4 == 0
        p.grad = torch.full((3,), float("inf") if skipped else scale)
        was_full = not opt.next_is_coarse
        scaler.step(opt)
        scaler.update(4.0)
        taken += not skipped
        full += was_full and not skipped
        skipped_full += was_full and skipped
        assert opt.steps_taken == taken
        assert full == (taken + offset) // 10
        assert (not opt.next_is_coarse) == (was_full if skipped else (taken + offset) % 10 == 9)
    assert skipped_full > 0
    assert taken == 499 - 499 // 4
