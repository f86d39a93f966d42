"""Mask patterns through the policies and SSAM (sparse-sam.md 3.2, properties 17, 20, 21)."""

import math

import pytest
import torch
from sam_cases import make_params
from sparse_optim import (
    SSAM,
    BitMask,
    MagnitudeMask,
    MaskPolicy,
    Pattern,
    RandomMask,
    live_count,
)
from torch import nn
from torch.optim import SGD

SPARSITIES = [0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1]
POLICIES = [MagnitudeMask(), RandomMask()]


class Given(MaskPolicy):
    """Ranks by the scores it is given."""

    needs_data = True

    def scores(self, params, *data, seed, update):
        return list(data)


def chosen(scores, sparsity, **options):
    return Given().compute(scores, sparsity, *scores, **options).to_bool()


# unstructured -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("sizes", [(1,), (3, 4), (400, 1, 0, 599)])
def test_property_17_counts_per_layer_and_within(policy, sparsity, sizes):
    params = [torch.randn(n) for n in sizes]
    exists = [torch.rand(n) < 0.6 for n in sizes]
    within = BitMask.from_bool(exists)
    mask = policy.compute(params, sparsity, within=within)
    assert mask.live == live_count(within.live, sparsity)
    assert (mask - within).live == 0
    layered = policy.compute(params, sparsity, pattern=Pattern(per_layer=True))
    assert layered.popcount() == [live_count(n, sparsity) for n in sizes]
    both = policy.compute(params, sparsity, pattern=Pattern(per_layer=True), within=within)
    assert both.popcount() == [live_count(int(e.sum()), sparsity) for e in exists]
    assert (both - within).live == 0


def test_property_17_parity_counts_reach_the_masks():
    params = [torch.randn(1000)]
    for rule, sparsity, k in (("trunc", 0.9, 99), ("trunc", 0.8, 199), ("ceil", 0.5, 500)):
        assert MagnitudeMask(rule).compute(params, sparsity).live == k
        opt = SSAM([nn.Parameter(params[0])], SGD, sparsity=sparsity, mask=RandomMask(rule), lr=0.1)
        assert opt.mask.live == k


def test_selection_within_a_weight_mask_takes_the_best_that_exist():
    scores, exists = [torch.randn(40, 3), torch.randn(77)], [torch.rand(40, 3), torch.rand(77)]
    exists = [e < 0.5 for e in exists]
    got = torch.cat([m.reshape(-1) for m in chosen(scores, 0.7, within=BitMask.from_bool(exists))])
    flat, here = (torch.cat([t.reshape(-1) for t in ts]) for ts in (scores, exists))
    k = live_count(int(here.sum()), 0.7)
    best = torch.where(here, flat, -math.inf).topk(k).indices.sort().values
    assert torch.equal(got.nonzero().reshape(-1), best)


# n:m --------------------------------------------------------------------------------------------


def groups_of(table, m):
    """Rows cut into groups of m, the last one short."""
    return [(r, table[r, i : i + m]) for r in range(len(table)) for i in range(0, len(table[0]), m)]


@pytest.mark.parametrize("ratio", [(1, 2), (2, 4), (1, 4), (3, 4), (0, 4), (4, 4), (2, 3), (4, 8)])
@pytest.mark.parametrize(
    "shape", [(3, 8), (5, 7), (4, 3, 3), (2, 3, 2, 5), (3, 2, 2, 2, 3), (1, 1)]
)
@pytest.mark.parametrize("ties", [False, True])
def test_property_20_groups_and_remainders(ratio, shape, ties):
    n, m = ratio
    score = torch.randint(-1, 2, shape).float() if ties else torch.randn(shape)
    (mask,) = chosen([score], 0.9, pattern=f"{n}:{m}")  # the sparsity is ignored
    assert mask.shape == score.shape
    table, values = mask.reshape(shape[0], -1), score.reshape(shape[0], -1)
    for (_, on), (_, value) in zip(groups_of(table, m), groups_of(values, m), strict=True):
        order = sorted(range(len(value)), key=lambda i, v=value: (-float(v[i]), i))
        assert on.nonzero().reshape(-1).tolist() == sorted(order[: min(n, len(value))])
    rows, cols = table.shape
    assert int(mask.sum()) == rows * (cols // m * n + min(n, cols % m))


@pytest.mark.parametrize("ratio", ["1:2", "2:4", "3:5"])
@pytest.mark.parametrize("shape", [(8, 6), (7, 5), (1, 9)])
def test_property_20_the_axes_are_transposes(ratio, shape):
    score = torch.randn(shape)
    (out,) = chosen([score], 0.5, pattern=ratio, axis="out")
    (turned,) = chosen([score.t().contiguous()], 0.5, pattern=ratio)
    assert torch.equal(out, turned.t())
    (again,) = chosen([score], 0.5, pattern=Pattern(ratio, axis="out"))
    assert torch.equal(out, again)


def test_property_20_kept_fisher_mass_of_a_convolution():
    """Regression: groups in another index order than the weight's keep half of the mass."""
    score = torch.randn(64, 32, 3, 3).square()
    for axis in ("in", "out"):
        (mask,) = chosen([score], 0.5, pattern="2:4", axis=axis)
        assert float(score[mask].sum() / score.sum()) > 0.6


def test_property_20_one_dimensional_parameters_stay_whole():
    params = make_params(((6, 8), (6,), (), (4, 2, 2)))
    mask = MagnitudeMask().compute(params, 0.9, pattern="1:4")
    assert mask.popcount() == [12, 6, 1, 4]
    assert RandomMask().compute(params, 0.9, seed=1, pattern="1:4").popcount() == [12, 6, 1, 4]


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("policy", ["value", "abs", "random"])
def test_n_of_m_is_chosen_among_the_weights_that_exist(policy, axis):
    """The best scores stand where no weight is: min(n, existing) of every group all the same."""
    exists = torch.rand(12, 10) < 0.5
    params = [torch.where(exists, torch.rand(12, 10), 5.0), torch.zeros(3)]
    within = BitMask.from_bool([exists, torch.tensor([True, False, True])])
    how = {"pattern": "2:4", "axis": axis, "within": within}
    if policy == "value":
        mask = Given().compute(params, 0.5, *params, **how)
    else:
        mask = (MagnitudeMask() if policy == "abs" else RandomMask()).compute(params, 0.5, **how)
    on, small = mask.to_bool()
    assert torch.equal(small, torch.tensor([True, False, True]))
    assert not (on & ~exists).any()
    on, there = (on, exists) if axis == "in" else (on.t(), exists.t())
    for (_, a), (_, b) in zip(groups_of(on, 4), groups_of(there, 4), strict=True):
        assert int(a.sum()) == min(2, int(b.sum()))


# units ------------------------------------------------------------------------------------------


def walk(scores, k, fill, unit_dim=None):
    """Units by mean score, ties by the first index; on while they fit (or until k is reached)."""
    units = []
    for t, s in enumerate(scores):
        if unit_dim is None or s.dim() == 0:
            units.append((t, ..., s))
            continue
        d = unit_dim if unit_dim < s.dim() else 0
        for i in range(s.shape[d]):
            at = (slice(None),) * d + (i,)
            units.append((t, at, s[at]))
    order = sorted(range(len(units)), key=lambda u: (-float(units[u][2].double().mean()), u))
    masks, live = [torch.zeros(s.shape, dtype=torch.bool) for s in scores], 0
    for rank, u in enumerate(order):
        t, at, part = units[u]
        fits = live < k if fill == "over" else live + part.numel() <= k
        if not fits and not (rank == 0 and k > 0):
            break
        masks[t][at] = True
        live += part.numel()
    return masks, live, max(part.numel() for _, _, part in units)


@pytest.mark.parametrize("fill", ["under", "over"])
@pytest.mark.parametrize("pattern", ["row", "filter", "row of dim 1", "tensor"])
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.5, 0.9, 0.99, 1])
def test_property_21_units(sparsity, pattern, fill):
    name, unit_dim = pattern.split()[0], 1 if pattern.endswith("1") else 0
    for trial in range(3):
        shapes = ((7, 6), (5,), (4, 3, 2, 2), (), (9, 2))
        scores = [s.detach() for s in make_params(shapes, seed=trial)]
        if trial == 2:
            scores = [s.round() for s in scores]  # ties
        k = live_count(sum(s.numel() for s in scores), sparsity)
        expected, live, largest = walk(scores, k, fill, None if name == "tensor" else unit_dim)
        how = Pattern(name, unit_dim=unit_dim, fill=fill)
        got = chosen(scores, sparsity, pattern=how)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        if fill == "over":
            assert k <= live < k + largest
        elif k >= largest:
            assert k - largest < live <= k


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_property_21_published_overshoot(sparsity):
    """Whole tensors of 10, 100, 1000 and 10000 entries, the largest ranked first: 0.90 stay."""
    scores = [torch.full((n,), float(n)) for n in (10, 100, 1000, 10000)]
    mask = BitMask.from_bool(chosen(scores, sparsity, pattern=Pattern("tensor", fill="over")))
    assert mask.live / mask.numel == pytest.approx(0.90, abs=0.001)
    rows = BitMask.from_bool(chosen(scores, sparsity, pattern="row"))
    assert rows.live == live_count(11110, sparsity)


@pytest.mark.parametrize("policy", [RandomMask(), MagnitudeMask()])
def test_rows_of_existing_weights_count_and_rank_by_what_exists(policy):
    params = [p.detach() for p in make_params(((40, 8), (6, 5)))]
    exists = [torch.rand(p.shape) < 0.5 for p in params]
    exists[0][3] = False  # a row without weights
    params[0][3], params[0][~exists[0]] = 50.0, 50.0  # scores of what does not exist
    within = BitMask.from_bool(exists)
    mask = policy.compute(params, 0.6, pattern="row", within=within)
    k = live_count(within.live, 0.6)
    assert k - 8 < mask.live <= k
    for on, there in zip(mask.to_bool(), exists, strict=True):
        assert not (on & ~there).any()
        for a, b in zip(on, there, strict=True):
            assert torch.equal(a, b) or not a.any()  # whole units
    if isinstance(policy, MagnitudeMask):
        ranked = sorted(
            (float(-row[e].abs().mean()), not on.any())
            for p, m, x in zip(params, mask.to_bool(), exists, strict=True)
            for row, on, e in zip(p, m, x, strict=True)
            if e.any()
        )
        assert [off for _, off in ranked] == sorted(off for _, off in ranked)
    elif policy.compute(params, 0.6, pattern="row", within=within, update=1) == mask:
        pytest.fail("the update number does not key the units")
