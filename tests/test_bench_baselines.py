"""The baselines of the benchmark do what ours does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from bench import coarse_cases, mask_cases, step_cases, zo_cases
from bench.cases import Data


def data_of(dtype, *sizes):
    return Data.make([(n,) for n in sizes], dtype, "cpu")


def run(stages, before):
    passed = None
    for number, stage in enumerate(stages):
        before(number)
        passed = stage(passed)


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("q", [1, 4, 16])
def test_sums_add_q_independent_directions(distribution, q):
    data = data_of(torch.float32, 8192, 8192)
    case = zo_cases.sums(data, distribution, q, smoothing=1.0)
    ways = [lambda: case.fused("auto"), case.eager, lambda: case.eager(case.graphs)]
    for way in ways:
        before = [p.clone() for p in data.params]
        way()
        moves = torch.cat([p - b for p, b in zip(data.params, before, strict=True)]).double()
        # variance q; 16,384 entries know it to 1.1 %: the same direction q times would be q^2 or 0
        assert moves.var().item() == pytest.approx(q, rel=0.05)


def test_mezo_baselines_take_the_step_of_the_optimizer():
    """They all move by -lr (c z + decay w) with some standard normal z, and by nothing else."""
    data = data_of(torch.float64, 8192)
    slope = (zo_cases.LOSSES[0] - zo_cases.LOSSES[1]) / (2 * zo_cases.SMOOTHING)
    start = [p.clone() for p in data.params]
    drawn = []

    def take(after):
        kept = 1 - zo_cases.LR * zo_cases.DECAY
        z = (start[0] * kept - after[0]) / (zo_cases.LR * slope)
        assert z.var().item() == pytest.approx(1, rel=0.07)
        drawn.append(z)

    for stages in (zo_cases.mezo_stages, zo_cases.mezo_graphs):
        params = [p.clone() for p in start]
        run(stages(params), zo_cases._reseed)
        take(params)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-6)  # one seed
    for restore in ("exact", "replay"):
        zo_cases.mezo_step(data, restore).fused("auto")
        take(data.params)
        data.params[0].copy_(start[0])
    torch.testing.assert_close(drawn[2], drawn[3], rtol=0, atol=1e-6)


def test_zosam_baselines_take_the_step_of_the_optimizer():
    """Whatever was drawn, the weights come back and take the base step."""
    data = data_of(torch.float64, 4096, 4096)
    start = [p.clone() for p in data.params]

    def fresh():
        made = [nn.Parameter(p.clone()) for p in start]
        for p, g in zip(made, data.grads, strict=True):
            p.grad = g
        return made

    plain = fresh()
    SGD(plain, **zo_cases.SGD_OPTIONS).step()
    eager = fresh()
    run(zo_cases.zosam_stages(eager, SGD(eager, **zo_cases.SGD_OPTIONS)), zo_cases._reseed)
    graph = [p.clone() for p in start]
    update = zo_cases.base_graph("sgd", graph, data)
    run(zo_cases.zosam_graphs(graph, update), zo_cases._reseed)
    zo_cases.zosam_step(data).fused("auto")
    for found in (eager, graph, data.params):
        for f, p, s in zip(found, plain, start, strict=True):
            torch.testing.assert_close(f, p, rtol=0, atol=1e-14, check_device=False)
            assert not torch.equal(f, s)


def test_zosam_baselines_ascend_by_rho():
    data = data_of(torch.float64, 4096, 4096)
    for kind in ("eager", "graph"):
        params = [p.clone() for p in data.params]
        if kind == "eager":
            stages = zo_cases.zosam_stages(params, SGD([nn.Parameter(torch.zeros(1))]))
        else:
            stages = zo_cases.zosam_graphs(params, lambda _: None)
        run(stages[:-1], zo_cases._reseed)
        moved = [p - s for p, s in zip(params, data.params, strict=True)]
        length = torch.cat(moved).norm().item()
        assert length == pytest.approx(zo_cases.RHO, rel=1e-5)


def test_coarse_steps_leave_the_weights_of_dense_steps():
    """Learning rates of 1e-7 hardly move a weight: support and values are those of the duals."""
    data = data_of(torch.float32, 4096)
    for rows in (False, True):
        case = coarse_cases.coarse(data, coarse_cases.LinBreg, {}, "dense gradient", rows)
        case.fused("auto")
        coarse = data.params[0].clone()
        data.params[0].fill_(7.0)
        case.dense("auto")
        assert 0.02 < (coarse != 0).float().mean() < 0.1
        assert torch.equal(coarse != 0, data.params[0] != 0)
        if not rows:  # rows are shrunk by their norm, entries by lam
            torch.testing.assert_close(coarse, data.params[0], rtol=0, atol=5e-6)


@pytest.mark.parametrize("form", ["foreach", "fused"])
def test_a_restoring_step_is_that_of_torchs_optimizer(form):
    ours, theirs = data_of(torch.float64, 4096), data_of(torch.float64, 4096)
    start = ours.params[0].clone()
    step_cases.restore_step(ours, "sgd").fused("auto")
    step_cases.restore_step(theirs, "sgd").torch_step.runs[form]()
    torch.testing.assert_close(ours.params, theirs.params, rtol=0, atol=1e-14)
    assert not torch.equal(ours.params[0], start)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_restoring_steps_move_the_bytes_of_torchs_optimizers(base):
    case = step_cases.restore_step(data_of(torch.float32, 64), base)
    assert case.torch_step.bytes_per_element == case.bytes_per_element


def test_masks_have_the_words_and_entries_of_their_eager_sides():
    data = data_of(torch.float32, 4096)
    words = mask_cases.pack(data)
    assert torch.equal(words.fused("auto")[0], words.eager()[0])
    bools = mask_cases.unpack(data)
    assert torch.equal(bools.fused("auto")[0], bools.eager()[0])
    threshold = mask_cases.kth(data)
    assert threshold.fused("auto") == threshold.eager()
    for axis in ("in", "out"):
        pairs = mask_cases.two_of_four(mask_cases.as_matrices(data), axis)
        assert mask_cases.sk.count_ones(pairs.fused("auto"))[0] == pairs.eager()[0].sum() == 2048
    numbers = mask_cases.index(data)
    assert torch.equal(numbers.fused("auto")[0].long(), numbers.eager()[0])
    copies = mask_cases.entries(data, scatter=False)
    assert torch.equal(copies.fused("auto")[0], copies.eager()[0])
