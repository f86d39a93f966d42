"""nonnegative, readout, dual_leak and fine_scale of the Bregman steps, and proximal steps."""

from __future__ import annotations

import math

import pytest
import torch
from bregman_cases import build, math_dtype, run_with
from op_samples import cloned, samples, tensors_in

import sparse_kernels as sk
from sparse_kernels.testing import assert_bit_equal, bits_of, copy_of

INF, NAN = math.inf, math.nan
STEPS = {"linbreg": {}, "adabreg": {"step": 3}}
each_step = pytest.mark.parametrize("op", STEPS)


def linbreg(target, w, g, v, lr, lam, **options):
    """One step of copies in float32; the new parameter and dual as lists, and the live count."""
    w, g, v = (
        None if x is None else torch.tensor(x, device=target.device).float() for x in (w, g, v)
    )
    duals = None if v is None else [v]
    live = sk.linbreg_step_([w], [g], duals, lr, lam, **options, backend=target.backend)
    return w.tolist(), None if v is None else v.tolist(), int(live)


# ---- nonnegative ------------------------------------------------------------------------------


def test_nonnegative_readout_by_hand(target):
    v = [2.0, 0.75, 0.5, 0.25, 0.0, -0.0, -0.5, -3.0, -INF, INF]
    w, dual, live = linbreg(target, [9.0] * 10, [0.0] * 10, v, 0.1, 0.5, delta=2.0,
                            nonnegative=True)  # fmt: skip
    assert w == [3.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, INF]
    assert all(math.copysign(1.0, x) == 1.0 for x in w)
    assert dual == v
    assert live == 3
    w, _, live = linbreg(target, [0.0], [0.0], [NAN], 0.1, 0.5, nonnegative=True)
    assert math.isnan(w[0])
    assert live == 1


@each_step
def test_nonnegative_is_the_readout_of_the_step(target, dtype, op):
    # NaN counts as live; everything else is live above lam and +0.0 at and below it
    lists = build("mixed", dtype, op, ())(target.device)
    hyper = {"lam": 0.4, "delta": 0.5, "nonnegative": True, **STEPS[op]}
    live = run_with(op, hyper)(lists, target.backend)
    lam = torch.tensor(0.4, dtype=math_dtype(dtype), device=target.device)
    for count, v, theta in zip(live.tolist(), lists["duals"], lists["params"], strict=True):
        dead = v <= lam
        assert int((~dead).sum()) == count
        assert (bits_of(theta)[dead] == 0).all()
        assert_bit_equal(theta[~dead], (0.5 * (v - lam)).to(dtype)[~dead], "params")


# ---- without duals ----------------------------------------------------------------------------


def test_without_duals_lam_makes_it_a_proximal_step(target):
    w, g = [1.0, 0.5, 0.25, -0.25, -1.0, 0.0], [1.0, -1.0, 0.0, 0.0, 1.0, -4.0]
    # w - lr * delta * g = 0.5, 1.0, 0.25, -0.25, -1.5, 2.0
    got, _, live = linbreg(target, w, g, None, 0.25, 0.5, delta=2.0)
    assert got == [0.0, 0.5, 0.0, 0.0, -1.0, 1.5]
    assert [math.copysign(1.0, x) for x in got[2:4]] == [1.0, 1.0]
    assert live == 3
    got, _, live = linbreg(target, w, g, None, 0.25, 0.5, delta=2.0, nonnegative=True)
    assert got == [0.0, 0.5, 0.0, 0.0, 0.0, 1.5]
    assert live == 2
    got, _, live = linbreg(target, w, g, None, 0.25, 0.0, delta=2.0, nonnegative=True)
    assert got == [0.5, 1.0, 0.25, 0.0, 0.0, 2.0]
    assert live == 4


def test_without_duals_and_lam_zeros_keep_their_sign(target):
    got, _, live = linbreg(target, [-0.0, 0.0, -0.0], [0.0, 0.0, 0.0], None, 0.5, 0.0)
    assert [math.copysign(1.0, x) for x in got] == [-1.0, 1.0, -1.0]
    assert live == 0


def test_proximal_sgd_minimises_the_lasso(target):
    # T2: a / 2 (w - b)^2 + weight |w| has its minimum at S_{weight / a}(b)
    a = torch.tensor([1.0, 0.5, 2.0, 1.0], device=target.device)
    b = torch.tensor([2.0, -3.0, 0.125, -0.5], device=target.device)
    w, lr, weight = torch.zeros_like(a), 0.5, 0.75
    for _ in range(100):
        sk.linbreg_step_([w], [a * (w - b)], None, lr, lr * weight, backend=target.backend)
    expected = torch.sign(b) * (b.abs() - weight / a).clamp(min=0.0)
    assert torch.allclose(w, expected, rtol=1e-6, atol=0.0)
    assert (w == 0).tolist() == [False, False, True, True]


# ---- readout=False ----------------------------------------------------------------------------


@each_step
def test_without_readout_the_parameter_is_only_read(target, dtype, op):
    lists = build("mixed", dtype, op, ("zeros", "active"))(target.device)
    with_readout = {k: copy_of(v) if v is not None else v for k, v in lists.items()}
    before = copy_of(lists["params"])
    versions = [p._version for p in lists["params"]]
    for p in lists["params"]:
        p.requires_grad_(True)  # nothing of it is modified
    live = run_with(op, {**STEPS[op], "readout": False})(lists, target.backend)
    for p in lists["params"]:
        p.requires_grad_(False)
    run_with(op, STEPS[op])(with_readout, target.backend)
    assert live.tolist() == [0] * len(before)
    assert [p._version for p in lists["params"]] == versions
    assert_bit_equal(lists["params"], before, "params", payloads=True)
    assert_bit_equal(lists["duals"], with_readout["duals"], "duals")  # no decay: nothing reads it


def test_without_readout_the_decay_is_of_the_parameter_as_it_stands(target):
    options = {"weight_decay": 0.5, "readout": False}
    w, v, live = linbreg(target, [8.0, 0.0], [1.0, 1.0], [3.0, 3.0], 0.5, 0.25, **options)
    assert (w, v, live) == ([8.0, 0.0], [3.0 - 0.5 - 0.25 * 8.0, 2.5], 0)


# ---- dual_leak --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["shrunk", "nonnegative", "given"])
def test_leak_is_of_inactive_entries(target, form):
    v = [0.5, -0.5, 0.75, -0.75, 0.25]
    w = [0.0, 0.0, 2.0, -2.0, 0.0]
    options = {"shrunk": {}, "nonnegative": {"nonnegative": True}, "given": {"readout": False}}
    _, got, _ = linbreg(target, w, [0.0, 1.0, 0.0, 0.0, 1.0], v, 0.5, 0.5, dual_leak=0.25,
                        **options[form])  # fmt: skip
    fourth = -0.75 * 0.75 if form == "nonnegative" else -0.75  # inactive below -lam, too
    assert got == [0.375, -0.5 - 0.5 + 0.125, 0.75, fourth, 0.25 - 0.5 - 0.0625]


def test_leak_sets_a_floor_under_the_gradients_that_give_birth(target):
    # N9: below gamma lam / lr never, above it at step 2,397
    gamma, lr, lam = 1e-3, 0.1, 0.5
    g = -gamma * lam / lr * torch.tensor([0.9, 1.1], device=target.device, dtype=torch.float64)
    w, v = torch.zeros_like(g), torch.zeros_like(g)
    births = []
    for step in range(1, 5001):
        sk.linbreg_step_([w], [g], [v], lr, lam, dual_leak=gamma, backend=target.backend)
        if w[1] != 0 and not births:
            births.append(step)
    assert births == [2397]
    assert w[0] == 0
    assert v[0].item() == pytest.approx(0.9 * lam * (1 - (1 - gamma) ** 5000), rel=1e-9)


@each_step
def test_no_leak_is_no_subtraction(target, dtype, op):
    # 0 * v would turn a dual of -0.0 into +0.0, and infinite ones into NaN
    lists = build("mixed", dtype, op, ())(target.device)
    before = copy_of(lists["duals"])
    for g in lists["grads"]:
        g.zero_()
    for a in lists.get("exp_avgs", []):
        a.zero_()
    run_with(op, {**STEPS[op], "lr": 0.0})(lists, target.backend)
    assert_bit_equal(lists["duals"], before, "duals")


# ---- fine_scale -------------------------------------------------------------------------------


def test_fine_scale_by_hand(target):
    # inactive: 0.25 -> 0.25 + 8 * 0.125 capped at 0.5 + 0.125, sign kept; live: the plain step
    v, g = [0.25, -0.25, 0.25, 0.0, 0.75, -0.75], [-0.25, 0.25, 0.0625, 0.0, -0.25, 0.25]
    _, got, live = linbreg(target, [0.0] * 6, g, v, 0.5, 0.5, fine_scale=8.0)
    assert got == [0.625, -0.625, 0.25 - 8 * 0.03125, 0.0, 0.875, -0.875]
    assert live == 4


def test_fine_scale_of_nonnegative_has_no_lower_cap(target):
    # what a long negative history has put below -lam stays there
    _, got, live = linbreg(target, [0.0] * 2, [0.25, -8.0], [-4.0, -4.0], 0.5, 0.5, fine_scale=4.0,
                           nonnegative=True)  # fmt: skip
    assert got == [-4.5, 0.5 + 4.0]
    assert live == 1


def test_fine_scale_does_not_scale_the_decay_and_keeps_nan(target):
    _, got, _ = linbreg(target, [0.0] * 3, [NAN, INF, 1.0], [0.0, 0.0, 1.0], 0.5, 0.5,
                        fine_scale=4.0, weight_decay=0.5)  # fmt: skip
    assert math.isnan(got[0])
    assert got[1:] == [-INF, 1.0 - 0.5 - 0.25 * 0.5]


def test_newborns_do_not_overshoot(target):
    # M15: a = 1, b = 2, nine coarse steps before each fine one; without the cap the peak is 17.5
    lam, lr, b = 0.5, 0.9, 2.0
    w, v = torch.zeros(1, device=target.device), torch.zeros(1, device=target.device)
    seen = []
    for step in range(200):
        fine = step % 10 == 9
        if step % 10 == 0:
            active = sk.pack_mask([v.abs() > lam], backend="reference")
        sk.linbreg_step_(
            [w], [w - b], [v], lr, lam, active=None if fine else active,
            fine_scale=10.0 if fine else 1.0, backend=target.backend,
        )  # fmt: skip
        seen.append(w.item())
    assert [x != 0 for x in seen[:10]] == [False] * 9 + [True]
    assert max(seen) <= 2.0
    assert seen[-1] == pytest.approx(2.0, rel=1e-6)


def test_fine_scale_of_adabreg_is_of_its_whole_step(target):
    # a constant gradient of any size moves the dual by lr: by 10 lr while inactive, up to the cap
    lists = {k: [torch.zeros(2, dtype=torch.float64, device=target.device)]
             for k in ("params", "duals", "exp_avgs", "exp_avg_sqs")}  # fmt: skip
    lists["grads"] = [torch.tensor([-1.0, 1e-3], dtype=torch.float64, device=target.device)]
    for step, size in enumerate([0.1, 0.2, 0.3, 0.4, 0.46, 0.47, 0.48], start=1):
        sk.adabreg_step_(**lists, lr=0.01, lam=0.45, step=step, eps=0.0, fine_scale=10.0,
                         backend=target.backend)  # fmt: skip
        assert lists["duals"][0].tolist() == pytest.approx([size, -size], rel=1e-12)


# ---- dispatcher ops ---------------------------------------------------------------------------

BAD = [{"duals": [], "readout": False}, {"duals": [], "dual_leak": 0.1},
       {"duals": [], "fine_scale": 2.0}, {"readout": False, "fine_scale": 2.0}]  # fmt: skip


@each_step
@pytest.mark.parametrize("change", BAD, ids=["-".join(c) for c in BAD])
def test_the_dispatcher_op_checks_on_its_own(op, change):
    if "cpp" not in sk.available_backends():
        pytest.skip("the C++ extension is not built")
    function = getattr(torch.ops.sparse_kernels, f"{op}_step_")
    names = [a.name for a in function.default._schema.arguments]
    given = cloned(samples(f"{op}_step_")[0])  # the last arguments have defaults
    arguments = dict(zip(names, given, strict=False)) | change
    before = copy_of(tensors_in(tuple(arguments.values())))
    with pytest.raises(RuntimeError, match=f"{op}_step_: .*need"):
        function(**arguments)
    assert_bit_equal(tensors_in(tuple(arguments.values())), before, "lists")
