"""The base step fused with the restore agrees with torch's optimizers (property 12)."""

import copy
import itertools

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, mlp, train_sam
from sam_cases import OurCalls, draw, inject, injected_step, make_params, random_masks
from sparse_optim import SAM, SSAM
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

SGD_OPTIONS = [
    {"momentum": m, "dampening": d, "nesterov": n, "weight_decay": wd, "maximize": up}
    for m, d, n in ((0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.9, 0.0, True))
    for wd, up in itertools.product((0.0, 0.05), (False, True))
]
ADAM_OPTIONS = [
    {"betas": b, "eps": e, "weight_decay": wd, "maximize": up}
    for b, e in (((0.9, 0.999), 1e-8), ((0.6, 0.9), 1e-4), ((0.0, 0.5), 1e-3))
    for wd, up in itertools.product((0.0, 0.05), (False, True))
]
BASES = [(SGD, SGD_OPTIONS), (Adam, ADAM_OPTIONS), (AdamW, ADAM_OPTIONS)]


def pair(base, options, masked, *, dtype=torch.float32, backend="auto", lr=0.05, **own):
    """SAM over one group per option, and the plain base over equal parameters."""
    groups, plain = ([{"params": make_params(dtype=dtype), **o} for o in options] for _ in "ab")
    if masked:
        opt = SSAM(groups, base, rho=0.3, lr=lr, backend=backend, **own)
        opt.set_masks(random_masks([p for g in opt.param_groups for p in g["params"]]))
    else:
        opt = SAM(groups, base, rho=0.3, lr=lr, backend=backend, **own)
    other = base(plain, lr=lr, **own)
    return opt, other, *([p for g in o.param_groups for p in g["params"]] for o in (opt, other))


def plain_step(opt, params, grads):
    inject(params, grads)
    opt.step()
    opt.zero_grad()


def assert_same_state(opt, other):
    """Keys, dtypes, shapes and strides of the checkpoint are torch's own."""
    ours, theirs = opt.base_optimizer.state_dict()["state"], other.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for k, values in theirs.items():
        assert list(ours[k]) == list(values)
        for name, v in values.items():
            mine = ours[k][name]
            assert (mine.dtype, mine.shape) == (v.dtype, v.shape), name
            assert (mine.stride(), mine.device) == (v.stride(), v.device), name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ptype", [torch.float32, torch.float64])
def test_property_12_sgd_is_torchs_bit_for_bit(backend, ptype, masked):
    opt, other, params, plain = pair(SGD, SGD_OPTIONS, masked, dtype=ptype, backend=backend)
    other.param_groups[0]["foreach"] = False
    start = [p.detach().clone() for p in params]
    for i, (first, second) in enumerate(draw(params, 50)):
        for group in (*opt.param_groups, *other.param_groups):
            group["lr"] = 0.05 * 0.97**i
        with OurCalls() as calls:
            injected_step(opt, params, first, second)
        assert calls.names.count("restore_") == 0
        assert calls.names.count("restore_sgd_") == len(SGD_OPTIONS)
        plain_step(other, plain, second)
    for p, q, s in zip(params, plain, start, strict=True):
        assert_same_bits(p.detach(), q.detach())
        assert not torch.equal(p, s)
        if q in other.state:
            assert_same_bits(opt.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])
    assert_same_state(opt, other)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("base", [Adam, AdamW])
def test_property_12_adam_to_rounding(backend, base, masked):
    options = [*ADAM_OPTIONS, {"weight_decay": 0.05, "decoupled_weight_decay": True}]
    options = options if base is Adam else ADAM_OPTIONS
    opt, other, params, plain = pair(base, options, masked, backend=backend)
    for first, second in draw(params, 50):
        with OurCalls() as calls:
            injected_step(opt, params, first, second)
        assert calls.names.count("restore_adamw_") == len(options)
        plain_step(other, plain, second)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert float(opt.state[p]["step"]) == 50
    assert_same_state(opt, other)


@pytest.mark.parametrize("base", [Adam, AdamW])
def test_property_12_one_adam_step_is_within_two_ulp(backend, base):
    """From equal weights and moments, 2 ulp of the larger operand."""
    opt, other, params, plain = pair(base, ADAM_OPTIONS, True, backend=backend)
    for i, (first, second) in enumerate(draw(params, 6)):
        if i:
            other.load_state_dict(copy.deepcopy(opt.state_dict()))
            for p, q in zip(params, plain, strict=True):
                q.data.copy_(p.data)
        before = [p.detach().clone() for p in params]
        averages = [g.clone() if i == 0 else opt.state[p]["exp_avg"].clone()
                    for p, g in zip(params, second, strict=True)]  # fmt: skip
        injected_step(opt, params, first, second)
        plain_step(other, plain, second)
        for p, q, w, g, a in zip(params, plain, before, second, averages, strict=True):
            new, mine = other.state[q]["exp_avg"], opt.state[p]["exp_avg"]
            # a and g may cancel in the new average: the update then inherits their rounding
            operand = torch.maximum(a.abs(), g.abs() + 0.05 * w.abs())  # with the weight decay
            assert ((mine - new).abs() <= 2 * ulp(operand)).all()
            through = (q.detach() - w).abs() * (operand / new.abs()).clamp(min=1.0)
            larger = torch.maximum(torch.maximum(w.abs(), q.detach().abs()), through)
            assert ((p.detach() - q.detach()).abs() <= 2 * ulp(larger)).all()
            squares = [o.state[r]["exp_avg_sq"] for o, r in ((opt, p), (other, q))]
            larger = torch.maximum(squares[1], operand.square())
            assert ((squares[0] - squares[1]).abs() <= 2 * ulp(larger)).all()


def ulp(x):
    return torch.nextafter(x, torch.tensor(torch.inf)) - x


def test_property_12_adam_in_float64(backend):
    opt, other, params, plain = pair(
        AdamW, ADAM_OPTIONS, True, dtype=torch.float64, backend=backend
    )
    for first, second in draw(params, 20):
        injected_step(opt, params, first, second)
        plain_step(other, plain, second)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("base", "options"), BASES)
def test_property_12_16_bit_parameters_round_once(backend, base, options):
    """bfloat16: within one rounding of the step taken in float32 from the same values."""
    opt, _, params, _ = pair(base, options, True, dtype=torch.bfloat16, backend=backend)
    for first, second in draw(params, 4):
        wide_groups = [
            {**g, "params": [nn.Parameter(p.detach().float()) for p in g["params"]]}
            for g in opt.param_groups
        ]
        wide = base(wide_groups, lr=0.05)
        wide.load_state_dict(copy.deepcopy(opt.state_dict()))
        other = [p for g in wide.param_groups for p in g["params"]]
        with OurCalls() as calls:
            injected_step(opt, params, first, second)
        assert any(n in ("restore_sgd_", "restore_adamw_") for n in calls.names)
        plain_step(wide, other, [g.float() for g in second])
        for p, q in zip(params, other, strict=True):
            assert p.dtype == torch.bfloat16
            torch.testing.assert_close(p.detach().float(), q.detach(), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(("base", "options"), BASES)
def test_the_state_goes_to_the_plain_base_and_back(backend, base, options):
    opt, _, params, _ = pair(base, options, True, backend=backend)
    other, plain = pair(base, options, False)[1::2]
    steps = draw(params, 9)
    for first, second in steps[:3]:
        injected_step(opt, params, first, second)
    for p, q in zip(params, plain, strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for first, second in steps[3:6]:
        injected_step(opt, params, first, second)
        plain_step(other, plain, second)
    opt.load_state_dict(copy.deepcopy(other.state_dict()))
    for first, second in steps[6:]:
        injected_step(opt, params, first, second)
        plain_step(other, plain, second)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert_same_state(opt, other)


class OwnSGD(SGD):
    """A subclass may override anything."""


class OwnAdamW(AdamW):
    """A subclass may override anything."""


UNFUSED = {
    "amsgrad": (Adam, {"amsgrad": True}),
    "amsgrad decoupled": (AdamW, {"amsgrad": True}),
    "subclass": (OwnSGD, {"momentum": 0.9}),
    "subclass of AdamW": (OwnAdamW, {}),
    "another base": (RMSprop, {"momentum": 0.9}),
}


@pytest.mark.parametrize("case", UNFUSED)
def test_other_options_and_bases_step_by_themselves(backend, case):
    base, own = UNFUSED[case]
    opt, other, params, plain = pair(base, [{}], True, backend=backend, **own)
    for first, second in draw(params, 10):
        with OurCalls() as calls:
            injected_step(opt, params, first, second)
        assert "restore_" in calls.names
        assert not {"restore_sgd_", "restore_adamw_"} & set(calls.names)
        plain_step(other, plain, second)
    for p, q in zip(params, plain, strict=True):
        assert_same_bits(p.detach(), q.detach())
    assert_same_state(opt, other)


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_hooks_of_the_base_are_called_at_restored_weights(backend, kind):
    opt, other, params, plain = pair(SGD, [{"momentum": 0.9}], True, backend=backend)
    seen = []

    def hook(optimizer, args, kwargs):
        seen.append(torch.cat([p.detach().reshape(-1) for p in params]))

    register = f"register_step_{kind}_hook"
    handle = getattr(opt.base_optimizer, register)(hook)
    for first, second in draw(params, 3):
        before = torch.cat([p.detach().reshape(-1) for p in params])
        injected_step(opt, params, first, second)
        plain_step(other, plain, second)
        after = torch.cat([p.detach().reshape(-1) for p in params])
        assert torch.equal(seen[-1], before if kind == "pre" else after)
    assert len(seen) == 3
    handle.remove()
    with OurCalls() as calls:
        injected_step(opt, params, first, second)
    assert "restore_sgd_" in calls.names
    plain_step(other, plain, second)
    for p, q in zip(params, plain, strict=True):
        assert_same_bits(p.detach(), q.detach())
    assert len(seen) == 3


@pytest.mark.parametrize("base", [SGD, AdamW])
def test_a_learning_rate_in_a_tensor(backend, base):
    lr = torch.tensor(0.05)
    opt, other, params, plain = pair(base, [{}], True, backend=backend, lr=lr)
    for i, (first, second) in enumerate(draw(params, 5)):
        lr.fill_(0.05 / (i + 1))  # read at every step
        injected_step(opt, params, first, second)
        plain_step(other, plain, second)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("on_base", [False, True])
@pytest.mark.parametrize("base", [SGD, AdamW])
def test_schedulers_leave_the_step_fused(backend, base, on_base):
    opt, other, params, plain = pair(base, [{}], True, backend=backend)
    ours = [cls(opt.base_optimizer if on_base else opt, 5) for cls in (CosineAnnealingLR,)]
    ours.append(LinearLR(opt.base_optimizer if on_base else opt, 0.1, total_iters=3))
    theirs = [CosineAnnealingLR(other, 5), LinearLR(other, 0.1, total_iters=3)]
    for first, second in draw(params, 5):
        with OurCalls() as calls:
            injected_step(opt, params, first, second)
        assert {"restore_sgd_", "restore_adamw_"} & set(calls.names)
        plain_step(other, plain, second)
        for schedule in (*ours, *theirs):
            schedule.step()
        assert opt.param_groups[0]["lr"] == other.param_groups[0]["lr"]
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_both_forms_of_the_step_give_the_same_training():
    """Through real gradients: fused, and by the base's own step after ``perturbed()``."""
    a, b = mlp(), mlp()
    x, y = batch()
    fused = SAM(a.parameters(), SGD, rho=0.2, lr=0.1, momentum=0.9, weight_decay=0.01)
    apart = SAM(b.parameters(), SGD, rho=0.2, lr=0.1, momentum=0.9, weight_decay=0.01)
    train_sam(a, fused, 8)
    for _ in range(8):
        cross_entropy(b(x), y).backward()
        with apart.perturbed():
            cross_entropy(b(x), y).backward()
        apart.step()
        apart.zero_grad()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())
