"""Masks of SSAM: scope, patterns in steps, refused scores, parameters added later."""

import math

import pytest
import torch
from optim_cases import batch, bits, cross_entropy, mlp, train_sam
from sam_cases import draw, inject, injected_step, make_params, random_masks
from sparse_optim import (
    SSAM,
    BitMask,
    DynamicMask,
    FisherMask,
    MagnitudeMask,
    Pattern,
    RandomMask,
    live_count,
)
from torch import nn
from torch.optim import SGD


def only_weights(name, p):
    return name.endswith("weight")


@pytest.mark.parametrize("norm", ["dense", "masked"])
@pytest.mark.parametrize("pattern", ["unstructured", "row", "filter", "tensor", "2:4", "1:2"])
def test_property_4_a_step_moves_exactly_the_pattern(backend, pattern, norm):
    params = make_params(((6, 8), (6,), (4, 3, 2, 2)))
    opt = SSAM(params, SGD, rho=0.5, sparsity=0.4, mask=RandomMask(), pattern=pattern,
               norm=norm, seed=3, lr=0.1, backend=backend)  # fmt: skip
    (first, second), *_ = draw(params, 1)
    before = [bits(p) for p in params]
    inject(params, first)
    opt.first_step()
    for p, b, m in zip(params, before, opt.mask.to_bool(), strict=True):
        assert torch.equal(bits(p) != b, m)
    inject(params, second)
    opt.second_step()
    torch.testing.assert_close(params[0].detach(), before[0].view(torch.float) - 0.1 * second[0])


def test_property_3_the_masked_norm_with_rows_has_length_rho(backend):
    params = make_params(((60, 8), (30,)), dtype=torch.float64)
    opt = SSAM(params, SGD, rho=0.5, sparsity=0.7, mask=MagnitudeMask(), pattern="row",
               norm="masked", lr=0.1, backend=backend)  # fmt: skip
    before = [p.detach().clone() for p in params]
    inject(params, draw(params, 1)[0][0])
    opt.first_step()
    e = torch.cat([(p.detach() - b).reshape(-1) for p, b in zip(params, before, strict=True)])
    assert float(e.norm()) == pytest.approx(0.5, rel=1e-7)
    assert int((e != 0).sum()) == opt.mask.live > 0


@pytest.mark.parametrize("policy", [RandomMask(), MagnitudeMask(), DynamicMask()])
def test_the_scope_is_masked_and_the_rest_perturbed_wholly(backend, policy):
    model = mlp()
    opt = SSAM(model.named_parameters(), SGD, sparsity=0.8, mask=policy, mask_scope=only_weights,
               lr=0.1, backend=backend)  # fmt: skip

    def check():
        counts = opt.mask.popcount()
        assert counts[1] == 9
        assert counts[3] == 3
        assert counts[0] + counts[2] == live_count(6 * 9 + 9 * 3, 0.8)

    check()
    old = opt.mask
    opt.update_mask(*([0] if isinstance(policy, DynamicMask) else []))
    before = [p.detach().clone() for p in model.parameters()]
    cross_entropy(model(batch()[0]), batch()[1]).backward()
    opt.first_step()
    for p, b in zip(model.parameters(), before, strict=True):
        assert p.dim() == 2 or torch.equal(p.detach() != b, p.grad != 0)
    opt.restore()
    train_sam(model, opt, 1)
    check()
    assert isinstance(policy, MagnitudeMask) or opt.mask != old


def test_the_scope_sees_names_and_parameters():
    model, seen = mlp(), []

    def scope(name, p):
        seen.append((name, p))
        return False

    opt = SSAM(model.named_parameters(), SGD, mask=RandomMask(), mask_scope=scope, lr=0.1)
    assert [n for n, _ in seen] == [n for n, _ in model.named_parameters()]
    assert all(p is q for (_, p), q in zip(seen, model.parameters(), strict=True))
    assert opt.mask.sparsity == 0.0
    seen.clear()
    SSAM(model.parameters(), SGD, mask=RandomMask(), mask_scope=scope, lr=0.1)
    assert [n for n, _ in seen] == [""] * 4


def test_an_empty_scope_is_sam_with_every_pattern(backend):
    for pattern in ("unstructured", "row", "tensor", "2:4", Pattern(per_layer=True)):
        params = make_params()
        opt = SSAM(params, SGD, sparsity=1.0, mask=MagnitudeMask(), pattern=pattern,
                   mask_scope=lambda n, p: False, lr=0.1, backend=backend)  # fmt: skip
        assert opt.mask.live == opt.mask.numel
        opt.update_mask()
        injected_step(opt, params, *draw(params, 1)[0])
        assert opt.mask.live == opt.mask.numel


def test_frozen_parameters_are_outside_of_masks_and_counts(backend):
    params = make_params(((10, 4), (50,), (9,)))
    params[1].requires_grad_(False)
    opt = SSAM(params, SGD, sparsity=0.5, mask=RandomMask(), lr=0.1, backend=backend)
    assert (opt.mask.numel, opt.mask.live) == (49, live_count(49, 0.5))
    before = bits(params[1])
    first, second = draw(params, 1)[0]
    injected_step(opt, params, [first[0], None, first[2]], [second[0], None, second[2]])
    assert torch.equal(bits(params[1]), before)


@pytest.mark.parametrize("first_is_used", [False, True])
def test_a_parameter_without_a_mask_is_refused_whatever_ran_before(backend, first_is_used):
    """It is refused before it has a gradient too: else a step would make up a mask for it."""
    params = make_params()
    opt = SSAM(params, SGD, mask=RandomMask(), lr=0.1, backend=backend)
    steps = draw(params, 3)
    if first_is_used:
        injected_step(opt, params, *steps[0])
    late = nn.Parameter(torch.ones(6))
    opt.add_param_group({"params": [late]})
    opt.set_weight_mask(random_masks([*params, late]))
    inject(params, steps[1][0])
    before = [bits(p) for p in params]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"param_groups\[1\].*no mask; call update_mask"):
            opt.first_step()
        assert opt.phase == "idle"
        late.grad = torch.ones(6)
    assert all(torch.equal(bits(p), b) for p, b in zip(params, before, strict=True))
    opt.update_mask()
    assert opt.mask.numel == sum(p.numel() for p in params) + 6
    opt.first_step()
    opt.restore()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_by_name(bad):
    model = mlp()
    opt = SSAM(model.named_parameters(), SGD, mask=MagnitudeMask(), lr=0.1)
    old = opt.mask
    model[2].weight.data[1, 4] = bad
    with pytest.raises(ValueError, match=r"MagnitudeMask: the scores of parameter '2.weight'"):
        opt.update_mask()
    assert opt.mask is old
    with pytest.raises(ValueError, match=r"scores of parameter '2.weight'"):
        SSAM(model.named_parameters(), SGD, mask=MagnitudeMask(), lr=0.1)
    with pytest.raises(ValueError, match=r"scores of parameter param_groups\[0\]\['params'\]\[2\]"):
        SSAM(model.parameters(), SGD, mask=MagnitudeMask(), lr=0.1)
    opt = SSAM(model.named_parameters(), SGD, lr=0.1)
    x, y = batch()
    with pytest.raises(ValueError, match=r"FisherMask: the scores of parameter '0.weight'"):
        opt.update_mask(model, (x, y), cross_entropy)
    assert opt.mask is None
    SSAM(model.named_parameters(), SGD, mask=RandomMask(), lr=0.1)  # looks at no value


def test_large_finite_scores_are_no_reason_to_refuse():
    """Their norm overflows in float32."""
    params = [nn.Parameter(torch.tensor([3e38, -3e38, 1.0, 2.0]))]
    mask = MagnitudeMask().compute(params, 0.5)
    assert mask.to_bool()[0].tolist() == [True, True, False, False]


def test_options_that_do_not_go_together_are_refused():
    for pattern, word in (
        ("5:4", "n must be at most m"),
        ("0:0", "m at least 1"),
        ("rows", "pattern must be one of"),
        ("2:4:8", "pattern must be one of"),
    ):
        with pytest.raises(ValueError, match=word):
            SSAM(make_params(), SGD, mask=RandomMask(), pattern=pattern, lr=0.1)
    for options, word in (
        ({"axis": "both"}, "axis"),
        ({"fill": "half"}, "fill"),
        ({"name": "row", "per_layer": True}, "per_layer"),
        ({"name": "2:4", "per_layer": True}, "per_layer"),
        ({"unit_dim": -1}, "unit_dim"),
    ):
        with pytest.raises(ValueError, match=word):
            Pattern(**options)
    for pattern in ("row", "2:4", Pattern(per_layer=True)):
        with pytest.raises(ValueError, match="DynamicMask"):
            SSAM(make_params(), SGD, mask=DynamicMask(), pattern=pattern, lr=0.1)
    with pytest.raises(ValueError, match="init"):
        RandomMask(init="best")


@pytest.mark.parametrize("init", ["random", "ones", "zeros"])
@pytest.mark.parametrize("pattern", ["unstructured", "row", "2:4"])
def test_property_26_a_fisher_mask_may_start_otherwise(backend, init, pattern):
    model, (x, y) = mlp(), batch()
    exists = random_masks(list(model.parameters()), 0.7)
    opt = SSAM(model.parameters(), SGD, mask=FisherMask(init=init), pattern=pattern,
               weight_mask=exists, sparsity=0.5, seed=2, lr=0.1, backend=backend)  # fmt: skip
    within = BitMask.from_bool(exists)
    assert (opt.mask - within).live == 0
    if init != "random":
        assert opt.mask.live == (within.live if init == "ones" else 0)
    train_sam(model, opt, 2)
    opt.update_mask(model, (x, y), cross_entropy)
    assert (opt.mask - within).live == 0
    if pattern == "unstructured":
        assert opt.mask.live == live_count(within.live, 0.5)
    train_sam(model, opt, 1)


@pytest.mark.parametrize("policy", [RandomMask(), MagnitudeMask()])
def test_a_schedule_of_sparsity_is_asked_by_the_number_of_the_update(policy):
    asked = []

    def schedule(update):
        asked.append(update)
        return min(0.9, 0.3 * update)

    opt = SSAM(make_params(), SGD, sparsity=schedule, mask=policy, lr=0.1)
    counts = [opt.mask.live]
    for _ in range(4):
        opt.update_mask()
        counts.append(opt.mask.live)
    assert asked == [0, 1, 2, 3, 4]
    assert counts == [live_count(68, s) for s in (0.0, 0.3, 0.6, 0.9, 0.9)]
    opt.sparsity = lambda update: 1.5
    old = opt.mask
    with pytest.raises(ValueError, match="sparsity"):
        opt.update_mask()
    assert opt.mask is old
