"""linbreg_step_, adabreg_step_: bits, hyper-parameters, masks and the shrinkage's closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from bregman_cases import ADABREG, LINBREG, build, math_dtype, run_with
from compare import assert_gaps_untouched, assert_same_lists, run_both

import sparse_kernels as sk
from sparse_kernels.testing import (
    LIST_CASES,
    SMALL_CASES,
    assert_bit_equal,
    bits_of,
    copy_of,
    error_budget,
    make_list,
    make_masks,
)

VARIANTS = [("linbreg", v) for v in LINBREG] + [("adabreg", v) for v in ADABREG]
# every layout with the variants that hold the most lists, every variant with some layouts
MATRIX = [(case, *v) for case in LIST_CASES if case != "tiny-1000" for v in VARIANTS
          if case in SMALL_CASES or v[1] in ("nesterov-masked", "counts-masked")]  # fmt: skip


@pytest.mark.parametrize(("case", "op", "variant"), MATRIX)
def test_equals_the_reference_bit_by_bit(twin, dtype, case, op, variant):
    kinds, hyper = {"linbreg": LINBREG, "adabreg": ADABREG}[op][variant]
    inputs = build(case, dtype, op, kinds)
    ours, theirs, got, want = run_both(twin, inputs, run_with(op, hyper))
    if op == "adabreg" and dtype == torch.float64:
        assert_close_to_an_ulp_of_the_root(inputs("cpu"), ours, theirs)
    assert_same_lists(ours, theirs)
    assert_bit_equal(got, want, "live")


def assert_close_to_an_ulp_of_the_root(before, ours, theirs):
    """Compare what depends on the root and take it out of the lists.

    torch's float64 square root on the CPU (MKL) is off by an ulp now and then, and no wider type
    is there to round from. An ulp of the root and one rounding in each of the four operations after
    it are 5 ulp of the step, the leak's two operations after these 2 more. |step| is at most
    1.1 (|dual before| + |dual after|) for a leak of at most 0.1, plus the decay, at most 0.06 of
    the parameter, plus lam = 0.4 where the parameter is thresholded itself. delta is at most 2.
    """
    eps = torch.finfo(torch.float64).eps
    duals = [d.pop("duals") for d in (before, ours, theirs)]
    params = [d.pop("params") for d in (before, ours, theirs)]
    start, got, want = params if duals[0] is None else duals
    for i in range(len(start)):
        decayed = params[0][i].nan_to_num(0.0, 0.0, 0.0).abs()
        beside = 0.06 * decayed + (0.4 if duals[0] is None else 0.0)
        allowed = 8 * eps * (start[i].abs() + want[i].abs() + beside)
        pairs = [(got[i], want[i], allowed), (params[1][i], params[2][i], 2 * allowed)]
        for a, e, tolerance in pairs:
            same = a.cpu().eq(e) | a.cpu().isnan() & e.isnan()
            assert (same | ((a.cpu() - e).abs() <= tolerance)).all(), i


@pytest.mark.parametrize("op", ["linbreg", "adabreg"])
def test_table_capacity_is_no_limit(twin, op):
    kinds, hyper = ((), {}) if op == "linbreg" else ((), {"step": 2})
    inputs = build("tiny-1000", torch.float32, op, kinds)
    ours, theirs, got, want = run_both(twin, inputs, run_with(op, hyper))
    assert_same_lists(ours, theirs)
    assert_bit_equal(got, want, "live")
    assert len(got) == 1000


@pytest.mark.parametrize(
    ("op", "variant"), [("linbreg", "nesterov-masked"), ("adabreg", "all-masked")]
)
@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_within_the_error_budget(twin, narrow, op, variant):
    kinds, hyper = {"linbreg": LINBREG, "adabreg": ADABREG}[op][variant]
    inputs = build("mixed", narrow, op, kinds, special=False)
    ours, theirs, _, _ = run_both(twin, inputs, run_with(op, hyper))
    exact = inputs("cpu")
    exact |= {k: copy_of(v, torch.float64) for k, v in exact.items() if k != "active"}
    run_with(op, hyper)(exact, "reference")
    for name in ("duals", "params"):
        for i, oracle in enumerate(exact[name]):
            if oracle.numel():
                budget = error_budget(ours[name][i].dtype)
                budget.check(ours[name][i], theirs[name][i], oracle, f"{name}[{i}]")


@pytest.mark.parametrize("op", ["linbreg", "adabreg"])
def test_the_reference_is_the_formula(op):
    """In float64, written out once more from the papers."""
    kinds, hyper = {"linbreg": LINBREG["nesterov-masked"], "adabreg": ADABREG["all-masked"]}[op]
    lists = build("seven", torch.float64, op, kinds, special=False)("cpu")
    before = {k: copy_of(v) for k, v in lists.items() if k != "active"}
    run_with(op, hyper)(lists, "reference")
    keep = make_masks(before["params"], 0.5, seed=6)[0].tolist()
    g, v = before["grads"][0].tolist(), before["duals"][0].tolist()
    lr, lam, delta, mu = 0.3, 0.4, hyper["delta"], hyper["weight_decay"]

    def readout(x):
        return delta * math.copysign(max(abs(x) - lam, 0.0), x)

    assert any(keep)
    assert not all(keep)
    for i in range(7):
        if op == "linbreg":
            b = 0.8 * before["momentum_buffers"][0][i].item() + g[i]
            move = lr * (g[i] + 0.8 * b)
        else:
            a = 0.7 * before["exp_avgs"][0][i].item() + 0.3 * g[i]
            u = 0.95 * before["exp_avg_sqs"][0][i].item() + 0.05 * g[i] ** 2
            move = lr / (1 - 0.7**7) * a / (math.sqrt(u) / math.sqrt(1 - 0.95**7) + 1e-3)
        dual = v[i] - move - lr * mu * readout(v[i])
        want = (dual, readout(dual)) if keep[i] else (v[i], before["params"][0][i].item())
        assert lists["duals"][0][i].item() == pytest.approx(want[0], rel=1e-12, abs=1e-12)
        assert lists["params"][0][i].item() == pytest.approx(want[1], rel=1e-12, abs=1e-12)


def test_support_is_decided_by_the_dual_alone(target, dtype):
    # a few ulp around the threshold: zero exactly for |v| <= lam, and never -0.0
    wide = math_dtype(dtype)
    lam = 0.3
    edge = torch.tensor([lam, -lam], dtype=wide)
    steps = [edge]
    for direction in (math.inf, 0.0):
        x = edge
        for _ in range(4):
            x = torch.nextafter(x, torch.sign(edge) * direction)
            steps.append(x)
    values = torch.cat([*steps, torch.tensor([0.0, -0.0], dtype=wide)]).to(target.device)
    for delta in (1.0, 0.125, 7.0):
        dual, param = values.clone(), torch.full_like(values, 9.0, dtype=dtype)
        zero = torch.zeros_like(param)
        live = sk.linbreg_step_(
            [param], [zero], [dual], 0.1, lam, delta, backend=target.backend
        )  # fmt: skip
        assert_bit_equal(dual, values, "duals")
        above = dual.abs() > torch.tensor(lam, dtype=wide, device=target.device)
        assert int(above.sum()) == 8
        assert int(live) == 8
        assert (bits_of(param)[~above] == 0).all()  # +0.0, for negative duals too
        if wide == dtype:
            assert torch.equal(param != 0, above)
            exact = delta * (dual.double() - torch.sign(dual).double() * edge[0].double())
            assert torch.equal(param[above].double(), exact[above].to(dtype).double())


@pytest.mark.parametrize("op", ["linbreg", "adabreg"])
def test_invariants_of_the_readout(target, dtype, op):
    # P1, P2, N7 of the spec, on what the step itself has stored
    hyper = {"delta": 0.5, "lam": 0.4} | ({"step": 2} if op == "adabreg" else {})
    lists = build("mixed", dtype, op, (), special=False)(target.device)
    live = run_with(op, hyper)(lists, target.backend)
    lam = torch.tensor(0.4, dtype=math_dtype(dtype), device=target.device)
    for count, v, theta in zip(live.tolist(), lists["duals"], lists["params"], strict=True):
        inside = v.abs() <= lam
        assert int((~inside).sum()) == count
        assert (bits_of(theta)[inside.contiguous()] == 0).all()
        expected = (0.5 * (v - lam.copysign(v))).to(dtype)
        assert_bit_equal(theta[~inside], expected[~inside], "params on the support")


@pytest.mark.parametrize("op", ["linbreg", "adabreg"])
@pytest.mark.parametrize("dual", [True, False], ids=["dual", "no-dual"])
def test_inactive_entries_keep_every_bit(target, dtype, op, dual):
    kinds = ("active",) if dual else ("active", "no-dual")
    kinds += ("buffers",) if op == "linbreg" else ("counts",)
    hyper = {"momentum": 0.9} if op == "linbreg" else {"step": 9}
    for case in ("mixed", "strided"):
        lists = build(case, dtype, op, kinds)(target.device)
        keep = make_masks(lists["params"], 0.5, seed=6)
        for g, k in zip(lists["grads"], keep, strict=True):
            g[~k] = float("nan")
        before = {k: copy_of(v) for k, v in lists.items() if v is not None and k != "active"}
        live = run_with(op, hyper)(lists, target.backend)
        for name, old in before.items():
            for i, (o, new, k) in enumerate(zip(old, lists[name], keep, strict=True)):
                assert_bit_equal(new[~k], o[~k], f"{name}[{i}], inactive", payloads=True)
                if name in ("momentum_buffers", "counts") and k.any():
                    assert (bits_of(new[k]) != bits_of(o[k])).any()
            assert_gaps_untouched(old, lists[name])
        if dual:
            lam = torch.tensor(0.4, dtype=math_dtype(dtype), device=target.device)
            above = [~(v.abs() <= lam) & k for v, k in zip(lists["duals"], keep, strict=True)]
        else:
            above = [(p != 0) & k for p, k in zip(lists["params"], keep, strict=True)]
        assert live.tolist() == [int(a.sum()) for a in above]


def test_reductions_to_gradient_descent(target):
    # R1: no shrinkage and delta = 1 is SGD, bit for bit, with lr * g as a product of its own
    w = make_list("mixed", torch.float32, target.device, seed=1)
    g = make_list("mixed", torch.float32, target.device, seed=2)
    expected = [x - torch.tensor(0.3).to(x) * y for x, y in zip(w, g, strict=True)]
    for duals in (copy_of(w), None):
        params = copy_of(w)
        sk.linbreg_step_(params, g, duals, 0.3, 0.0, backend=target.backend)
        assert_bit_equal(params, expected, "params")


def test_power_of_two_homogeneity(target):
    # R5: (lam, lr, delta, v) -> (c lam, c lr, delta / c, c v) gives identical parameters
    results = []
    for c in (1.0, 8.0):
        g = make_list("mixed", torch.float32, target.device, seed=2)
        v = [t * c for t in make_list("mixed", torch.float32, target.device, seed=3)]
        w = [torch.empty_like(t) for t in v]
        live = sk.linbreg_step_(w, g, v, 0.3 * c, 0.4 * c, 2.0 / c, backend=target.backend)
        results.append([*w, live])
    assert_bit_equal(results[1], results[0], "params, live")


def test_lr_0_changes_only_the_readout(target, dtype):
    lists = build("mixed", dtype, "linbreg", (), special=False)(target.device)
    before = copy_of(lists["duals"])
    run_with("linbreg", {"lr": 0.0, "lam": 1e30})(lists, target.backend)
    assert_bit_equal(lists["duals"], before, "duals")
    assert all((bits_of(p) == 0).all() for p in lists["params"])


def test_counts_give_every_coordinate_its_own_clock(target):
    # entries with count n - 1 move as a call with step = n moves them
    n = torch.tensor([1, 2, 5, 40], device=target.device)
    lists = {"params": [torch.zeros(4)], "grads": [torch.randn(4)], "duals": [torch.zeros(4)],
             "exp_avgs": [torch.randn(4)], "exp_avg_sqs": [torch.rand(4)]}  # fmt: skip
    lists = {k: [t.to(target.device) for t in v] for k, v in lists.items()}
    start = {k: copy_of(v) for k, v in lists.items()}
    counts = [(n - 1).int()]
    run = run_with("adabreg", {"step": 40})
    run({**lists, "counts": counts}, target.backend)
    assert counts[0].tolist() == n.tolist()
    for i, step in enumerate(n.tolist()):
        alone = {k: copy_of(v) for k, v in start.items()}
        run_with("adabreg", {"step": step})(alone, target.backend)
        for name in lists:
            assert_bit_equal(lists[name][0][i], alone[name][0][i], f"{name}, count {step}")


@pytest.mark.parametrize("op", ["linbreg", "adabreg"])
def test_does_not_depend_on_threads(target, op):
    hyper = {} if op == "linbreg" else {"step": 3}
    expected = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        lists = build("mixed", torch.float32, op, ("active",))(target.device)
        live = run_with(op, hyper)(lists, target.backend)
        lists["live"] = [live]
        expected = expected or lists
        assert_same_lists(lists, expected)
