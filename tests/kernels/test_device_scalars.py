"""Learning rates, thresholds, radii and step numbers that are tensors on the device.

Whatever is combined of them, every bit is that of the call with the same plain numbers.
"""

from __future__ import annotations

import pytest
import torch
from base_steps import base_lists
from bregman_cases import ADABREG, LINBREG, build, run_with
from compare import assert_same_lists

import sparse_kernels as sk
from sparse_kernels.functional import _bias_corrections
from sparse_kernels.testing import assert_bit_equal, copy_of

VARIANTS = [("linbreg", v) for v in LINBREG] + [("adabreg", v) for v in ADABREG]
CHANGING = ("lr", "lam", "step")


def in_tensors(numbers, device, only=None):
    """float64, which holds every number given; step counts are integers."""
    return {
        name: torch.tensor(
            value, dtype=torch.int64 if name == "step" else torch.float64, device=device
        )
        for name, value in numbers.items()
        if only is None or name in only
    }


def bregman_numbers(op, variant):
    kinds, hyper = {"linbreg": LINBREG, "adabreg": ADABREG}[op][variant]
    numbers = {"lr": 0.3, "lam": 0.4, **hyper}
    return kinds, hyper, {n: numbers[n] for n in CHANGING if n in numbers}


@pytest.mark.parametrize(("op", "variant"), VARIANTS)
def test_bregman_steps_have_the_bits_of_plain_numbers(target, dtype, op, variant):
    kinds, hyper, numbers = bregman_numbers(op, variant)
    inputs = build("chunk-edges", dtype, op, kinds)
    plain = inputs(target.device)
    want = run_with(op, hyper)(plain, target.backend)
    for only in (None, *((name,) for name in numbers)):
        lists = inputs(target.device)
        tensors = in_tensors(numbers, target.device, only)
        got = run_with(op, {**hyper, **tensors})(lists, target.backend)
        assert_same_lists(lists, plain)
        assert_bit_equal(got, want, "live")


@pytest.mark.parametrize("op", ["linbreg", "adabreg"])
def test_bregman_steps_read_the_value_of_the_moment(target, op):
    """The same tensors in every call: a captured graph has no others."""
    inputs = build("mixed", torch.float32, op, ())
    numbers = {"lr": 0.3, "lam": 0.4} | ({"step": 1} if op == "adabreg" else {})
    tensors = in_tensors(numbers, target.device)
    ours, theirs = inputs(target.device), inputs(target.device)
    for change in ({}, {"lr": 0.1}, {"lam": 0.7}, {"step": 40}, {"lr": 0.0, "lam": 0.0}):
        numbers |= {n: v for n, v in change.items() if n in numbers}
        for name, value in numbers.items():
            tensors[name].fill_(value)
        got = run_with(op, tensors)(ours, target.backend)
        want = run_with(op, numbers)(theirs, target.backend)
        assert_same_lists(ours, theirs)
        assert_bit_equal(got, want, "live")


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.99, 0.9)])
@pytest.mark.parametrize("counted", [False, True])
def test_every_step_number_has_the_corrections_of_the_host(target, dtype, betas, counted):
    lists = build("mixed", dtype, "adabreg", ("counts",) if counted else ())
    steps = (1, 2, 3, 10, 33, 54, 55, 100, 1000, 37414, 37415, 10**6, 2**40)
    for n in steps[3:] if counted else steps:  # with counts a bound of them: they are up to 8
        ours, theirs = lists(target.device), lists(target.device)
        step = torch.tensor(n, device=target.device)
        run_with("adabreg", {"betas": betas, "step": step})(ours, target.backend)
        run_with("adabreg", {"betas": betas, "step": n})(theirs, target.backend)
        assert_same_lists(ours, theirs)


def test_float32_tensors_are_taken_at_their_value(target, dtype):
    lists = build("mixed", dtype, "linbreg", ())
    ours, theirs = lists(target.device), lists(target.device)
    lr = torch.tensor([0.1], device=target.device)
    run_with("linbreg", {"lr": lr})(ours, target.backend)
    run_with("linbreg", {"lr": float(lr)})(theirs, target.backend)
    assert_same_lists(ours, theirs)


SGD = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
BASE_STEPS = {
    "sgd": (sk.restore_sgd_, {"weight_decay": 0.1}),
    "sgd momentum": (sk.restore_sgd_, SGD),
    "adamw": (sk.restore_adamw_, {"weight_decay": 0.1}),
    "adamw without decay": (sk.restore_adamw_, {}),
    "adam": (sk.restore_adamw_, {"weight_decay": 0.1, "decoupled": False}),
}


@pytest.mark.parametrize("kept", ["whole", "packed"])
@pytest.mark.parametrize("name", BASE_STEPS)
def test_base_steps_have_the_bits_of_plain_numbers(target, dtype, name, kept):
    function, options = BASE_STEPS[name]

    def lists():
        found = base_lists("chunk-edges", dtype, target.device, kept)
        if "momentum" in options:
            found["momentum_buffers"] = copy_of(found["grads"])
        if function is sk.restore_adamw_:
            found |= {"exp_avgs": copy_of(found["grads"])}
            found["exp_avg_sqs"] = [g.square() for g in found["grads"]]
            table = torch.linspace(0.1, 1.0, len(found["params"]), device=target.device)
            found |= {"step_sizes": table, "bias2_sqrts": table}
        return found

    lr = torch.zeros((), dtype=torch.float64, device=target.device)
    ours, theirs = lists(), lists()
    for value in (0.07, 0.0, 0.3):
        lr.fill_(value)
        function(**ours, **options, lr=lr, backend=target.backend)
        function(**theirs, **options, lr=value, backend=target.backend)
        assert_same_lists(ours, theirs)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_ascent_has_the_bits_of_a_plain_radius(target, dtype, adaptive):
    rho = torch.zeros(1, dtype=torch.float64, device=target.device)
    ours, theirs = (base_lists("chunk-edges", dtype, target.device, "whole") for _ in range(2))
    norm = sk.grad_norm(ours["grads"], backend=target.backend)
    for value in (0.05, 0.0, 0.3):
        rho.fill_(value)
        for lists, radius in ((ours, rho), (theirs, value)):
            sk.masked_perturb_(
                lists["params"], lists["grads"], norm, radius, adaptive=adaptive,
                backend=target.backend,
            )  # fmt: skip
        assert_same_lists(ours, theirs)


@pytest.mark.parametrize("bad", [torch.tensor([0.1, 0.2]), torch.tensor(1)])
def test_what_is_no_number_is_refused(bad):
    w = [torch.ones(3)]
    calls = {
        "linbreg_step_: lr": lambda: sk.linbreg_step_(w, w, None, bad, 0.0),
        "linbreg_step_: lam": lambda: sk.linbreg_step_(w, w, None, 0.1, bad),
        "restore_sgd_: lr": lambda: sk.restore_sgd_(w, w, w, lr=bad),
        "masked_perturb_: rho": lambda: sk.masked_perturb_(w, w, torch.tensor(1.0), bad),
    }
    for match, call in calls.items():
        with pytest.raises(ValueError, match=match):
            call()
    assert_bit_equal(w, [torch.ones(3)], "w")


def test_a_table_of_corrections_that_would_be_too_long_is_refused():
    lists = build("mixed", torch.float32, "adabreg", ())("cpu")
    before = copy_of(lists["params"])
    hyper = {"betas": (0.9, 1.0 - 1e-7), "step": torch.tensor(1)}
    with pytest.raises(ValueError, match=r"adabreg_step_: betas .* too close to 1"):
        run_with("adabreg", hyper)(lists, "reference")
    assert_bit_equal(lists["params"], before, "params")
    with pytest.raises(ValueError, match="adabreg_step_: step must be a tensor with one element"):
        run_with("adabreg", {"step": torch.ones(2)})(lists, "reference")


def test_tables_for_the_device_are_kept():
    """A captured graph reads them again in every replay: none may be dropped."""
    first = _bias_corrections.tables(None, (0.5, 0.75), torch.device("cpu"))
    for i in range(40):  # more than the other cache holds
        _bias_corrections.tables(None, (0.5, 0.5 + i / 100), torch.device("cpu"))
    again = _bias_corrections.tables(None, (0.5, 0.75), torch.device("cpu"))
    assert all(a is b for a, b in zip(first, again, strict=True))
