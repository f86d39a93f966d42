"""Dynamic masks (sparse-sam.md 3.4, properties 22, 23 and 26)."""

import copy
import itertools
import math

import pytest
import torch
from sam_cases import draw, inject, injected_step, make_params, random_masks
from sparse_optim import SSAM, BitMask, DynamicMask, Pattern, RandomMask, live_count
from torch.optim import SGD

SHAPES = ((9, 7), (33,), (4, 2, 2))
SCORES = ("gradient", "weight", "random")


def ssam(params, backend="auto", *, sparsity=0.5, seed=0, **policy):
    own = {k: policy.pop(k) for k in ("weight_mask", "interval", "mask_scope") if k in policy}
    return SSAM(params, SGD, rho=0.3, sparsity=sparsity, mask=DynamicMask(**policy), seed=seed,
                lr=0.05, backend=backend, **own)  # fmt: skip


def flat(mask):
    return torch.cat([m.reshape(-1) for m in mask.to_bool()])


def exchange_oracle(before, drop_scores, grow_scores, dropped, grown):
    """Sorted lists: (score descending, index ascending), scores None: unknown (random)."""

    def best(candidates, scores, count):
        return set(sorted(candidates, key=lambda i: (-float(scores[i]), i))[:count])

    live = [i for i in range(len(before)) if before[i]]
    dead = [i for i in range(len(before)) if not before[i]]
    kept = None if drop_scores is None else best(live, drop_scores, len(live) - dropped)
    new = None if grow_scores is None else best(dead, grow_scores, grown)
    return kept, new


@pytest.mark.parametrize("drop", SCORES)
@pytest.mark.parametrize("grow", SCORES)
@pytest.mark.parametrize("ties", [False, True])
def test_property_22_an_exchange_against_sorted_lists(drop, grow, ties):
    params = [p.detach() for p in make_params(SHAPES)]
    grads = draw(params, 1)[0][0]
    if ties:
        params, grads = [p.round() for p in params], [g.round() for g in grads]
    n = sum(p.numel() for p in params)
    before = RandomMask().compute(params, 0.4, seed=1)
    policy = DynamicMask(0.3, drop, grow)
    copies = copy.deepcopy(before)
    after = policy.exchange(before, before.live, params, grads, 0.4, 0.0, seed=5, update=2)
    assert before == copies
    k = live_count(n, 0.4)
    dropped = math.floor(k * 0.3 + 0.5)
    assert before.live == after.live == k
    by = {
        "gradient": torch.cat([g.abs().reshape(-1) for g in grads]),
        "weight": torch.cat([p.abs().reshape(-1) for p in params]),
        "random": None,
    }
    old, new = flat(before), flat(after)
    kept, grown = exchange_oracle(old, by[drop], by[grow], dropped, dropped)
    assert int((old & new).sum()) == k - dropped
    assert kept is None or kept == set((old & new).nonzero().reshape(-1).tolist())
    assert grown is None or grown == set((new & ~old).nonzero().reshape(-1).tolist())


@pytest.mark.parametrize("sparsity", [0.05, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_property_22_the_count_is_conserved_over_200_updates(sparsity, rate):
    """Grown entries were dead before, dropped ones have the smallest scores of the live."""
    params = [p.detach() for p in make_params(SHAPES)]
    n = sum(p.numel() for p in params)
    k, generator = live_count(n, sparsity), torch.Generator().manual_seed(3)
    policy = DynamicMask(rate, "gradient", "weight")
    mask = policy.initial(params, sparsity, seed=1, pattern=Pattern(), within=None)
    dropped = min(math.floor(k * rate + 0.5), k, n - k)
    weight = torch.cat([p.abs().reshape(-1) for p in params])
    for update in range(200):
        grads = [torch.randn(p.shape, generator=generator) for p in params]
        new = policy.exchange(mask, k, params, grads, sparsity, update, seed=1, update=update)
        assert new.live == k
        gone, grown = flat(mask - new), flat(new - mask)
        assert int(gone.sum()) == int(grown.sum()) == dropped
        size = torch.cat([g.abs().reshape(-1) for g in grads])
        if dropped and dropped < k:
            assert size[gone].max() <= size[flat(mask & new)].min()
            stayed = ~flat(mask | new)  # dead before and after
            assert not stayed.any() or weight[grown].min() >= weight[stayed].max()
        mask = new


def test_property_22_the_rate_falls_along_a_cosine():
    policy = DynamicMask(0.4, start=10, end=30)
    assert policy.rate(10) == policy.rate(0) == 0.4
    assert policy.rate(30) == policy.rate(31) == policy.rate(1e9) == 0.0
    assert policy.rate(20) == pytest.approx(0.2)
    seen = [policy.rate(t) for t in range(10, 31)]
    assert all(a > b for a, b in itertools.pairwise(seen))
    expected = [0.2 * (1 + math.cos(math.pi * (t - 10) / 20)) for t in range(10, 31)]
    assert seen == pytest.approx(expected, abs=1e-15)
    assert DynamicMask(0.4).rate(1e6) == 0.4
    for options, word in (
        ({"drop_rate": 1.1}, "drop_rate"),
        ({"drop": "loss"}, "drop"),
        ({"grow": "loss"}, "grow"),
        ({"start": 3, "end": 3}, "end"),
        ({"update_every": 0}, "update_every"),
        ({"init": "score"}, "init"),
    ):
        with pytest.raises(ValueError, match=word):
            DynamicMask(**options)


@pytest.mark.parametrize("to", [0.0, 0.1, 0.45, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_counts_follow_a_schedule_of_the_sparsity(to, rate):
    """Also where more must grow than the exchange leaves room for."""
    params = [p.detach() for p in make_params(SHAPES)]
    grads = draw(params, 1)[0][0]
    n = sum(p.numel() for p in params)
    for start in (0.0, 0.2, 0.5, 0.9, 1.0):
        before = RandomMask().compute(params, start, seed=2)
        after = DynamicMask(rate).exchange(before, before.live, params, grads, to, 0.0, seed=2)
        assert after.live == live_count(n, to)
        if rate == 0.0:  # nothing but the difference moves
            assert (before - after).live == max(0, before.live - after.live)


def test_within_a_weight_mask_the_exchange_stays_there(backend):
    params = make_params(SHAPES)
    exists = random_masks(params, 0.6)
    opt = ssam(params, backend, weight_mask=exists)
    within = BitMask.from_bool(exists)
    for i, (first, second) in enumerate(draw(params, 6)):
        if i == 3:
            exists = random_masks(params, 0.3, seed=9)
            opt.set_weight_mask(exists)
            within = BitMask.from_bool(exists)
        old = opt.mask
        opt.update_mask(i)
        injected_step(opt, params, first, second)
        assert (opt.mask - within).live == 0
        assert opt.mask.live == live_count(within.live, 0.5)
        assert opt.mask != old


def test_property_26_the_mask_of_a_step_is_the_one_before_it(backend):
    params = make_params(SHAPES)
    opt = ssam(params, backend, drop="gradient", grow="gradient")
    for t, (first, second) in enumerate(draw(params, 4)):
        old = opt.mask
        opt.update_mask(t)
        assert opt.mask is old
        before = [p.detach().clone() for p in params]
        inject(params, first)
        opt.first_step()
        for p, b, m in zip(params, before, old.to_bool(), strict=True):
            assert torch.equal(p.detach() != b, m)
        assert opt.mask is old
        # scores are those at w, before the ascent and whatever g2 will be
        wanted = opt.policy.exchange(
            old, old.live, before, first, 0.5, t, seed=0, update=opt._mask_updates
        )
        inject(params, second)
        opt.second_step()
        assert opt.mask == wanted != old
        assert opt.mask.live == old.live
    injected_step(opt, params, *draw(params, 1)[0])
    assert opt.mask == wanted  # no exchange was asked for


def interrupt_closure(opt, params, first, second):
    def boom():
        raise KeyError("in the second pass")

    inject(params, first)
    with pytest.raises(KeyError):
        opt.step(boom)


def interrupt_restore(opt, params, first, second):
    inject(params, first)
    opt.first_step()
    opt.restore()


def interrupt_no_gradient(opt, params, first, second):
    inject(params, first)
    opt.first_step(zero_grad=True)
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        opt.second_step()


def suppress_first(opt, params, first, second):
    bad = [g.clone() for g in first]
    bad[0][0, 0] = math.nan
    injected_step(opt, params, bad, second)


def suppress_second(opt, params, first, second):
    bad = [g.clone() for g in second]
    bad[-1][0] = math.inf
    injected_step(opt, params, first, bad)


WAYS = [interrupt_closure, interrupt_restore, interrupt_no_gradient, suppress_first]


@pytest.mark.parametrize("way", [*WAYS, suppress_second])
def test_property_26_an_interrupted_step_postpones_the_exchange(backend, way):
    params, calm = make_params(SHAPES), make_params(SHAPES)
    opt, other = ssam(params, backend), ssam(calm, backend)
    first, second = draw(params, 1)[0]
    old = opt.mask
    for o in (opt, other):
        o.update_mask(0)
    for _ in range(2):
        way(opt, params, first, second)
        assert opt.mask is old
    injected_step(opt, params, first, second)
    injected_step(other, calm, first, second)
    assert opt.mask == other.mask != old
    old = opt.mask
    injected_step(opt, params, first, second)
    assert opt.mask is old  # it was made once


def test_a_mask_set_between_the_passes_is_not_overwritten(backend):
    """``set_masks`` after ``perturbed()`` outdates the exchange made from the mask before."""
    params = make_params(SHAPES)
    opt = ssam(params, backend)
    own = BitMask.from_bool(random_masks(params, 0.3))
    first, second = draw(params, 1)[0]
    opt.update_mask(0)
    inject(params, first)
    with opt.perturbed():
        inject(params, second)
    opt.set_masks(own)
    opt.step()
    assert opt.mask == own


@pytest.mark.parametrize(("every", "interval"), [(1, 1), (3, 1), (2, 3), (3, 2), (5, 2)])
def test_exchanges_by_the_count_of_steps(backend, every, interval):
    """The step at the time exchanges; where it does not perturb, the next that does."""
    params = make_params(SHAPES)
    opt = ssam(params, backend, update_every=every, end=1000.0, interval=interval)
    due, changed, expected = False, [], []
    for step, (first, second) in enumerate(draw(params, 14)):
        due = due or (step > 0 and step % every == 0)
        if due and step % interval == 0:
            expected.append(step)
            due = False
        old = opt.mask
        injected_step(opt, params, first, second)
        if opt.mask != old:
            changed.append(step)
            assert opt.mask.live == old.live
    assert changed == expected
    assert len(changed) > 1


def test_property_23_the_global_random_state_plays_no_part(backend):
    masks = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        params = make_params(SHAPES)
        opt = ssam(params, backend, drop="random", grow="random", seed=7)
        for t, (first, second) in enumerate(draw(params, 3)):
            opt.update_mask(t)
            state = torch.get_rng_state()
            injected_step(opt, params, first, second)
            assert torch.equal(torch.get_rng_state(), state)
            torch.rand(noise + 1)
        masks.append(opt.mask)
    assert masks[0] == masks[1]
    other = ssam(make_params(SHAPES), backend, seed=8)
    assert other.mask != ssam(make_params(SHAPES), backend, seed=7).mask


def test_the_time_of_an_exchange_must_be_given():
    opt = ssam(make_params(SHAPES))
    for call in (opt.update_mask, lambda: opt.update_mask(math.nan), lambda: opt.update_mask("a")):
        with pytest.raises(ValueError, match=r"time of the update|must be"):
            call()


@pytest.mark.parametrize(("sparsity", "live"), [(0.2, 600), (0.05, 525), (0.5, 500), (0.9, 100)])
def test_property_38_the_published_counts_drift_below_half_sparsity(sparsity, live):
    params = [torch.randn(1000)]
    before = RandomMask().compute(params, sparsity)
    policy = DynamicMask(0.5, counts="published")
    after = policy.exchange(before, before.live, params, params, sparsity, 0.0)
    assert after.live == live
    conserved = DynamicMask(0.5).exchange(before, before.live, params, params, sparsity, 0.0)
    assert conserved.live == before.live
    with pytest.raises(ValueError, match="counts"):
        DynamicMask(counts="other")
