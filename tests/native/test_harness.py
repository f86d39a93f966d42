"""The CUDA kernels' programs on host memory, elementwise ops, against the reference bit by bit.

The harness itself fails on an access outside a tensor, a misaligned one, or a race.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from native_lists import SIZES, Lists, assert_same, chunks_of, clones, run_of

from sparse_kernels import reference

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = [(name, shift) for name in SIZES for shift in (0, 1) if (name, shift) != ("tiny", 1)]
layouts = pytest.mark.parametrize(("name", "shift"), LAYOUTS)
# grad_norm refuses an empty list, and the references that count have nothing to stack
filled = pytest.mark.parametrize(("name", "shift"), [x for x in LAYOUTS if SIZES[x[0]]])
storage = pytest.mark.parametrize("kind", DTYPE)
masking = pytest.mark.parametrize("masked", [False, True])


@layouts
@storage
@masking
def test_masked_perturb(core, name, shift, kind, masked):
    lists = Lists(SIZES[name], shift)
    params, grads = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
    backup = lists.normal(DTYPE[kind])
    masks = lists.masks() if masked else []
    for adaptive, saved, norm in itertools.product(
        (False, True), (False, True), (3.0, float("nan"))
    ):
        value = torch.tensor(norm)
        wanted, wanted_backup = clones(params), clones(backup)
        reference.masked_perturb_ref(
            wanted, grads, value, 0.05, masks, wanted_backup if saved else [], adaptive, 0.01, 1e-3
        )
        run = run_of(
            core, lists.sizes, [params, grads], masks=masks, backup=backup if saved else []
        )
        report = core.masked_perturb(run, kind, adaptive, value.data_ptr(), 0.05, 0.01, 1e-3)
        assert_same(params, wanted, "params")
        assert_same(backup, wanted_backup, "backup")
        assert report.blocks == chunks_of(lists.sizes)
    lists.check_guards()


@layouts
@storage
@masking
def test_restore(core, name, shift, kind, masked):
    lists = Lists(SIZES[name], shift)
    params, backup = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
    masks = lists.masks() if masked else []
    wanted = clones(params)
    reference.restore_ref(wanted, backup, masks)
    run = run_of(core, lists.sizes, [params, backup], masks=masks)
    core.restore(run, DTYPE[kind].itemsize)
    assert_same(params, wanted, "params")
    lists.check_guards()


def test_restore_of_8_byte_elements(core):
    lists = Lists(SIZES["mixed"])
    params, backup = lists.normal(torch.float64), lists.normal(torch.float64)
    core.restore(run_of(core, lists.sizes, [params, backup]), 8)
    assert_same(params, backup, "params")
    lists.check_guards()


@filled
@storage
@masking
def test_norm(core, name, shift, kind, masked):
    lists = Lists(SIZES[name], shift)
    grads, weights = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
    masks = lists.masks() if masked else []
    for weighted in (False, True):
        streams = [grads, weights] if weighted else [grads]
        ours = core.norm(run_of(core, lists.sizes, streams, masks=masks), kind, weighted, 0.01)
        arguments = (grads, masks, weights if weighted else [], 0.01)
        assert ours.total == reference.grad_norm_ref(*arguments, True).item()
        assert ours.root == reference.grad_norm_ref(*arguments, False).item()


@layouts
def test_mask_pack_and_unpack(core, name, shift):
    lists = Lists(SIZES[name], shift)
    bools = lists.bools()
    words = [lists.place(torch.full((-(-n // 32),), -1, dtype=torch.int32)) for n in lists.sizes]
    wanted = clones(words)
    reference.mask_pack_ref(bools, wanted)
    core.mask_pack(
        core.Run(
            [
                core.Segment(w.numel(), [w.data_ptr()], input=b.data_ptr(), input_numel=b.numel())
                for w, b in zip(words, bools, strict=True)
            ]
        )
    )
    assert_same(words, wanted, "words")
    back = [lists.place(torch.ones(n, dtype=torch.bool)) for n in lists.sizes]
    core.mask_unpack(
        core.Run(
            [
                core.Segment(b.numel(), [b.data_ptr()], input=w.data_ptr(), input_numel=w.numel())
                for b, w in zip(back, words, strict=True)
            ]
        )
    )
    assert_same(back, bools, "masks")
    lists.check_guards()


@filled
@storage
@masking
def test_linbreg_step(core, name, shift, kind, masked):
    lists = Lists(SIZES[name], shift)
    masks = lists.masks() if masked else []
    lr, lam, delta, beta, decay = 0.1, 0.3, 1.5, 0.9, 0.01
    for dual, momentum in itertools.product((False, True), repeat=2):
        params, grads = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
        duals = lists.normal(torch.float32) if dual else []
        buffers = lists.normal(torch.float32) if momentum else []
        wanted = [clones(x) for x in (params, duals, buffers)]
        live_ref = reference.linbreg_step_ref(
            wanted[0], grads, wanted[1], wanted[2], masks, lr, lam, delta, beta, "ema", momentum,
            decay, True,
        )  # fmt: skip
        scale = 1.0 if dual else delta
        step, gain = (scale, (1.0 - beta) * lr) if momentum else (lr * scale, 1.0)
        scalars = [lam, delta, lr * decay * scale, -1.0, beta, gain, step]
        streams = [params, grads, *([duals] if dual else []), *([buffers] if momentum else [])]
        live = torch.zeros(len(lists.sizes), dtype=torch.int64)
        run = run_of(core, lists.sizes, streams, masks=masks)
        core.linbreg_step(run, kind, dual, momentum, scalars, momentum, live.data_ptr())
        for ours, expected, what in zip(
            (params, duals, buffers), wanted, ("params", "duals", "buffers"), strict=True
        ):
            assert_same(ours, expected, what)
        assert torch.equal(live, live_ref)
    lists.check_guards()


@filled
@storage
@masking
def test_adabreg_step(core, name, shift, kind, masked):
    lists = Lists(SIZES[name], shift)
    masks = lists.masks() if masked else []
    lr, lam, delta, beta1, beta2, eps, decay, step = 0.01, 0.3, 1.5, 0.9, 0.99, 1e-4, 0.02, 3
    for dual, counted in itertools.product((False, True), repeat=2):
        params, grads = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
        duals = lists.normal(torch.float32) if dual else []
        averages, squares = lists.normal(torch.float32, 0.1), lists.normal(torch.float32, 0.1)
        for s in squares:
            s.abs_()
        counts = lists.integers(0, 12) if counted else []
        state = (params, duals, averages, squares, counts)
        wanted = [clones(x) for x in state]
        scale = 1.0 if dual else delta
        rows = torch.arange(1, 9, dtype=torch.float64)
        step_sizes = torch.cat([torch.zeros(1), (lr * scale / (1 - beta1**rows)).float()])
        bias2_sqrts = torch.cat([torch.ones(1), (1 - beta2**rows).sqrt().float()])
        live_ref = reference.adabreg_step_ref(
            wanted[0], grads, wanted[1], wanted[2], wanted[3], wanted[4], masks, lr, lam, delta,
            beta1, beta2, eps, decay, False, step, step_sizes, bias2_sqrts,
        )  # fmt: skip
        scalars = [
            lam, delta, lr * decay * scale, 1.0, 1.0 - beta1, beta2, 1.0 - beta2, eps,
            lr * scale / (1.0 - beta1**step), (1.0 - beta2**step) ** 0.5,
        ]  # fmt: skip
        streams = [params, grads, *([duals] if dual else []), averages, squares]
        streams += [counts] if counted else []
        live = torch.zeros(len(lists.sizes), dtype=torch.int64)
        core.adabreg_step(
            run_of(core, lists.sizes, streams, masks=masks), kind, dual, counted, scalars,
            step_sizes.data_ptr(), bias2_sqrts.data_ptr(), rows.numel(), live.data_ptr(),
        )  # fmt: skip
        for ours, expected, what in zip(
            state, wanted, ("params", "duals", "averages", "squares", "counts"), strict=True
        ):
            assert_same(ours, expected, what)
        assert torch.equal(live, live_ref)
    lists.check_guards()


@storage
def test_nan_inf_and_signed_zero_pass_through(core, kind):
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 0.3, -0.3, 1e-40])
    grid = torch.cartesian_prod(special, special)
    lists = Lists([grid.shape[0]])
    params = [lists.place(grid[:, 0].to(DTYPE[kind]))]
    grads = [lists.place(grid[:, 1].to(DTYPE[kind]))]
    norm = torch.tensor(0.5)
    wanted = clones(params)
    reference.masked_perturb_ref(wanted, grads, norm, 0.05, [], [], True, 0.0, 0.0)
    run = run_of(core, lists.sizes, [params, grads])
    core.masked_perturb(run, kind, True, norm.data_ptr(), 0.05, 0.0, 0.0)
    assert_same(params, wanted, "params")
