"""Coarse phases on copies and under masks, for every regulariser (bregman.md 12: M3 to M16)."""

import copy
import pickle

import pytest
import torch
from optim_cases import assert_same_bits, through_disk
from regularizer_cases import OPTIMIZERS, REGS, drive, group_sums, weight
from sparse_optim import AdaBreg, LinBreg
from torch import nn

F64 = torch.float64
LAM = 0.3


def make(cls, p, case, backend, options, **own):
    given = {"lam": LAM, "coarse_steps": 4, **REGS[case], **options, **own}
    return cls([p], backend=backend, **given)


def same_state(a, b):
    assert list(a) == list(b)
    for k, v in a.items():
        if isinstance(v, torch.Tensor):
            assert torch.equal(v, b[k]), k
            assert v.dtype == b[k].dtype
        else:
            assert v == b[k]


def alive_units(case, p):
    """Entries in units that are not zero."""
    if case in ("l1", "l1_pos"):
        return p != 0
    return group_sums(case, p.detach().abs().double()) > 0


@pytest.mark.parametrize("case", REGS)
@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16])
def test_m8_copies_and_masks_give_the_same_bits(backend, case, cls, options, ptype):
    params = [weight(case, ptype) for _ in range(2)]
    opts = [
        make(cls, p, case, backend, options, compact=c)
        for p, c in zip(params, (True, False), strict=True)
    ]
    copied = []

    def look(opt, p):
        copied.append((opt is opts[0], opt._active.compacts(p)))

    for a, b in drive(opts, params, 13, off=look):
        assert_same_bits(a, b)
    # the comparison compares something
    assert ((True, True) in copied) == (case not in ("blocks", "sparse_blocks"))
    assert (False, True) not in copied
    same_state(opts[0].state[params[0]], opts[1].state[params[1]])
    assert opts[0].active_counts()[0] == int(opts[1].active_counts()[0])


@pytest.mark.parametrize("case", REGS)
@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
@pytest.mark.parametrize("compact", [True, False])
def test_m3_m16_units_off_a_keep_every_bit_whatever_their_gradient(
    backend, case, cls, options, compact
):
    p = weight(case)
    opt = make(cls, p, case, backend, options, compact=compact, phase_offset=4)
    drive([opt], [p], 1)
    on = alive_units(case, p)
    assert 0 < int(on.sum()) < p.numel()
    whole_units = group_sums(case, on.double()) if case not in ("l1", "l1_pos") else on.double()
    assert torch.equal(whole_units > 0, on)  # units are active as wholes
    before = {k: v.clone() for k, v in opt.state[p].items() if isinstance(v, torch.Tensor)}
    start = p.detach().clone()

    def poison(opt, p):
        p.grad[~on] = float("nan") if opt.steps_taken % 2 else float("inf")

    for (w,) in drive([opt], [p], 4, off=poison):
        assert_same_bits(w[~on], torch.zeros_like(w[~on]))
        assert w.isfinite().all()
    assert not opt.next_is_coarse
    assert (p.detach()[on] != start[on]).float().mean() > 0.5
    for k, v in before.items():
        if k == "active":
            continue
        now = opt.state[p][k]
        assert torch.equal(now[~on], v[~on]), k
        assert (now[on] != v[on]).any(), k
    if cls is AdaBreg:
        assert set(opt.state[p]["count"][on].tolist()) == {5}
        assert set(opt.state[p]["count"][~on].tolist()) == {1}


@pytest.mark.parametrize("case", REGS)
@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
def test_m9_the_phase_is_the_plain_method_on_the_active_units(backend, case, cls, options):
    """Units that touch zero and come back included: the same steps with nothing frozen."""
    p, q = weight(case, F64), weight(case, F64)
    on, sign = alive_units(case, p), p.detach().sign()
    with torch.no_grad():  # all as large, so that groups reach zero as wholes
        p.copy_(0.4 * sign)
        q.copy_(0.4 * sign)
    coarse = make(cls, p, case, backend, options, coarse_steps=30)
    plain = make(cls, q, case, backend, options, coarse_steps=0)
    touched, returned = torch.zeros_like(on), torch.zeros_like(on)
    for step in range(30):
        for opt, w in ((coarse, p), (plain, q)):
            w.grad = sign if step < 15 else -sign
            opt.step()
        if cls is LinBreg:
            assert_same_bits(p.detach()[on], q.detach()[on])
        else:  # counts against one step number
            torch.testing.assert_close(p.detach()[on], q.detach()[on], rtol=1e-12, atol=1e-12)
        assert not p.detach()[~on].any()
        zero = ~alive_units(case, p) & on
        returned |= touched & ~zero
        touched |= zero
    assert returned.any()


@pytest.mark.parametrize("case", REGS)
@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
@pytest.mark.parametrize("ptype", [torch.float32, torch.bfloat16])
def test_m11_saving_copying_pickling_and_looking_in_mid_phase(backend, case, cls, options, ptype):
    p = weight(case, ptype)
    opt = make(cls, p, case, backend, options)
    drive([opt], [p], 7)
    assert opt.next_is_coarse
    q = nn.Parameter(p.detach().clone())
    resumed = make(cls, q, case, backend, {})
    resumed.load_state_dict(through_disk(opt.state_dict()))
    (r,), copied = (pair := copy.deepcopy(([p], opt)))[0], pair[1]
    (s,), pickled = pickle.loads(pickle.dumps(([p], opt)))
    other = weight(case, ptype)
    with torch.no_grad():
        other.copy_(p)
    looked = make(cls, other, case, backend, {})
    looked.load_state_dict(opt.state_dict())
    params, opts = [p, q, r, s, other], [opt, resumed, copied, pickled, looked]

    def look(opt, p):
        if opt is looked:
            assert opt.state[p]["dual"].shape == p.shape

    for found in drive(opts, params, 9, off=look):
        for w in found[1:]:
            assert_same_bits(found[0], w)
    for w, o in zip(params[1:], opts[1:], strict=True):
        same_state(opt.state[p], o.state[w])
    assert pickled.backend == backend


@pytest.mark.parametrize("case", [c for c in REGS if "blocks" not in c])
@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
@pytest.mark.parametrize("look", [False, True])
def test_gradients_of_the_active_entries_alone(backend, case, cls, options, look):
    """From the first step on, without p.grad and without writing p: the dense way, bit by bit."""
    p, q = weight(case), weight(case)
    dense = make(cls, p, case, backend, options)
    sparse = make(cls, q, case, backend, options)
    sparse.init_dual()
    sparse.writes_params = False
    generator = torch.Generator().manual_seed(4)
    for step in range(14):
        grad = torch.randn(p.shape, generator=generator)
        p.grad = grad.clone()
        dense.step()
        sparse.zero_grad()
        if sparse.next_is_coarse:
            index, run = sparse.active_index(q)
            before = q.detach().clone()
            entries = (index.long().unsqueeze(1) * run + torch.arange(run)).reshape(-1)
            sparse.set_active_gradient(q, grad.reshape(-1)[entries])
            if look and step % 2:
                assert sparse.state[q]["dual"].shape == q.shape  # what was given is still there
                before = q.detach().clone()
            sparse.step()
            assert_same_bits(q.detach(), before)
            assert torch.equal(sparse.active_values(q), p.detach().reshape(-1)[entries])
        else:
            q.grad = grad.clone()
            sparse.step()
            assert_same_bits(q.detach(), p.detach())
    sparse.writes_params = True
    assert_same_bits(q.detach(), p.detach())
    same_state(dense.state[p], sparse.state[q])


def test_a_given_gradient_is_read_at_the_step_and_left_alone(backend):
    """As ``p.grad``: what is written to it in between counts, and the step does not write to it."""
    p, q = weight("l1"), weight("l1")
    opts = [make(LinBreg, x, "l1", backend, {}) for x in (p, q)]
    for opt in opts:
        opt.init_dual()
    given = [
        torch.ones(opt.active_index(x)[0].numel()) for opt, x in zip(opts, (p, q), strict=True)
    ]
    before = p.detach().clone()
    given[1].mul_(3.0)
    for opt, x, g in zip(opts, (p, q), given, strict=True):
        opt.set_active_gradient(x, g)
    given[0].mul_(3.0)
    kept = given[0].clone()
    for opt in opts:
        opt.step()
    assert_same_bits(p.detach(), q.detach())
    assert not torch.equal(p.detach(), before)
    assert torch.equal(given[0], kept)


def test_what_set_active_gradient_refuses():
    p = weight("l1")
    opt = LinBreg([p], lr=0.1, reg="l1", lam=LAM, coarse_steps=2)
    with pytest.raises(RuntimeError, match=r"init_dual"):
        opt.active_index(p)
    opt.init_dual()
    count = int((p != 0).sum())
    for n in (1, count - 1, count + 1):
        with pytest.raises(ValueError, match=f"{count} active entries, got {n} values"):
            opt.set_active_gradient(p, torch.ones(n))
    opt.set_active_gradient(p, torch.ones(count))
    opt.zero_grad()
    start = p.detach().clone()
    opt.step()  # nothing was left of the gradient
    assert_same_bits(p.detach(), start)
    for _ in range(1):
        opt.set_active_gradient(p, torch.ones(count))
        opt.step()
    assert not opt.next_is_coarse
    with pytest.raises(RuntimeError, match="every entry's gradient"):
        opt.set_active_gradient(p, torch.ones(count))
    dense = LinBreg([nn.Parameter(torch.ones(4))], lr=0.1, reg="l1", lam=LAM, coarse_steps=2)
    dense.init_dual()
    with pytest.raises(RuntimeError, match="at most half"):
        dense.active_index(dense.param_groups[0]["params"][0])


@pytest.mark.parametrize("case", REGS)
def test_mask_grads_gives_what_the_next_step_takes(backend, case):
    p, q = weight(case), weight(case)
    opts = [make(LinBreg, w, case, backend, {"lr": 0.1}) for w in (p, q)]
    for step in range(9):
        grad = torch.randn(p.shape)
        p.grad = grad.clone()
        coarse, on = opts[0].next_is_coarse, alive_units(case, p)
        if coarse:
            p.grad[~(p != 0)] = p.grad[~(p != 0)] * 1.0
            if step % 5 == 0:
                p.grad[~on] = float("nan")
        q.grad = p.grad.clone()
        opts[0].mask_grads_()
        if coarse and step % 5 == 0:  # a phase begins: A is what is alive
            assert_same_bits(p.grad[~on], torch.zeros_like(p.grad[~on]))
            assert_same_bits(p.grad[on], q.grad[on])
        if not coarse:
            assert_same_bits(p.grad, q.grad)
        for opt in opts:
            opt.step()
        assert_same_bits(p.detach(), q.detach())
    if opts[0].next_is_coarse and case in ("l1", "rows"):
        p.grad = torch.randn(p.shape)
        index, run = opts[0].active_index(p)
        opts[0].set_active_gradient(p, torch.full((index.numel() * run,), 2.0))
        opts[0].mask_grads_()
        assert set(p.grad.unique().tolist()) == {0.0, 2.0}
        assert int((p.grad == 2.0).sum()) == index.numel() * run
