"""SET and RigL: selection, counts, values and state (sparse-sam.md section 5, property 31)."""

import doctest
import math

import pytest
import torch
from optim_cases import assert_same_bits, mlp
from sparse_cases import (
    GROW,
    INIT,
    as_sets,
    assert_counts,
    assert_values,
    injected_grads,
    masks_of,
    prepared,
    random_scores,
    sgd,
    top,
    values,
    wide,
)
from sparse_optim import DSR, MEST, SET, RigL, _policy, layer_counts, live_count
from sparse_optim.sparse_training import _dynamic, dynamic

# -- the mask at the start ----------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["erk", "er", "uniform"])
@pytest.mark.parametrize("method", [SET, DSR, RigL, MEST])
def test_first_masks_follow_the_distribution(method, distribution):
    model = wide()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    sparse = method(model, sgd(model), 0.8, distribution, dense_layers=["3"], seed=5)
    names = ["0.weight", "2.weight"] if distribution != "uniform" else ["2.weight"]
    assert list(sparse.weights) == names
    shapes = {n: before[n].shape for n in ("0.weight", "2.weight", "3.weight")}
    counts = layer_counts(shapes, 0.8, distribution, dense_layers=["3"])
    assert sparse.layer_live == {n: counts[n] for n in names}
    assert_counts(sparse)
    scores = random_scores(sparse, INIT, 0)
    if method is MEST:
        scores = [before[n].abs() for n in names]
    for name, live, score in zip(names, as_sets(sparse), values(scores), strict=True):
        assert live == top(score, counts[name], range(len(score)))
    for name, p in model.named_parameters():
        mask = masks_of(sparse).get(name, torch.ones(p.shape, dtype=torch.bool))
        assert_same_bits(p.detach(), torch.where(mask, before[name], 0.0))


# -- one update after another, against sets of indices -----------------------------------------


@pytest.mark.parametrize("grown_state", ["zero", "keep"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_property_31_set(backend, sparsity, grown_state):
    model = wide()
    opt = sgd(model)
    sparse = SET(model, opt, sparsity, update_every=1, seed=2, backend=backend,
                 grown_state=grown_state)  # fmt: skip
    regrown = 0
    for update in range(1, 13):
        old, before = prepared(sparse, opt, update), as_sets(sparse)
        assert sparse.update_due
        assert sparse.step() is False
        keeps = []
        scores = zip(
            values(p.abs() for p in old.values()), values(random_scores(sparse, GROW, update)),
            before, as_sets(sparse), strict=True,
        )  # fmt: skip
        for magnitude, number, was, now in scores:
            keep = top(magnitude, live_count(len(was), 0.3), was)
            empty = set(range(len(number))) - keep
            assert now == keep | top(number, len(was) - len(keep), empty)
            regrown += len((now & was) - keep)
            keeps.append(keep)
        assert_values(sparse, opt, old, keeps, grown_state == "keep")
        assert_counts(sparse)
        assert sparse.mask.live == live_count(sparse.mask.numel, sparsity)
    assert regrown > 0  # just-dropped places do take part


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_property_31_rigl(backend, sparsity):
    model = wide()
    opt = sgd(model)
    sparse = RigL(model, opt, sparsity, drop_fraction=0.5, update_every=2, stop_at=9, seed=2,
                  backend=backend)  # fmt: skip
    regrown, skipped = 0, []
    for t in range(1, 12):
        old, before = prepared(sparse, opt, t), as_sets(sparse)
        grads = injected_grads(sparse, t)
        for p, g in zip(sparse.weights.values(), grads, strict=True):
            p.grad = g.clone()
        due = sparse.update_due
        skipped.append(sparse.step())
        assert skipped[-1] == due
        assert all(
            torch.equal(p.grad, g) for p, g in zip(sparse.weights.values(), grads, strict=True)
        )
        if not due:
            assert as_sets(sparse) == before
            continue
        f = 0.25 * (1 + math.cos(math.pi * t / 9))
        holders = []
        scores = zip(
            values(p.abs() for p in old.values()), values(g.abs() for g in grads), before,
            as_sets(sparse), strict=True,
        )  # fmt: skip
        for magnitude, slope, was, now in scores:
            drop = math.floor(f * len(was))
            keep = top(magnitude, len(was) - drop, was)
            assert now == keep | top(slope, drop, set(range(len(slope))) - keep)
            regrown += len((now & was) - keep)
            holders.append(now & was)  # a dropped weight that returns has its value and state
        assert_values(sparse, opt, old, holders)
        assert_counts(sparse)
    assert skipped == [t in (2, 4, 6, 8) for t in range(1, 12)]
    assert regrown > 0 or sparsity == 0.9


# -- RigL's gradients ---------------------------------------------------------------------------


def test_rigl_grows_from_the_gradients_given_for_perturbed():
    models = [mlp(), mlp()]
    given = RigL(models[0], sgd(models[0]), 0.5, update_every=1, stop_at=9, grow_grad="perturbed")
    own = RigL(models[1], sgd(models[1]), 0.5, update_every=1, stop_at=9)
    grads = injected_grads(own, 3)
    for p, g in zip(own.weights.values(), grads, strict=True):
        p.grad = g.clone()
    assert given.step(grads)
    assert own.step()
    assert given.mask == own.mask
    for sparse, argument in ((given, None), (own, grads)):
        with pytest.raises(ValueError, match="grow_grad='perturbed'"):
            sparse.step(argument)


def test_rigl_starts_momentum_at_the_gradient_where_asked():
    model = mlp()
    opt = sgd(model)
    sparse = RigL(model, opt, 0.5, drop_fraction=1.0, update_every=1, stop_at=9, grown_momentum=0.5)
    prepared(sparse, opt, 1)
    before, grads = as_sets(sparse), injected_grads(sparse, 1)
    for p, g in zip(sparse.weights.values(), grads, strict=True):
        p.grad = g.clone()
    sparse.step()
    for p, g, was, now in zip(sparse.weights.values(), grads, before, as_sets(sparse), strict=True):
        state, slope = (t.reshape(-1) for t in (opt.state[p]["momentum_buffer"], g))
        assert now - was
        for i in range(len(slope)):
            wanted = 0.5 * slope[i] if i in now - was else float(i in now)
            assert state[i] == wanted


def test_bad_gradients_stop_an_update_before_anything_changes():
    model = mlp()
    opt = sgd(model)
    sparse = RigL(model, opt, 0.5, update_every=1, stop_at=9)
    mask, old = sparse.mask, [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"RigL.step: no gradient"):
        sparse.step()
    for bad in (float("nan"), float("inf")):
        for p, g in zip(sparse.weights.values(), injected_grads(sparse, 1), strict=True):
            p.grad = g
        model[2].weight.grad[1, 2] = bad
        with pytest.raises(RuntimeError, match=r"gradient of '2.weight' is not finite"):
            sparse.step()
    assert sparse.mask is mask
    assert (sparse.steps, sparse.updates) == (0, 0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), old, strict=True))
    model[2].weight.grad = None  # unused in this batch: scores 0
    assert sparse.step()


def test_weights_that_are_not_finite_rank_last():
    model = mlp()
    sparse = SET(model, sgd(model), 0.5, update_every=1, drop_fraction=0.1)
    first = masks_of(sparse)["0.weight"].nonzero()[0]
    with torch.no_grad():
        model[0].weight[tuple(first)] = float("nan")
    sparse.step()
    assert not model[0].weight.isnan().any()


def test_bad_input_is_refused_by_name():
    model = mlp()
    opt = sgd(model)
    cases = [
        (method, options, word)
        for method in (SET, DSR, RigL, MEST)
        for options, word in (
            ({"sparsity": 1.01}, "sparsity"),
            ({"distribution": "power"}, "distribution"),
            ({"update_every": 0}, "update_every"),
            ({"update_every": [(1, 5)]}, "update_every: the times must start at 0"),
            ({"update_every": [(0, 5), (0, 6)]}, "update_every: the times"),
            ({"update_every": [5]}, "update_every must be a number or"),
            ({"stop_at": -1}, "stop_at"),
            ({"grown_state": "old"}, "grown_state"),
        )
    ]
    cases += [
        (SET, {"drop_fraction": 2.0}, "drop_fraction"),
        (RigL, {"drop_fraction": -0.1}, "drop_fraction"),
        (RigL, {"stop_at": 0}, "stop_at"),
        (RigL, {"grow_grad": "both"}, "grow_grad"),
        (RigL, {"grown_momentum": math.nan}, "grown_momentum"),
        (DSR, {"threshold": 0.0}, "threshold"),
        (DSR, {"target": 0}, "target"),
        (MEST, {"weight_grad": -1.0}, "weight_grad"),
        (MEST, {"lower": 0.4}, "lower must be >= upper"),
        (MEST, {"lower": [(0, 0.9), (4, 0.5)], "upper": [(0, 0.5), (5, 0.6)]}, "at time 5"),
        (MEST, {"upper": 1.5}, "upper"),
    ]
    for method, options, word in cases:
        with pytest.raises(ValueError, match=word):
            method(model, opt, **{"sparsity": 0.5, **options})


@pytest.mark.parametrize("module", [dynamic, _dynamic])
def test_docstring_examples(module):
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


def test_every_use_of_random_numbers_has_a_stream_of_its_own():
    streams = [value for name, value in vars(_policy).items() if name.endswith("_STREAM")]
    assert len(streams) >= 6
    assert len(set(streams)) == len(streams)
