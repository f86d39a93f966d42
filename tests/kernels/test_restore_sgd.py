"""restore_sgd_: restore and the SGD step in one pass."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from base_steps import (
    BACKUPS,
    CASES,
    GATES,
    base_lists,
    relative_difference,
    unperturbed,
    within_two_ulps,
)
from compare import assert_gaps_untouched, assert_same_lists, run_both

import sparse_kernels as sk
from sparse_kernels.testing import assert_bit_equal, copy_of, error_budget, make_list

#: every option away from its default in at least one
OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "first": {"momentum": 0.9, "dampening": 0.3, "first": True, "weight_decay": 0.01},
    "dampening": {"momentum": 0.9, "dampening": 0.3, "maximize": True},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "nesterov-first-maximize": {
        "momentum": 0.8, "nesterov": True, "first": True, "maximize": True,
    },
}  # fmt: skip


def build(case, dtype, kept, options, special=False):
    def on(device):
        lists = base_lists(case, dtype, device, kept, special)
        if "momentum" in options:
            lists["momentum_buffers"] = make_list(case, dtype, device, seed=5)
        return lists

    return on


def run_with(options, gates=()):
    def run(lists, backend):
        device = lists["params"][0].device if lists["params"] else "cpu"
        scalars = {k: torch.tensor(v, device=device) for k, v in dict(gates).items()}
        sk.restore_sgd_(**lists, lr=0.07, **options, **scalars, backend=backend)

    return run


@pytest.mark.parametrize("kept", BACKUPS)
@pytest.mark.parametrize(("case", "name"), [(c, n) for c in CASES for n in OPTIONS])
def test_equals_the_reference_bit_by_bit(twin, dtype, case, name, kept):
    for special in (False, True) if case == "mixed" else (True,):
        inputs = build(case, dtype, kept, OPTIONS[name], special)
        ours, theirs, _, _ = run_both(twin, inputs, run_with(OPTIONS[name]))
        assert_same_lists(ours, theirs)


@pytest.mark.parametrize("gates", GATES, ids=str)
@pytest.mark.parametrize("kept", BACKUPS)
def test_gates_equal_the_reference(twin, dtype, kept, gates):
    inputs = build("mixed", dtype, kept, OPTIONS["nesterov"], special=True)
    ours, theirs, _, _ = run_both(twin, inputs, run_with(OPTIONS["nesterov"], gates))
    assert_same_lists(ours, theirs)


@pytest.mark.parametrize("skip", [1.0, float("nan"), -1.0])
@pytest.mark.parametrize("kept", BACKUPS)
@pytest.mark.parametrize("case", ["mixed", "misaligned", "strided"])
def test_a_skipped_step_only_restores(target, dtype, case, kept, skip):
    lists = build(case, dtype, kept, OPTIONS["first"], special=True)(target.device)
    before = {k: copy_of(v) for k, v in lists.items() if k in ("params", "momentum_buffers")}
    wanted = unperturbed(lists)
    run_with(OPTIONS["first"], {"skip": skip, "inv_scale": 3.0})(lists, target.backend)
    assert_bit_equal(lists["params"], wanted, "params", payloads=True)
    buffers = before["momentum_buffers"]
    assert_bit_equal(lists["momentum_buffers"], buffers, "momentum_buffers", payloads=True)
    assert_gaps_untouched(before["params"], lists["params"])


@pytest.mark.parametrize("kept", BACKUPS)
def test_inputs_are_not_changed(target, dtype, kept):
    lists = build("mixed", dtype, kept, OPTIONS["nesterov"], special=True)(target.device)
    saved = lists["backup"] if isinstance(lists["backup"], list) else [lists["backup"]]
    before = [copy_of(lists["grads"]), copy_of(saved)]
    run_with(OPTIONS["nesterov"])(lists, target.backend)
    assert_bit_equal(lists["grads"], before[0], "grads", payloads=True)
    assert_bit_equal(saved, before[1], "backup", payloads=True)


def test_first_step_with_momentum_puts_the_gradient_into_the_buffer(target):
    # spec sparse-sam, property 11
    lists = build("mixed", torch.float32, "packed", {"momentum": 0.9})(target.device)
    for b in lists["momentum_buffers"]:
        b.fill_(float("nan"))
    run_with({"momentum": 0.9, "first": True})(lists, target.backend)
    assert_bit_equal(lists["momentum_buffers"], lists["grads"], "momentum_buffers")


def test_16_bit_results_are_within_the_error_budget(twin, dtype):
    options = OPTIONS["nesterov"]
    ours, theirs, _, _ = run_both(twin, build("mixed", dtype, "masked", options), run_with(options))
    exact = build("mixed", dtype, "masked", options)("cpu")
    floating = ("params", "grads", "backup", "momentum_buffers")
    exact = {k: copy_of(v, torch.float64) if k in floating else v for k, v in exact.items()}
    run_with(options)(exact, "reference")
    for name in ("params", "momentum_buffers"):
        for got, ref, oracle in zip(ours[name], theirs[name], exact[name], strict=True):
            if oracle.numel():
                error_budget(dtype).check(got, ref, oracle, name)


SWEEP = [
    {"momentum": m, "dampening": d, "nesterov": n, "weight_decay": w, "maximize": x}
    for m, d, n, w, x in itertools.product(
        (0.0, 0.9), (0.0, 0.4), (False, True), (0.0, 0.05), (False, True)
    )
    if not (n and (m == 0.0 or d != 0.0))  # torch.optim.SGD refuses these
]


@pytest.mark.parametrize("options", SWEEP, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("kept", BACKUPS)
def test_follows_torch_optim_sgd(target, options, kept):
    """Spec sparse-sam, property 12: copy back, then the single-tensor path of torch.optim.SGD."""
    lists = base_lists("mixed", torch.float32, target.device, kept)
    theirs = copy_of(unperturbed(lists))
    optimizer = torch.optim.SGD(theirs, lr=0.07, foreach=False, **options)
    if options["momentum"]:
        lists["momentum_buffers"] = [torch.empty_like(p) for p in lists["params"]]
    grads = torch.Generator().manual_seed(9)
    for step in range(50):
        lists["grads"] = [torch.randn(p.shape, generator=grads).to(target.device) for p in theirs]
        for p, g in zip(theirs, lists["grads"], strict=True):
            p.grad = g.clone()
        before = copy_of(theirs)
        optimizer.step()
        run_with({**options, "first": step == 0})(lists, target.backend)
        if step == 0:
            within_two_ulps(lists["params"], theirs, before)
        # the next perturbation: the backup takes w, the entries with bit 1 move
        sk.masked_perturb_(
            lists["params"], lists["grads"], torch.tensor(2.0, device=target.device), 0.5,
            lists.get("masks"), lists["backup"], ranks=lists.get("ranks"), backend=target.backend,
        )  # fmt: skip
    assert relative_difference(unperturbed(lists), theirs) <= 1e-6


def test_streamed_stores_and_threads(target):
    n = 3 * 2**20 + 13
    w, g, m = (torch.randn(n) for _ in range(3))
    keep = torch.rand(n) < 0.5
    masks = sk.pack_mask([keep])
    ranks = sk.mask_ranks(masks)
    forms = {
        "whole": {"backup": [w]},
        "masked": {"backup": [w], "masks": masks},
        "packed": {"backup": w[keep], "masks": masks, "ranks": ranks},
    }
    wanted = None
    for form, threads in itertools.product(forms.values(), (1, 2)):
        torch.set_num_threads(threads)
        params = [torch.where(keep, torch.full_like(w, 9.0), w).to(target.device)]
        buffers = [m.clone().to(target.device)]
        moved = {
            k: v.to(target.device) if isinstance(v, torch.Tensor)
            else [t.to(target.device) for t in v] for k, v in form.items()
        }  # fmt: skip
        sk.restore_sgd_(
            params, [g.to(target.device)], momentum_buffers=buffers, **moved, lr=0.1,
            momentum=0.9, backend=target.backend,
        )  # fmt: skip
        wanted = wanted or (params, buffers)
        assert_bit_equal(params, wanted[0], "params")
        assert_bit_equal(buffers, wanted[1], "momentum_buffers")
    assert not torch.equal(wanted[0][0].cpu(), w)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and >= 0"),
        ({"momentum": -0.1}, "momentum must be finite and >= 0"),
        ({"weight_decay": float("nan")}, "weight_decay must be"),
        ({"dampening": float("inf")}, "dampening must be"),
        ({"momentum": 0.9}, "momentum needs momentum_buffers"),
        ({"skip": torch.zeros(2)}, "skip must be"),
        ({"inv_scale": 2.0}, "inv_scale must be"),
        ({"ranks": []}, "ranks need masks"),
        ({"backup": [torch.zeros(4)]}, "backup[0] has 4 elements"),
        ({"momentum_buffers": [torch.zeros(3, dtype=torch.float64)]}, "momentum_buffers[0] is"),
    ],
    ids=str,
)
def test_checks(change, message):
    lists = {"params": [torch.ones(3)], "grads": [torch.ones(3)], "backup": [torch.zeros(3)]}
    arguments = {**lists, "lr": 0.1, **change}
    with pytest.raises(ValueError, match="restore_sgd_: .*" + re.escape(message)):
        sk.restore_sgd_(**arguments)
    assert torch.equal(lists["params"][0], torch.ones(3))
