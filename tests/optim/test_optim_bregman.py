"""LinBreg and AdaBreg: invariants, reductions, closed forms (bregman.md section 12)."""

import math

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, mlp
from sparse_optim import AdaBreg, LinBreg, bregman_param_groups, sparse_init_
from torch import nn
from torch.optim import SGD, Adam, AdamW

F64 = torch.float64


def shrink(v, lam):
    return v - v.clamp(-lam, lam)


def zero_param(n=1, dtype=F64):
    return nn.Parameter(torch.zeros(n, dtype=dtype))


def run(opt, p, gradient, steps):
    """Steps with ``gradient(p)``; the list of parameter values after each."""
    seen = []
    for _ in range(steps):
        p.grad = gradient(p.detach()).to(p.dtype)
        opt.step()
        seen.append(p.detach().clone())
    return torch.stack(seen)


def birth(values):
    """Number of the first step after which the (single) entry is not zero."""
    alive = (values.reshape(len(values)) != 0).nonzero()
    return int(alive[0]) + 1 if len(alive) else None


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


@pytest.mark.parametrize(("a", "b", "lam", "delta", "tau", "k"), [
    (1.0, 2.0, 0.5, 1.0, 0.1, 3), (2.0, -0.7, 0.3, 2.0, 0.05, 5), (0.5, 1.0, 1.0, 1.0, 0.3, 7),
])  # fmt: skip
def test_t1_birth_step_value_and_limit(backend, a, b, lam, delta, tau, k):
    p = zero_param()
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
    values = run(opt, p, lambda w: a * (w - b), 400).reshape(-1)
    assert birth(values) == k == math.floor(lam / (tau * a * abs(b))) + 1
    expected = delta * (k * tau * a * b - math.copysign(lam, b))
    assert float(values[k - 1]) == pytest.approx(expected, abs=1e-12)
    ratio = (values[k] - b) / (values[k - 1] - b)
    assert float(ratio) == pytest.approx(1 - delta * tau * a, abs=1e-9)
    assert float(values[-1]) == pytest.approx(b, abs=1e-9)
    dual = b / delta + math.copysign(lam, b)
    assert float(opt.state[p]["dual"]) == pytest.approx(dual, abs=1e-9)


def test_t1_at_unit_rate_the_step_after_birth_lands_on_the_target():
    p = zero_param()
    opt = LinBreg([p], lr=0.5, reg="l1", lam=0.7, delta=2.0)
    values = run(opt, p, lambda w: w - 0.3, 40).reshape(-1)
    assert float(values[birth(values)]) == pytest.approx(0.3, abs=1e-12)


def test_t2_births_are_ordered_and_the_limit_is_unbiased(backend):
    a = torch.tensor([1.0, 0.3, 2.0, 0.7], dtype=F64)
    b = torch.tensor([0.5, 2.0, 0.9, -1.0], dtype=F64)
    p = zero_param(4)
    opt = LinBreg([p], lr=0.1, reg="l1", lam=0.41, backend=backend)
    values = run(opt, p, lambda w: a * (w - b), 3000)
    births = [birth(values[:, i]) for i in range(4)]
    order = (a * b.abs()).argsort(descending=True).tolist()
    assert [births[i] for i in order] == sorted(births)
    assert births[order[0]] < births[order[-1]]
    torch.testing.assert_close(values[-1], b, rtol=0, atol=1e-9)


def test_t3_decay_acts_on_the_support_only(backend):
    p = nn.Parameter(torch.tensor([1.5, 0.0, -2.0], dtype=F64))
    opt = LinBreg([p], lr=0.1, weight_decay=0.5, reg="l1", lam=0.2, delta=0.8, backend=backend)
    opt.init_dual()
    opt.state[p]["dual"][1] = 0.15
    start = p.detach().clone()
    values = run(opt, p, torch.zeros_like, 12)
    factor = (1 - 0.8 * 0.1 * 0.5) ** 12
    torch.testing.assert_close(values[-1], factor * start, rtol=1e-12, atol=1e-12)
    assert float(opt.state[p]["dual"][1]) == 0.15


@pytest.mark.parametrize(("c", "step"), [(1.0, 500), (1e-3, 500), (1e-6, 505)])
def test_t3b_adabreg_births_ignore_the_size_of_the_gradient(backend, c, step):
    """lam = 0.4995: at 0.5 the last case stands exactly on the threshold after 505 steps."""
    p = zero_param()
    opt = AdaBreg([p], lr=1e-3, reg="l1", lam=0.4995, backend=backend)
    values = run(opt, p, lambda w: torch.full((1,), -c), 510)
    assert birth(values) == step == math.floor(0.4995 * (1 + 1e-8 / c) / 1e-3) + 1
    q = zero_param()
    linear = LinBreg([q], lr=1e-1, reg="l1", lam=0.503 * c, backend=backend)
    assert birth(run(linear, q, lambda w: torch.full((1,), -c), 20)) == 6


@pytest.mark.parametrize(("s", "limit"), [
    (0.25, (0.85, 0.30)), (0.5, (0.9, 0.2)), (1.0, (1.0, 0.0)), (2.0, (1.0, 0.0)),
])  # fmt: skip
def test_t4_basis_pursuit(backend, s, limit):
    row, target, delta = torch.tensor([2.0, 1.0], dtype=F64), 2.0, 1.0
    p = zero_param(2)
    opt = LinBreg([p], lr=0.3, reg="l1", lam=s / delta, delta=delta, backend=backend)
    values = run(opt, p, lambda w: row * (row @ w - target), 4000)
    torch.testing.assert_close(values[-1], torch.tensor(limit, dtype=F64), rtol=0, atol=1e-6)
    dual = opt.state[p]["dual"]
    assert float(dual[0] / dual[1]) == pytest.approx(2.0, abs=1e-9)


def least_squares(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=F64)


def test_t5_descent_and_rate(backend):
    a = least_squares(12, 20)
    truth = torch.zeros(20, dtype=F64)
    truth[[2, 7, 11]] = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    b, delta, lam = a @ truth, 0.8, 0.6
    lip = float(torch.linalg.matrix_norm(a, 2)) ** 2

    def loss(w):
        return 0.5 * float((a @ w - b).square().sum())

    p = zero_param(20)
    tau = 1.9 / (delta * lip)
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
    opt.init_dual()
    for _ in range(300):
        w, v = p.detach().clone(), opt.state[p]["dual"].clone()
        p.grad = a.T @ (a @ w - b)
        opt.step()
        step = p.detach() - w
        xi = (opt.state[p]["dual"] - p.detach() / delta) - (v - w / delta)
        gain = float(xi @ step) / tau + (1 / (delta * tau) - lip / 2) * float(step @ step)
        assert loss(p.detach()) + gain <= loss(w) + 1e-10

    def energy(w):
        return lam * float(w.abs().sum()) + float(w @ w) / (2 * delta)

    def distance(w, v):  # Bregman distance from the truth with subgradient v
        return energy(truth) - energy(w) - float(v @ (truth - w))

    p = zero_param(20)
    tau = 1.0 / (delta * lip)
    opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
    opt.init_dual()
    start = last = distance(p.detach(), opt.state[p]["dual"])
    for k in range(1, 2001 if backend == "auto" else 301):
        p.grad = a.T @ (a @ p.detach() - b)
        opt.step()
        now = distance(p.detach(), opt.state[p]["dual"])
        assert now <= last + 1e-10
        assert loss(p.detach()) <= start / (k * tau) + 1e-10
        last = now


@pytest.mark.parametrize(("form", "c", "step"), [
    ("sgd", 1.0, 12), ("sgd", 0.3, 26), ("ema", 1.0, 60), ("ema", 0.3, 177),
])  # fmt: skip
def test_n11_momentum_birth_clock(backend, form, c, step):
    p = zero_param()
    opt = LinBreg([p], lr=0.01, momentum=0.9, momentum_form=form, reg="l1", lam=0.503,
                  backend=backend)  # fmt: skip
    assert birth(run(opt, p, lambda w: torch.full((1,), -c), 200)) == step


@pytest.mark.parametrize("ptype", [torch.bfloat16, torch.float16])
def test_n6_16_bit_weights_with_fp32_duals(backend, ptype):
    for a, b, lam, delta, tau, k in ((1, 2, 0.5, 1, 0.1, 3), (2, -0.75, 0.3, 2, 0.05, 5)):
        p = nn.Parameter(torch.zeros(1, dtype=ptype))
        opt = LinBreg([p], lr=tau, reg="l1", lam=lam, delta=delta, backend=backend)
        assert birth(run(opt, p, lambda w, a=a, b=b: a * (w - b), 10)) == k
        assert opt.state[p]["dual"].dtype == torch.float32
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    opt = LinBreg([p], lr=1.03e-3, reg="l1", lam=0.6, backend=backend)
    assert birth(run(opt, p, lambda w: torch.full((1,), -1.0), 600)) == 583
    dual = torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(2000):
        dual += 1.03e-3
    assert float(dual) == 0.5  # what a 16-bit dual would have done


def test_n6_unregularised_16_bit_weights_have_a_master(backend):
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    opt = LinBreg([p], lr=1e-3, backend=backend)
    run(opt, p, lambda w: torch.ones(1), 500)
    assert float(p.detach()) == pytest.approx(0.5, abs=2e-3)  # plain bf16 would stay at 1
    assert opt.state[p]["dual"].dtype == torch.float32


def test_n12_the_support_is_decided_by_the_dual():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    opt = LinBreg([p], lr=1.0, reg="l1", lam=0.5, coarse_steps=2, phase_offset=2)
    p.grad = torch.zeros(1, dtype=torch.float16)
    opt.init_dual()
    opt.state[p]["dual"].fill_(0.5 + 6e-8)
    opt.step()  # the full step; theta = 6e-8 does not survive fp16's rounding well
    opt.state[p]["dual"].fill_(torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item())
    opt.step()
    assert int(opt.active_counts()[0]) == 1
