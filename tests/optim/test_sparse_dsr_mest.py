"""DSR and MEST: selection, counts that move, schedules (sparse-sam.md, property 31)."""

import doctest
from fractions import Fraction

import pytest
import torch
from sparse_cases import (
    GROW,
    as_sets,
    assert_counts,
    assert_values,
    injected_grads,
    prepared,
    random_scores,
    sgd,
    top,
    values,
    wide,
)
from sparse_optim import DSR, MEST, live_count
from sparse_optim.sparse_training import _dsr


def share_oracle(total, shares, room):
    """Exact real shares with overflow passed on, by raising the level until they add up."""
    levels = sorted({Fraction(r, s) for r, s in zip(room, shares, strict=True) if s})
    low = Fraction(0)
    for level in levels:
        if sum(min(r, level * s) for r, s in zip(room, shares, strict=True)) >= total:
            break
        low = level
    fixed = sum(r for r, s in zip(room, shares, strict=True) if s and Fraction(r, s) <= low)
    rest = sum(s for r, s in zip(room, shares, strict=True) if s and Fraction(r, s) > low)
    level = Fraction(total - fixed, rest) if rest else low
    return [min(Fraction(r), level * s) for r, s in zip(room, shares, strict=True)]


@pytest.mark.parametrize("grown_state", ["keep", "zero"])
@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9])
def test_property_31_dsr(backend, sparsity, grown_state):
    model = wide()
    opt = sgd(model)
    sparse = DSR(model, opt, sparsity, first_dense=False, update_every=1, threshold=1.5, seed=2,
                 target=40, grown_state=grown_state, backend=backend)  # fmt: skip
    total, moved, capped = sparse.mask.live, set(), False
    for update in range(1, 8):
        old, before = prepared(sparse, opt, update), as_sets(sparse)
        threshold = sparse.threshold
        assert sparse.step() is False
        sizes = [p.numel() for p in old.values()]
        magnitudes = values(p.abs() for p in old.values())
        keeps = []
        for magnitude, was in zip(magnitudes, before, strict=True):
            keep = {i for i in was if magnitude[i] >= threshold}
            keeps.append(keep or top(magnitude, 1, was))
        room = sum(sizes) - total
        if total - sum(map(len, keeps)) > room:  # as many go as there is room, over all layers
            capped = True
            best = [top(m, 1, was) for m, was in zip(magnitudes, before, strict=True)]
            rest = [(-m[i], n, i) for n, m in enumerate(magnitudes) for i in before[n] - best[n]]
            chosen = sorted(rest)[: total - room - sum(map(len, best))]
            keeps = [b | {i for _, layer, i in chosen if layer == n} for n, b in enumerate(best)]
        dropped = total - sum(map(len, keeps))
        wanted = share_oracle(
            dropped, [len(k) for k in keeps],
            [n - len(was) for n, was in zip(sizes, before, strict=True)],
        )  # fmt: skip
        now = as_sets(sparse)
        numbers = values(random_scores(sparse, GROW, update))
        for n, (keep, was) in enumerate(zip(keeps, before, strict=True)):
            grown = now[n] - was
            assert now[n] - grown == keep  # nothing just pruned is back
            assert grown == top(numbers[n], len(grown), set(range(sizes[n])) - was)
            assert abs(len(grown) - wanted[n]) < 1
        assert sum(map(len, now)) == total
        assert_values(sparse, opt, old, keeps, grown_state == "keep")
        assert_counts(sparse)
        expected = threshold / 2 if dropped > 44 else threshold * 2 if dropped < 36 else threshold
        assert sparse.threshold == expected
        moved.add(tuple(map(len, now)))
    assert len(moved) > 1  # the layers' counts do move
    assert capped == (sparsity == 0.05)


def test_dsr_keeps_one_weight_per_layer_and_follows_its_periods():
    model = wide()
    sparse = DSR(model, sgd(model), 0.9, first_dense=False, threshold=1e9, seed=2,
                 update_every=[(0, 2), (6, 3)], stop_at=12)  # fmt: skip
    total, due = sparse.mask.live, []
    assert sparse.target == total // 10
    for t in range(1, 16):
        if sparse.update_due:
            due.append(t)
            best = [int(p.detach().abs().argmax()) for p in sparse.weights.values()]
        sparse.step()
        if t == 2:  # every weight is below the threshold
            assert all(b in now for b, now in zip(best, as_sets(sparse), strict=True))
            assert [int(p.count_nonzero()) for p in sparse.weights.values()] == [1, 1, 1]
            assert sparse.threshold == 5e8
    assert due == [2, 4, 6, 9]
    assert sparse.mask.live == total


@pytest.mark.parametrize("weight_grad", [0.0, 0.75])
@pytest.mark.parametrize("grown_state", ["keep", "zero"])
def test_property_31_mest(backend, grown_state, weight_grad):
    model = wide()
    opt = sgd(model)
    lower, upper = [(0, 0.9), (6, 0.7)], [(0, 0.8), (3, 0.5)]
    sparse = MEST(model, opt, 0.8, lower=lower, upper=upper, first_dense=False, update_every=3,
                  seed=2, weight_grad=weight_grad, grown_state=grown_state,
                  backend=backend)  # fmt: skip
    updates = regrown = 0
    for t in range(8):
        old, before = prepared(sparse, opt, t), as_sets(sparse)
        grads = injected_grads(sparse, t)
        for p, g in zip(sparse.weights.values(), grads, strict=True):
            p.grad = g.clone()
        assert sparse.update_due == (t in (0, 3, 6))
        assert sparse.step() is False
        if t not in (0, 3, 6):
            assert as_sets(sparse) == before
            continue
        updates += 1
        low, high = (0.9 if t < 6 else 0.7), (0.8 if t < 3 else 0.5)
        keeps = []
        score = [p.abs() + weight_grad * g.abs() for p, g in zip(old.values(), grads, strict=True)]
        numbers = values(random_scores(sparse, GROW, updates))
        for s, number, was, now in zip(
            values(score), numbers, before, as_sets(sparse), strict=True
        ):
            keep = top(s, min(live_count(len(s), low), len(was)), was)
            grow = live_count(len(s), high) - len(keep)
            assert now == keep | top(number, grow, set(range(len(s))) - keep)
            assert len(now) == live_count(len(s), high)
            regrown += len((now & was) - keep)
            keeps.append(keep)
        assert_values(sparse, opt, old, keeps, grown_state == "keep")
        assert_counts(sparse)
    assert regrown > 0


def test_mest_exchanges_a_fifth_by_default_and_needs_no_gradient():
    model = wide()
    sparse = MEST(model, sgd(model), 0.9, first_dense=False)
    assert sparse.lower.at(0) == pytest.approx(0.92)
    assert sparse.upper.at(10**6) == 0.9
    with torch.no_grad():
        for p in sparse.weights.values():
            p.add_(1.0).sub_(1.0)
    sparse.step()
    kept = [int(p.count_nonzero()) for p in sparse.weights.values()]
    assert all(k <= live_count(p.numel(), 0.92) for k, p in zip(kept, sparse._params, strict=True))
    assert sparse.mask.live == sum(live_count(p.numel(), 0.9) for p in sparse._params)


def test_docstring_examples():
    assert doctest.testmod(_dsr, extraglobs={"torch": torch}).failed == 0
