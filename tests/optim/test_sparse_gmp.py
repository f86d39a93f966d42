"""Gradual magnitude pruning: its ramp, what it keeps, and its times."""

import doctest
import math

import pytest
import torch
from optim_cases import assert_same_bits, mlp
from sparse_cases import as_sets, assert_counts, assert_values, prepared, sgd, top, values, wide
from sparse_optim import GMP, layer_counts, live_count
from sparse_optim.sparse_training import _gmp
from torch.optim import AdamW


def ramp(start, end, t0, t1, t):
    x = min(max((t - t0) / (t1 - t0), 0.0), 1.0)
    return end + (start - end) * (1.0 - x) ** 3


@pytest.mark.parametrize("grown_state", ["zero", "keep"])
@pytest.mark.parametrize("distribution", ["global", "erk", "uniform"])
def test_the_largest_weights_stay(backend, distribution, grown_state):
    model = wide()
    opt = sgd(model)
    sparse = GMP(model, opt, 0.9, distribution, start_at=2, stop_at=11, update_every=3,
                 first_dense=False, grown_state=grown_state, backend=backend)  # fmt: skip
    sizes = [p.numel() for p in sparse.weights.values()]
    assert sparse.mask.live == sum(sizes)
    updated = []
    for t in range(1, 14):
        old, before = prepared(sparse, opt, t), as_sets(sparse)
        due = sparse.update_due
        assert sparse.step() is False
        if not due:
            assert as_sets(sparse) == before
            continue
        updated.append(t)
        wanted = ramp(0.0, 0.9, 2, 11, t)
        magnitudes = values(p.abs() for p in old.values())
        if distribution == "global":
            flat = [(s, i) for i, layer in enumerate(magnitudes) for s in layer]
            best = top([s for s, _ in flat], live_count(len(flat), wanted), range(len(flat)))
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            expected = [
                {i - first for i in best if first <= i < first + size}
                for first, size in zip(starts, sizes, strict=True)
            ]
        else:
            shapes = {n: p.shape for n, p in sparse.weights.items()}
            counts = layer_counts(shapes, wanted, distribution, first_dense=False).values()
            expected = [
                top(own, k, range(len(own))) for own, k in zip(magnitudes, counts, strict=True)
            ]
        assert as_sets(sparse) == expected
        assert_counts(sparse)
        # integer weights tie at 0: a live zero is no better than a dead one and has no state yet
        holders = [now & was for now, was in zip(expected, before, strict=True)]
        assert_values(sparse, opt, old, holders, grown_state == "keep")
    assert updated == [3, 6, 9, 11]  # the last one whether or not the period divides it
    assert sparse.mask.live == live_count(sum(sizes), 0.9)


def test_a_start_that_is_sparse_already():
    model = mlp()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    sparse = GMP(model, sgd(model), 0.8, initial_sparsity=0.5, stop_at=4, update_every=2)
    flat = torch.cat([before[n].abs().reshape(-1) for n in sparse.weights])
    kept = live_count(flat.numel(), 0.5)
    assert sparse.mask.live == kept
    threshold = flat.sort(descending=True).values[kept - 1]
    for name, p in sparse.weights.items():
        assert_same_bits(p.detach(), torch.where(before[name].abs() >= threshold, p, 0.0).detach())
    live = []
    for _ in range(5):
        sparse.step()
        live.append(sparse.mask.live)
    assert live[0] == kept
    assert live[1] == live_count(flat.numel(), ramp(0.5, 0.8, 0, 4, 2))
    assert live[3] == live[4] == live_count(flat.numel(), 0.8)


def test_pruned_weights_have_no_moments_of_adamw():
    model = mlp()
    opt = AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    sparse = GMP(model, opt, 0.7, stop_at=6, update_every=1)
    for _ in range(9):
        opt.zero_grad()
        model(torch.ones(4, 6)).square().sum().backward()
        assert sparse.step() is False
        opt.step()
        for p, m in zip(sparse.weights.values(), sparse.mask.to_bool(), strict=True):
            for value in (p.detach(), opt.state[p]["exp_avg"], opt.state[p]["exp_avg_sq"]):
                assert not value[~m].any()
    assert sparse.mask.live == live_count(sparse.mask.numel, 0.7)
    assert not sparse.update_due


def test_bad_input_is_refused_by_name():
    model = mlp()
    opt = sgd(model)
    for options, word in (
        ({"sparsity": 1.5}, "sparsity"),
        ({"initial_sparsity": 0.6}, "initial_sparsity"),
        ({"initial_sparsity": -0.1}, "initial_sparsity"),
        ({"start_at": -1}, "start_at"),
        ({"start_at": 9, "stop_at": 9}, "stop_at"),
        ({"update_every": 0}, "update_every"),
        ({"distribution": "power"}, "distribution must be one of .'global', 'uniform'"),
        ({"sparsity": math.nan}, "sparsity"),
    ):
        with pytest.raises(ValueError, match=word):
            GMP(model, opt, **{"sparsity": 0.5, **options})


def test_docstring_example():
    assert doctest.testmod(_gmp, extraglobs={"torch": torch}).failed == 0
