"""restore_adamw_: restore and the Adam or AdamW step in one pass."""

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
from sparse_kernels.testing import DTYPES, assert_bit_equal, copy_of, error_budget, make_list

#: every option away from its default in at least one
OPTIONS = {
    "plain": {},
    "adamw": {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3},
    "adam": {"weight_decay": 0.1, "decoupled": False},
    "adam-maximize": {"decoupled": False, "maximize": True, "betas": (0.0, 0.0)},
    "adamw-maximize": {"weight_decay": 0.2, "maximize": True},
}
#: of the tensors of a list, one after the other
STEPS = torch.arange(1, 8, dtype=torch.float64)


def build(case, dtype, kept, special=False):
    def on(device):
        lists = base_lists(case, dtype, device, kept, special)
        lists["exp_avgs"] = make_list(case, dtype, device, seed=5)
        lists["exp_avg_sqs"] = make_list(case, dtype, device, seed=6)
        for u in lists["exp_avg_sqs"]:
            u.abs_()
        return lists

    return on


def tables(count, device, lr=0.07, betas=(0.9, 0.999)):
    """Step sizes and roots of the second correction, of another step for every tensor."""
    steps = STEPS.repeat(-(-count // STEPS.numel()) if count else 1)[:count]
    step_sizes, roots = lr / (1 - betas[0] ** steps), (1 - betas[1] ** steps).sqrt()
    return {"step_sizes": step_sizes.to(device), "bias2_sqrts": roots.to(device)}


def run_with(options, gates=()):
    def run(lists, backend):
        device = lists["params"][0].device if lists["params"] else "cpu"
        scalars = {k: torch.tensor(v, device=device) for k, v in dict(gates).items()}
        corrections = tables(len(lists["params"]), device)
        sk.restore_adamw_(**lists, **corrections, lr=0.07, **options, **scalars, backend=backend)

    return run


def assert_close_to_an_ulp_of_the_root(start, ours, theirs):
    """Compare float64 parameters, and take them out of the lists.

    torch's float64 square root on the CPU (MKL) is off by an ulp now and then, and no wider type
    is there to round from. An ulp of the root and one rounding in each of the four operations after
    it are 5 ulp of the step; |step| <= |param before| + |param after|, as 1 - lr decay is below 1.
    """
    eps = torch.finfo(torch.float64).eps
    params = zip(start, ours.pop("params"), theirs.pop("params"), strict=True)
    for i, (before, got, want) in enumerate(params):
        same = got.cpu().eq(want) | got.cpu().isnan() & want.isnan()
        allowed = 5 * eps * (before.abs() + want.abs())
        assert (same | ((got.cpu() - want).abs() <= allowed)).all(), i


def compare_with_reference(twin, dtype, inputs, run):
    ours, theirs, _, _ = run_both(twin, inputs, run)
    if dtype == torch.float64:
        assert_close_to_an_ulp_of_the_root(unperturbed(inputs("cpu")), ours, theirs)
    assert_same_lists(ours, theirs)


@pytest.mark.parametrize("kept", BACKUPS)
@pytest.mark.parametrize(("case", "name"), [(c, n) for c in CASES for n in OPTIONS])
def test_equals_the_reference_bit_by_bit(twin, dtype, case, name, kept):
    for special in (False, True) if case == "mixed" else (True,):
        compare_with_reference(
            twin, dtype, build(case, dtype, kept, special), run_with(OPTIONS[name])
        )


@pytest.mark.parametrize("gates", GATES, ids=str)
@pytest.mark.parametrize("kept", BACKUPS)
def test_gates_equal_the_reference(twin, dtype, kept, gates):
    inputs = build("mixed", dtype, kept, special=True)
    compare_with_reference(twin, dtype, inputs, run_with(OPTIONS["adamw"], gates))


@pytest.mark.parametrize("skip", [1.0, float("nan"), -1.0])
@pytest.mark.parametrize("kept", BACKUPS)
@pytest.mark.parametrize("case", ["mixed", "misaligned", "strided"])
def test_a_skipped_step_only_restores(target, dtype, case, kept, skip):
    lists = build(case, dtype, kept, special=True)(target.device)
    state = ("params", "exp_avgs", "exp_avg_sqs")
    before = {k: copy_of(lists[k]) for k in state}
    wanted = unperturbed(lists)
    run_with(OPTIONS["adamw"], {"skip": skip, "inv_scale": 3.0})(lists, target.backend)
    assert_bit_equal(lists["params"], wanted, "params", payloads=True)
    for name in state[1:]:
        assert_bit_equal(lists[name], before[name], name, payloads=True)
    assert_gaps_untouched(before["params"], lists["params"])


@pytest.mark.parametrize("kept", BACKUPS)
def test_inputs_are_not_changed(target, dtype, kept):
    lists = build("mixed", dtype, kept, special=True)(target.device)
    saved = lists["backup"] if isinstance(lists["backup"], list) else [lists["backup"]]
    before = [copy_of(lists["grads"]), copy_of(saved)]
    run_with(OPTIONS["adam"])(lists, target.backend)
    assert_bit_equal(lists["grads"], before[0], "grads", payloads=True)
    assert_bit_equal(saved, before[1], "backup", payloads=True)


@pytest.mark.parametrize("narrow", [d for d in DTYPES if d != torch.float64], ids=str)
def test_results_are_within_the_error_budget(twin, narrow):
    # the root of a small second moment: sized so that the float64 oracle is well conditioned
    options = {"weight_decay": 0.1, "eps": 1.0}
    ours, theirs, _, _ = run_both(twin, build("mixed", narrow, "masked"), run_with(options))
    exact = build("mixed", narrow, "masked")("cpu")
    exact = {k: v if k == "masks" else copy_of(v, torch.float64) for k, v in exact.items()}
    run_with(options)(exact, "reference")
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        for got, ref, oracle in zip(ours[name], theirs[name], exact[name], strict=True):
            if oracle.numel():
                error_budget(narrow).check(got, ref, oracle, name)


SWEEP = list(itertools.product((torch.optim.AdamW, torch.optim.Adam), (0.0, 0.05), (False, True)))


@pytest.mark.parametrize(("base", "decay", "maximize"), SWEEP, ids=str)
@pytest.mark.parametrize("kept", BACKUPS)
def test_follows_torch_optim(target, base, decay, maximize, kept):
    """Spec sparse-sam, property 12: copy back, then the single-tensor path of torch.optim."""
    lists = base_lists("mixed", torch.float32, target.device, kept)
    theirs = copy_of(unperturbed(lists))
    lr, betas = 0.07, (0.9, 0.99)
    optimizer = base(
        theirs, lr=lr, betas=betas, weight_decay=decay, maximize=maximize, foreach=False
    )
    for name in ("exp_avgs", "exp_avg_sqs"):
        lists[name] = [torch.zeros_like(p) for p in lists["params"]]
    grads = torch.Generator().manual_seed(9)
    for step in range(1, 51):
        lists["grads"] = [torch.randn(p.shape, generator=grads).to(target.device) for p in theirs]
        for p, g in zip(theirs, lists["grads"], strict=True):
            p.grad = g.clone()
        before = copy_of(theirs)
        optimizer.step()
        like = torch.ones(len(theirs), dtype=torch.float64, device=target.device)
        sk.restore_adamw_(
            **lists, step_sizes=like * (lr / (1 - betas[0] ** step)),
            bias2_sqrts=like * (1 - betas[1] ** step) ** 0.5, lr=lr, betas=betas,
            weight_decay=decay, decoupled=base is torch.optim.AdamW, maximize=maximize,
            backend=target.backend,
        )  # fmt: skip
        if step == 1:
            within_two_ulps(lists["params"], theirs, before)
        sk.masked_perturb_(
            lists["params"], lists["grads"], torch.tensor(2.0, device=target.device), 0.5,
            lists.get("masks"), lists["backup"], ranks=lists.get("ranks"), backend=target.backend,
        )  # fmt: skip
    assert relative_difference(unperturbed(lists), theirs) <= 1e-6


def test_tables_go_with_the_tensors_of_their_group(target):
    # two dtypes in one call: each group takes its own rows
    dtypes = (torch.float32, torch.bfloat16, torch.float32)
    values = [[torch.randn(40).to(target.device, d) for d in dtypes] for _ in range(5)]
    params, grads, saved, first, second = values
    second = [u.abs() for u in second]
    corrections = tables(3, target.device)
    whole = [copy_of(x) for x in (params, first, second)]
    sk.restore_adamw_(
        whole[0], grads, saved, whole[1], whole[2], **corrections, lr=0.1, backend=target.backend
    )
    for i in range(3):
        one = [copy_of(x[i : i + 1]) for x in (params, first, second)]
        rows = {k: v[i : i + 1] for k, v in corrections.items()}
        sk.restore_adamw_(
            one[0], grads[i : i + 1], saved[i : i + 1], one[1], one[2], **rows, lr=0.1,
            backend=target.backend,
        )  # fmt: skip
        for got, wanted in zip(whole, one, strict=True):
            assert_bit_equal(got[i], wanted[0], f"tensor {i}")


def test_threads_and_large_tensors(target):
    n = 2**21 + 13
    w, g, a, u = (torch.randn(n) for _ in range(4))
    keep = torch.rand(n) < 0.5
    masks = sk.pack_mask([keep])
    wanted = None
    for threads in (1, 2):
        torch.set_num_threads(threads)
        lists = {
            "params": [torch.where(keep, torch.full_like(w, 9.0), w)], "grads": [g],
            "exp_avgs": [a.clone()], "exp_avg_sqs": [u.abs()], "masks": masks,
            "ranks": sk.mask_ranks(masks), "backup": [w[keep]],
        }  # fmt: skip
        lists = {k: [t.to(target.device) for t in v] for k, v in lists.items()}
        lists["backup"] = lists["backup"][0]
        run_with(OPTIONS["adamw"])(lists, target.backend)
        wanted = wanted or lists
        assert_same_lists(lists, wanted)
    whole = {**wanted, "params": [torch.full_like(w, 9.0).to(target.device)]}
    whole.update(backup=[w.to(target.device)], exp_avgs=[a.to(target.device)])
    whole["exp_avg_sqs"] = [u.abs().to(target.device)]
    del whole["masks"], whole["ranks"]
    run_with(OPTIONS["adamw"])(whole, target.backend)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        assert_bit_equal(whole[name], wanted[name], name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and >= 0"),
        ({"eps": -1.0}, "eps must be finite and >= 0"),
        ({"weight_decay": float("nan")}, "weight_decay must be"),
        ({"betas": (1.0, 0.9)}, "betas[0] must be < 1"),
        ({"betas": (0.9, -0.1)}, "betas[1] must be finite and >= 0"),
        ({"step_sizes": torch.ones(2)}, "step_sizes must be a tensor [1]"),
        ({"bias2_sqrts": 1.0}, "bias2_sqrts must be a tensor [1]"),
        ({"skip": torch.zeros(2)}, "skip must be"),
        ({"ranks": []}, "ranks need masks"),
        ({"exp_avgs": [torch.zeros(4)]}, "exp_avgs[0] has 4 elements"),
    ],
    ids=str,
)
def test_checks(change, message):
    ones = {k: [torch.ones(3)] for k in ("params", "grads", "backup", "exp_avgs", "exp_avg_sqs")}
    arguments = {**ones, "step_sizes": torch.ones(1), "bias2_sqrts": torch.ones(1), "lr": 0.1}
    with pytest.raises(ValueError, match="restore_adamw_: .*" + re.escape(message)):
        sk.restore_adamw_(**{**arguments, **change})
    assert torch.equal(ones["params"][0], torch.ones(3))
