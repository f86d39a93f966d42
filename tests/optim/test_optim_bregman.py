"""LinBreg and AdaBreg: invariants, reductions, closed forms (bregman.md section 12)."""

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, mlp, run, shrink, zero_param
from sparse_optim import AdaBreg, LinBreg, bregman_param_groups, sparse_init_
from torch import nn
from torch.optim import SGD, Adam, AdamW

F64 = torch.float64


@pytest.mark.parametrize("make", [
    lambda g, b: LinBreg(g, lr=0.1, momentum=0.8, weight_decay=0.01, backend=b),
    lambda g, b: LinBreg(g, lr=0.1, momentum=0.8, coarse_steps=3, backend=b),
    lambda g, b: AdaBreg(g, lr=0.02, weight_decay=0.01, backend=b),
    lambda g, b: AdaBreg(g, lr=0.02, coarse_steps=3, backend=b),
], ids=["lin", "lin-ml", "ada", "ada-ml"])  # fmt: skip
@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16, F64])
def test_p1_p2_n7_readout_in_every_step_and_phase(backend, make, ptype):
    model = mlp(dtype=ptype)
    sparse_init_(model, 0.3)
    lam, delta = 0.05, 0.7
    opt = make(bregman_param_groups(model, lam=lam, delta=delta), backend)
    x, y = batch(dtype=ptype)
    sparse = seen_alive = False
    opt.init_dual()
    first = opt.param_groups[0]["params"][0]
    start = opt.state[first]["dual"].clone()
    for _ in range(25):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
        for p, live in zip(opt.param_groups[0]["params"], opt.live_counts(), strict=False):
            v = opt.state[p]["dual"]
            assert v.dtype == (F64 if ptype == F64 else torch.float32)
            assert_same_bits(p.detach(), (delta * shrink(v, lam)).to(ptype))  # +0.0 when dead
            xi = v - delta * shrink(v, lam) / delta
            rounding = 2 * torch.finfo(v.dtype).eps * float(v.abs().max())  # of the line above
            assert float(xi.abs().max()) <= lam + rounding
            alive = v.abs() > lam
            torch.testing.assert_close(xi[alive], lam * v[alive].sign(), rtol=0, atol=rounding)
            assert int(live) == int((v.abs() > lam).sum())
            sparse |= int(live) < p.numel()
            seen_alive |= int(live) > 0
    assert sparse
    assert seen_alive
    assert not torch.equal(opt.state[first]["dual"], start)


@pytest.mark.parametrize("delta", [0.1, 1.0, 7.0])
def test_p4_subgradient_start_reads_out_the_weights(delta):
    w = torch.randn(400)
    w[::5] = 0.0
    p = nn.Parameter(w.clone())
    opt = LinBreg([p], lr=0.0, reg="l1", lam=0.4, delta=delta)
    opt.init_dual()
    assert torch.equal(p.detach(), w)
    assert not opt.state[p]["dual"][::5].any()
    p.grad = torch.randn(400)
    with torch.no_grad():
        p.fill_(9.0)
    opt.step()  # lr 0: only the readout acts
    torch.testing.assert_close(p.detach(), w, rtol=1e-6, atol=5e-7)
    assert torch.equal(p.detach() == 0, w == 0)


def test_p5_the_dual_is_the_sum_of_the_gradients(backend):
    p = nn.Parameter(torch.randn(30, dtype=F64))
    opt = LinBreg([p], lr=0.1, reg="l1", lam=0.3, backend=backend)
    opt.init_dual()
    start, total = opt.state[p]["dual"].clone(), torch.zeros(30, dtype=F64)
    for k in range(20):
        opt.param_groups[0]["lr"] = 0.1 / (k + 1)
        p.grad = torch.randn(30, dtype=F64)
        total += opt.param_groups[0]["lr"] * p.grad
        opt.step()
    torch.testing.assert_close(opt.state[p]["dual"] - start, -total, rtol=1e-12, atol=1e-12)


def test_p7_the_readout_is_firmly_nonexpansive():
    v, w = torch.randn(500, dtype=F64), torch.randn(500, dtype=F64)
    delta, values = 0.7, []
    for dual in (v, w):
        p = zero_param(500)
        opt = LinBreg([p], lr=1.0, reg="l1", lam=0.4, delta=delta)
        p.grad = -dual
        opt.step()
        assert torch.equal(opt.state[p]["dual"], dual)
        values.append(p.detach().clone())
    gap = values[0] - values[1]
    assert gap.norm() <= delta * (v - w).norm()
    assert gap @ (v - w) >= gap @ gap / delta * (1 - 1e-12)


def plain_sgd(params, grads, buffers, lr, momentum, nesterov, delta):
    """torch.optim.SGD's rule with products and sums rounded apart, as all our backends do."""
    for p, g, b in zip(params, grads, buffers, strict=True):
        d = g
        if momentum:
            b.mul_(momentum).copy_(b + g)
            d = g + momentum * b if nesterov else b
        p.copy_(p - (lr * delta) * d)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("delta", [1.0, 0.5])
@pytest.mark.parametrize("reg", ["none", "l1"])
def test_r1_r2_lambda_0_is_sgd(backend, momentum, nesterov, delta, reg):
    """fp64 to 1e-12 of torch.optim.SGD over 300 steps; fp32 bitwise a plain uncontracted loop."""
    options = {"momentum": momentum, "nesterov": nesterov}
    a, b = nn.Parameter(torch.randn(40, dtype=F64)), None
    b = nn.Parameter(a.detach().clone())
    ours = LinBreg([a], lr=0.01, delta=delta, reg=reg, lam=0.0, backend=backend, **options)
    theirs = SGD([b], lr=0.01 * delta, **options)
    for _ in range(300):
        a.grad = torch.randn(40, dtype=F64)
        b.grad = a.grad.clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    if reg == "l1":
        return  # in fp32 delta (v0) rounds otherwise; the values follow from fp64
    p = nn.Parameter(torch.randn(40))
    q, buffer = p.detach().clone(), torch.zeros(40)
    ours = LinBreg([p], lr=0.01, delta=delta, backend=backend, **options)
    for _ in range(300):
        p.grad = torch.randn(40)
        plain_sgd([q], [p.grad], [buffer], 0.01, momentum, nesterov, delta)
        ours.step()
        assert torch.equal(p.detach(), q)
    assert ours.state[p].get("dual") is None


def test_r2_ema_form_is_sgd_with_dampening_and_a_zero_buffer(backend):
    a = nn.Parameter(torch.randn(40, dtype=F64))
    b = nn.Parameter(a.detach().clone())
    ours = LinBreg([a], lr=0.02, momentum=0.9, momentum_form="ema", delta=0.5, reg="l1",
                   backend=backend)  # fmt: skip
    theirs = SGD([b], lr=0.01, momentum=0.9, dampening=0.9)
    theirs.state[b]["momentum_buffer"] = torch.zeros(40, dtype=F64)
    for _ in range(300):
        a.grad = torch.randn(40, dtype=F64)
        b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("delta", [1.0, 0.5])
@pytest.mark.parametrize("reg", ["none", "l1"])
@pytest.mark.parametrize(
    ("ptype", "tolerance", "decay"),
    [(F64, 1e-12, 0.0), (F64, 1e-12, 0.1), (torch.float32, 1e-6, 0.0)],
)
def test_r3_lambda_0_is_adam(backend, delta, decay, reg, ptype, tolerance):
    """With decay in fp64 only: torch multiplies by 1 - lr decay, itself rounded to fp32."""
    a = nn.Parameter(torch.randn(40, dtype=ptype))
    b = nn.Parameter(a.detach().clone())
    # lr (and with it the decay) is scaled by delta
    ours = AdaBreg([a], lr=1e-3, delta=delta, weight_decay=decay, reg=reg, backend=backend)
    base = AdamW([b], lr=1e-3 * delta, weight_decay=decay) if decay else Adam([b], lr=1e-3 * delta)
    start = a.detach().clone()
    for _ in range(300):
        a.grad = torch.randn(40, dtype=ptype)
        b.grad = a.grad.clone()
        ours.step()
        base.step()
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert (a.detach() - start).abs().max() > 1e-3


def test_r4_inside_a_sign_cell_lambda_is_absent(backend):
    steps = []
    for lam in (0.0, 0.3, 5.0):
        p = nn.Parameter(torch.tensor([3.0, -2.0], dtype=F64))
        opt = LinBreg([p], lr=0.05, reg="l1", lam=lam, delta=2.0, backend=backend)
        steps.append(run(opt, p, lambda w: torch.tensor([1.0, -0.5]), 5))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(steps[0], steps[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(steps[0][0], torch.tensor([2.9, -1.95], dtype=F64))


@pytest.mark.parametrize("cls", [LinBreg, AdaBreg])
@pytest.mark.parametrize("c", [4.0, 0.125])
def test_r5_scaling_invariance_is_bitwise_for_powers_of_two(backend, cls, c):
    grads = torch.randn(30, 50)
    runs = []
    for s in (1.0, c):
        p = nn.Parameter(torch.zeros(50))
        opt = cls([p], lr=0.1 * s, reg="l1", lam=0.2 * s, delta=1.0 / s, backend=backend)
        feed = iter(grads)
        runs.append(run(opt, p, lambda w, feed=feed: next(feed), 30))
    assert torch.equal(runs[0], runs[1])
    assert (runs[0][-1] != 0).any()
