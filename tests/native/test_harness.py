"""The CUDA kernels' programs on host memory, elementwise ops, against the reference bit by bit.

The harness itself fails on an access outside a tensor, a misaligned one, or a race.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from native_lists import CHUNK, SIZES, Lists, assert_same, chunks_of, clones, ranks_of, run_of

from sparse_kernels import reference

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = [(name, shift) for name in SIZES for shift in (0, 1) if (name, shift) != ("tiny", 1)]
layouts = pytest.mark.parametrize(("name", "shift"), LAYOUTS)
# grad_norm refuses an empty list, and the references that count have nothing to stack
filled = pytest.mark.parametrize(("name", "shift"), [x for x in LAYOUTS if SIZES[x[0]]])
storage = pytest.mark.parametrize("kind", DTYPE)
# thousands of tensors once per op: what overflows a table does not depend on the dtype
CELLS = [(*at, kind) for at in LAYOUTS for kind in DTYPE if at[0] != "tiny" or kind == "float32"]
cells = pytest.mark.parametrize(("name", "shift", "kind"), CELLS)
filled_cells = pytest.mark.parametrize(("name", "shift", "kind"), [x for x in CELLS if SIZES[x[0]]])
masking = pytest.mark.parametrize("masked", [False, True])
forms = pytest.mark.parametrize("kept", ["whole", "masked", "packed"])


def backup_of(lists, kept, kind):
    """masks, backup and ranks of one of the forms in ``forms``."""
    masks = lists.masks() if kept != "whole" else []
    if kept != "packed":
        return masks, lists.normal(DTYPE[kind]), []
    ranks, ones = ranks_of(masks, lists.sizes)
    values = torch.randn(ones, generator=lists.generator).to(DTYPE[kind])
    return masks, [lists.place(values)], ranks


@cells
@forms
def test_masked_perturb(core, name, shift, kind, kept):
    lists = Lists(SIZES[name], shift)
    params, grads = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
    masks, backup, ranks = backup_of(lists, kept, kind)
    for adaptive, saved, norm in itertools.product(
        (False, True), (True, False), (3.0, float("nan"))
    ):
        value = torch.tensor(norm)
        wanted, wanted_backup = clones(params), clones(backup)
        kept_here = (wanted_backup, ranks) if saved else ([], [])
        reference.masked_perturb_ref(
            wanted, grads, value, 0.05, masks, *kept_here, adaptive, 0.01, 1e-3
        )
        run = run_of(
            core, lists.sizes, [params, grads], masks=masks, backup=backup if saved else [],
            ranks=ranks if saved else [],
        )  # fmt: skip
        radius = torch.tensor(0.05)  # on the device, or the host's own
        host = (9.0, 0.01, 1e-3, radius.data_ptr()) if shift else (0.05, 0.01, 1e-3, 0)
        report = core.masked_perturb(run, kind, adaptive, value.data_ptr(), *host)
        assert_same(params, wanted, "params")
        assert_same(backup, wanted_backup, "backup")
        assert report.blocks == chunks_of(lists.sizes)
    lists.check_guards()


@cells
@forms
def test_restore(core, name, shift, kind, kept):
    lists = Lists(SIZES[name], shift)
    params = lists.normal(DTYPE[kind])
    masks, backup, ranks = backup_of(lists, kept, kind)
    wanted = clones(params)
    reference.restore_ref(wanted, masks, backup, ranks)
    run = run_of(core, lists.sizes, [params], masks=masks, backup=backup, ranks=ranks)
    core.restore(run, DTYPE[kind].itemsize)
    assert_same(params, wanted, "params")
    lists.check_guards()


def test_restore_of_8_byte_elements(core):
    lists = Lists(SIZES["mixed"])
    params, backup = lists.normal(torch.float64), lists.normal(torch.float64)
    core.restore(run_of(core, lists.sizes, [params], backup=backup), 8)
    assert_same(params, backup, "params")
    lists.check_guards()


def gates_of(skip, inv_scale):
    """The two device scalars of a base step, or None, and their addresses."""
    gates = [None if v is None else torch.tensor(v) for v in (skip, inv_scale)]
    return gates, [0 if g is None else g.data_ptr() for g in gates]


GATES = [(None, None), (0.0, 0.25), (1.0, 0.25)]


@cells
@forms
def test_restore_sgd(core, name, shift, kind, kept):
    lists = Lists(SIZES[name], shift)
    masks, backup, ranks = backup_of(lists, kept, kind)
    lr, momentum, dampening, decay = 0.1, 0.9, 0.3, 0.02
    rate = torch.tensor(lr)  # on the device, or the host's own
    for with_buffers, nesterov, first, (skip, scale) in itertools.chain(
        itertools.product((False,), (False,), (False,), GATES),
        itertools.product((True,), (False, True), (False, True), GATES[:1]),
        itertools.product((True,), (True,), (False,), GATES[1:]),
    ):
        params, grads = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
        buffers = lists.normal(DTYPE[kind]) if with_buffers else []
        gates, addresses = gates_of(skip, scale)
        wanted, wanted_buffers = clones(params), clones(buffers)
        if lists.sizes:
            reference.restore_sgd_ref(
                wanted, grads, wanted_buffers, masks, backup, ranks, lr, momentum, dampening,
                nesterov, decay, nesterov, first, *gates,
            )  # fmt: skip
        streams = [params, grads, *([buffers] if with_buffers else [])]
        run = run_of(core, lists.sizes, streams, masks=masks, backup=backup, ranks=ranks)
        report = core.restore_sgd(
            run, kind, with_buffers, *addresses, nesterov,
            [9.0 if shift else lr, momentum, 1.0 - dampening, decay], nesterov, first,
            rate.data_ptr() if shift else 0,
        )  # fmt: skip
        assert_same(params, wanted, "params")
        assert_same(buffers, wanted_buffers, "momentum_buffers")
        assert report.blocks == chunks_of(lists.sizes)
    lists.check_guards()


@cells
@forms
def test_restore_adamw(core, name, shift, kind, kept):
    lists = Lists(SIZES[name], shift)
    masks, backup, ranks = backup_of(lists, kept, kind)
    lr, beta1, beta2, eps, decay = 0.1, 0.9, 0.99, 1e-4, 0.02
    count = len(lists.sizes)
    step_sizes, roots = torch.linspace(0.1, 1.0, count + 1), torch.linspace(0.2, 0.9, count + 1)
    for decoupled, (skip, scale) in itertools.product((False, True), GATES):
        params, grads, first, second = (lists.normal(DTYPE[kind]) for _ in range(4))
        for u in second:
            u.abs_()
        gates, addresses = gates_of(skip, scale)
        state = (params, first, second)
        wanted = [clones(x) for x in state]
        if lists.sizes:
            reference.restore_adamw_ref(
                wanted[0], grads, *wanted[1:], masks, backup, ranks, step_sizes, roots, lr, beta1,
                beta2, eps, decay, decoupled, True, *gates,
            )  # fmt: skip
        scalars = [1.0 - beta1, beta2, 1.0 - beta2, eps]
        scalars += [0.0, 1.0 - lr * decay] if decoupled else [decay, 1.0]
        shrink = torch.tensor(scalars[-1])  # on the device, or the host's own
        scalars[-1] = 9.0 if shift else scalars[-1]
        core.restore_adamw(
            run_of(
                core, lists.sizes, [params, grads, first, second], masks=masks, backup=backup,
                ranks=ranks,
            ),
            kind, *addresses, True, step_sizes.data_ptr(), roots.data_ptr(), scalars,
            shrink.data_ptr() if shift else 0,
        )  # fmt: skip
        for ours, expected, what in zip(
            state, wanted, ("params", "exp_avgs", "exp_avg_sqs"), strict=True
        ):
            assert_same(ours, expected, what)
    lists.check_guards()


@storage
def test_a_packed_backup_that_is_too_small_leaves_chunks_alone(core, kind):
    """Never outside: a chunk whose entries do not all have a place is not touched."""
    lists = Lists([CHUNK + 100, CHUNK])
    params, grads = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
    masks = lists.masks()
    ranks, ones = ranks_of(masks, lists.sizes)
    packed = [lists.place(torch.zeros(ones - 1, dtype=DTYPE[kind]))]
    before = clones(params)
    norm = torch.tensor(1.0)
    run = run_of(core, lists.sizes, [params, grads], masks=masks, backup=packed, ranks=ranks)
    core.masked_perturb(run, kind, False, norm.data_ptr(), 0.5, 0.0, 0.0, 0)
    assert_same(params[1:], before[1:], "params")
    assert not torch.equal(params[0], before[0])
    ranks[0] -= 1
    run = run_of(core, lists.sizes, [params], masks=masks, backup=packed, ranks=ranks)
    report = core.restore(run, DTYPE[kind].itemsize)
    moved = {r.begin: (r.loaded, r.stored) for r in report.ranges}
    assert moved[params[1].data_ptr()] == (0, 0)
    lists.check_guards()


@filled_cells
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


@storage
def test_nan_inf_and_signed_zero_pass_through(core, kind):
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 0.3, -0.3, 1e-40])
    grid = torch.cartesian_prod(special, special)
    lists = Lists([grid.shape[0]])
    params = [lists.place(grid[:, 0].to(DTYPE[kind]))]
    grads = [lists.place(grid[:, 1].to(DTYPE[kind]))]
    norm = torch.tensor(0.5)
    wanted = clones(params)
    reference.masked_perturb_ref(wanted, grads, norm, 0.05, [], [], [], True, 0.0, 0.0)
    run = run_of(core, lists.sizes, [params, grads])
    core.masked_perturb(run, kind, True, norm.data_ptr(), 0.05, 0.0, 0.0, 0)
    assert_same(params, wanted, "params")
