"""The CUDA kernels' programs on host memory, Bregman steps, against the reference bit by bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from native_lists import SIZES, Lists, assert_same, clones, run_of

from sparse_kernels import reference

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = [(name, shift) for name in SIZES for shift in (0, 1) if SIZES[name]]
# thousands of tensors once per op: what overflows a table does not depend on the dtype
CELLS = [(*at, kind) for at in LAYOUTS for kind in DTYPE
         if at[0] != "tiny" or (at[1] == 0 and kind == "float32")]  # fmt: skip
cells = pytest.mark.parametrize(("name", "shift", "kind"), CELLS)
masking = pytest.mark.parametrize("masked", [False, True])

#: with a dual, with its readout, lam, (nonnegative, dual_leak, fine_scale)
BREGMAN = [
    (False, True, 0.0, (False, 0.0, 1.0)), (False, True, 0.3, (False, 0.0, 1.0)),
    (False, True, 0.0, (True, 0.0, 1.0)), (True, True, 0.3, (False, 0.0, 1.0)),
    (True, True, 0.3, (True, 0.1, 3.0)), (True, True, 0.3, (False, 0.2, 5.0)),
    (True, False, 0.3, (False, 0.1, 1.0)),
]  # fmt: skip


def forms_of(name):
    """Fewer of thousands of tensors: what overflows a table does not depend on the scalars."""
    return BREGMAN[1::3] if name == "tiny" else BREGMAN


def readout_scalars(lam, delta, decay, nonnegative, leak, fine_scale):
    return [lam, -math.inf if nonnegative else -lam, delta, decay, leak, fine_scale]


def zero_some(params):
    for p in params:
        p[::3] = 0.0


@cells
@masking
def test_linbreg_step(core, name, shift, kind, masked):
    lists = Lists(SIZES[name], shift)
    masks = lists.masks() if masked else []
    lr, delta, beta, decay = 0.1, 1.5, 0.9, 0.01
    for (dual, read, lam, resting), momentum in itertools.product(forms_of(name), (False, True)):
        params, grads = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
        if not read:
            zero_some(params)
        duals = lists.normal(torch.float32) if dual else []
        buffers = lists.normal(torch.float32) if momentum else []
        wanted = [clones(x) for x in (params, duals, buffers)]
        live_ref = reference.linbreg_step_ref(
            wanted[0], grads, wanted[1], wanted[2], masks, lr, lam, delta, beta, "ema", momentum,
            decay, True, *resting[:1], read, *resting[1:],
        )  # fmt: skip
        scale = 1.0 if dual else delta
        step, gain = (scale, (1.0 - beta) * lr) if momentum else (lr * scale, 1.0)
        readout = readout_scalars(lam, delta, lr * decay * scale, *resting)
        streams = [params, grads, *([duals] if dual else []), *([buffers] if momentum else [])]
        live = torch.zeros(len(lists.sizes), dtype=torch.int64)
        run = run_of(core, lists.sizes, streams, masks=masks)
        host, device = [-1.0, beta, gain, step], None
        if name != "tiny" and shift:  # the same numbers on the device, others on the host
            device = torch.tensor([lam, readout[3], step, gain])
            readout = readout_scalars(0.0, delta, 7.0, *resting)
            host = [-1.0, beta, 8.0, 9.0]
        core.linbreg_step(
            run, kind, dual, read, momentum, readout, host, momentum, live.data_ptr(),
            0 if device is None else device.data_ptr(),
        )  # fmt: skip
        for ours, expected, what in zip(
            (params, duals, buffers), wanted, ("params", "duals", "buffers"), strict=True
        ):
            assert_same(ours, expected, what)
        assert torch.equal(live, live_ref)
    lists.check_guards()


@cells
@masking
def test_adabreg_step(core, name, shift, kind, masked):
    lists = Lists(SIZES[name], shift)
    masks = lists.masks() if masked else []
    lr, delta, beta1, beta2, eps, decay, step = 0.01, 1.5, 0.9, 0.99, 1e-4, 0.02, 3
    for (dual, read, lam, resting), counted in itertools.product(forms_of(name), (False, True)):
        params, grads = lists.normal(DTYPE[kind]), lists.normal(DTYPE[kind])
        if not read:
            zero_some(params)
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
            beta1, beta2, eps, decay, False, *resting[:1], read, *resting[1:], step, step_sizes,
            bias2_sqrts,
        )  # fmt: skip
        scalars = [
            1.0, 1.0 - beta1, beta2, 1.0 - beta2, eps, lr * scale / (1.0 - beta1**step),
            (1.0 - beta2**step) ** 0.5,
        ]  # fmt: skip
        streams = [params, grads, *([duals] if dual else []), averages, squares]
        streams += [counts] if counted else []
        live = torch.zeros(len(lists.sizes), dtype=torch.int64)
        readout, device = readout_scalars(lam, delta, lr * decay * scale, *resting), None
        if name != "tiny" and shift:  # the same numbers on the device, others on the host
            device = torch.tensor([lam, readout[3], *scalars[5:]])
            readout = readout_scalars(0.0, delta, 7.0, *resting)
            scalars[5:] = 8.0, 9.0
        core.adabreg_step(
            run_of(core, lists.sizes, streams, masks=masks), kind, dual, read, counted, readout,
            scalars, step_sizes.data_ptr(), bias2_sqrts.data_ptr(), rows.numel(), live.data_ptr(),
            0 if device is None else device.data_ptr(),
        )  # fmt: skip
        for ours, expected, what in zip(
            state, wanted, ("params", "duals", "averages", "squares", "counts"), strict=True
        ):
            assert_same(ours, expected, what)
        assert torch.equal(live, live_ref)
    lists.check_guards()
