"""Weights that do not exist: zeros that stay zeros, and the compacted network (29, 30)."""

import copy
import math

import pytest
import torch
from optim_cases import assert_same_bits, batch, bits, cross_entropy, mlp, through_disk, train_sam
from sam_cases import draw, inject, injected_step, is_positive_zero, make_params, random_masks
from sparse_optim import (
    SAM,
    SSAM,
    ZOSAM,
    BitMask,
    DynamicMask,
    FisherMask,
    MagnitudeMask,
    RandomMask,
)
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

HARD_SGD = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}


class DecayOfNothing(SGD):
    """A base that moves every weight."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(0.001)


KINDS = {
    "SAM": (SAM, SGD, HARD_SGD, {"rho": 0.3}),
    "SAM, AdamW": (SAM, AdamW, {}, {"rho": 0.3}),
    "SAM, RMSprop": (SAM, RMSprop, {"momentum": 0.9, "centered": True}, {"rho": 0.3}),
    "SAM, a base that moves all": (SAM, DecayOfNothing, {"momentum": 0.9}, {"rho": 0.3}),
    "SAM, maximize": (SAM, SGD, {"momentum": 0.9, "maximize": True}, {"rho": 0.01}),
    "ASAM": (SAM, SGD, HARD_SGD, {"rho": 1.0, "adaptive": True, "eta": 0.1}),
    "SSAM": (SSAM, SGD, HARD_SGD, {"rho": 0.3, "mask": RandomMask()}),
    "SSAM, masked norm, Adam": (SSAM, Adam, {"weight_decay": 0.01},
                                {"rho": 0.3, "mask": MagnitudeMask(), "norm": "masked"}),
    "SSAM, exchanges": (SSAM, SGD, HARD_SGD, {"rho": 0.3, "mask": DynamicMask(update_every=2)}),
    "ZOSAM": (ZOSAM, SGD, HARD_SGD, {"rho": 0.3, "seed": 1}),
    "ZOSAM, AdamW": (ZOSAM, AdamW, {}, {"rho": 0.3, "seed": 1, "num_directions": 2}),
}  # fmt: skip


def state_tensors(opt, params):
    return [(v, p) for p in params for v in opt.state[p].values() if v.shape == p.shape]


@pytest.mark.parametrize("kind", KINDS)
def test_property_29_zeros_in_both_forwards_and_after_the_step(backend, kind):
    cls, base, options, own = KINDS[kind]
    model, (x, y) = mlp(), batch()
    params = list(model.parameters())
    exists = random_masks(params, 0.5)
    opt = cls(params, base, lr=0.02, weight_mask=exists, backend=backend, **own, **options)
    seen = 0

    def loss():
        nonlocal seen
        seen += 1
        for p, m in zip(params, exists, strict=True):
            assert is_positive_zero(p.detach()[~m]).all()
        return cross_entropy(model(x), y)

    def backward():
        opt.zero_grad()
        loss().backward()

    start = [p.detach().clone() for p in params]
    for _ in range(100):
        if cls is ZOSAM:
            opt.probe(loss)
            backward()
            opt.step()
        else:
            backward()
            assert params[0].grad[~exists[0]].abs().max() > 0
            opt.step(backward)
        for p, m in zip(params, exists, strict=True):
            assert is_positive_zero(p.detach()[~m]).all()
        for value, p in state_tensors(opt, params):
            m = exists[next(i for i, q in enumerate(params) if q is p)]
            assert (value[~m] == 0).all()
    assert seen == (100 * (2 * own.get("num_directions", 1) + 1) if cls is ZOSAM else 200)
    for p, s, m in zip(params, start, exists, strict=True):
        assert (p.detach() != s)[m].any()
        assert p.isfinite().all()


@pytest.mark.parametrize(
    ("base", "options"),
    [(Adam, {"eps": 0.0}), (AdamW, {"eps": 0.0}), (AdamW, {"weight_decay": 15.0}),
     (SGD, {"weight_decay": 15.0, "momentum": 0.9}), (Adagrad, {"eps": 0.0})],
)  # fmt: skip
def test_property_29_options_under_which_zero_does_not_stay_by_itself(backend, base, options):
    """0 / 0, and a decay of more than the weight: neither NaN nor -0.0 comes of it."""
    params = make_params()
    exists = random_masks(params)
    groups = [{"params": params, **options}]  # ``eps=`` of SAM itself belongs to the norm
    opt = SAM(groups, base, rho=0.1, lr=0.1, weight_mask=exists, backend=backend)
    for first, second in draw(params, 3):
        injected_step(opt, params, first, second)
        for p, m in zip(params, exists, strict=True):
            assert is_positive_zero(p.detach()[~m]).all()
            assert p.isfinite().all()


# the compacted network --------------------------------------------------------------------------


class Compacted(nn.Module):
    """The same network, whose parameters are the vectors of existing weights alone."""

    def __init__(self, model, exists):
        super().__init__()
        self.__dict__["model"] = model
        self.names = [n for n, _ in model.named_parameters()]
        self.exists = exists
        self.live = nn.ParameterList(
            nn.Parameter(p.detach()[m].clone())
            for p, m in zip(model.parameters(), exists, strict=True)
        )

    def forward(self, x):
        whole = {
            n: torch.zeros(m.shape, dtype=v.dtype).masked_scatter(m, v)
            for n, m, v in zip(self.names, self.exists, self.live, strict=True)
        }
        return torch.func.functional_call(self.model, whole, (x,))


CASES = {
    "SAM": (SAM, {"rho": 0.3}),
    "ASAM": (SAM, {"rho": 1.0, "adaptive": True}),
    "ASAM, eta": (SAM, {"rho": 1.0, "adaptive": True, "eta": 0.1}),
    "SSAM": (SSAM, {"rho": 0.3, "sparsity": 0.6, "mask": MagnitudeMask()}),
    "SSAM, masked": (SSAM, {"rho": 0.3, "mask": MagnitudeMask(), "norm": "masked"}),
    "SSAM, random": (SSAM, {"rho": 0.3, "mask": FisherMask()}),
}


@pytest.mark.parametrize("base", [SGD, AdamW, RMSprop])
@pytest.mark.parametrize("case", CASES)
def test_property_30_the_compacted_network(backend, case, base):
    """Masks, w + e and w after 10 steps, updating the masks half-way."""
    cls, own = CASES[case]
    x, y = batch(dtype=torch.float64)
    model = mlp(dtype=torch.float64)
    exists = random_masks(list(model.parameters()), 0.6)
    small = Compacted(copy.deepcopy(model), exists)
    options = {"lr": 0.05, "weight_decay": 0.01, "backend": backend, **own}
    opt = cls(model.parameters(), base, weight_mask=exists, **options)
    other = cls(small.parameters(), base, **options)

    def compare(rtol=1e-9):
        for p, m, v in zip(model.parameters(), exists, small.live, strict=True):
            torch.testing.assert_close(p.detach()[m], v.detach(), rtol=rtol, atol=1e-12)

    for i in range(10):
        if cls is SSAM and i % 5 == 0:
            for o, net in ((opt, model), (other, small)):
                fisher = isinstance(o.policy, FisherMask)
                o.update_mask(*((net, (x, y), cross_entropy) if fisher else ()))
            masks = zip(opt.mask.to_bool(), exists, other.mask.to_bool(), strict=True)
            assert all(torch.equal(a[m], b) for a, m, b in masks)
            assert opt.mask.live == other.mask.live > 0
        for o, net in ((opt, model), (other, small)):
            o.zero_grad()
            cross_entropy(net(x), y).backward()
            o.first_step(zero_grad=True)
        assert float(opt._norm) == pytest.approx(float(other._norm), rel=1e-9)
        compare()
        for o, net in ((opt, model), (other, small)):
            cross_entropy(net(x), y).backward()
            o.second_step()
        compare()


# changes of the mask ----------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "options"), [(SGD, {"momentum": 0.9}), (AdamW, {}),
                                               (RMSprop, {"momentum": 0.9})])  # fmt: skip
def test_a_weight_that_goes_and_returns_starts_at_zero_without_state(backend, base, options):
    params = make_params()
    opt = SAM(params, base, rho=0.3, lr=0.1, backend=backend, **options)
    steps = draw(params, 3)
    injected_step(opt, params, *steps[0])
    exists = random_masks(params)
    kept = [p.detach()[m].clone() for p, m in zip(params, exists, strict=True)]
    held = [v.clone() for v, _ in state_tensors(opt, params)]
    opt.set_weight_mask(exists)
    assert opt.weight_mask == BitMask.from_bool(exists)
    mask_of = dict(zip(params, exists, strict=True))
    for p, k in zip(params, kept, strict=True):
        assert is_positive_zero(p.detach()[~mask_of[p]]).all()
        assert torch.equal(p.detach()[mask_of[p]], k)
    for (v, p), h in zip(state_tensors(opt, params), held, strict=True):
        assert (v[~mask_of[p]] == 0).all()
        assert torch.equal(v[mask_of[p]], h[mask_of[p]])
    injected_step(opt, params, *steps[1])
    opt.set_weight_mask(None)
    assert opt.weight_mask is None
    for v, p in state_tensors(opt, params):
        assert (v[~mask_of[p]] == 0).all()
    injected_step(opt, params, *steps[2])
    assert all((p.detach() != 0).all() for p in params)


def test_gradients_of_what_does_not_exist_play_no_part(backend):
    """Not even NaN: they are outside the norms, and cleared before the update."""
    params, clean = make_params(), make_params()
    exists = random_masks(params)
    opts = [SAM(ps, SGD, rho=0.3, lr=0.1, momentum=0.9, weight_mask=exists, backend=backend)
            for ps in (params, clean)]  # fmt: skip
    for first, second in draw(params, 3):
        dirty = [[g.clone() for g in gs] for gs in (first, second)]
        for gs in dirty:
            for g, m in zip(gs, exists, strict=True):
                g[~m] = math.nan
        injected_step(opts[0], params, *dirty)
        injected_step(opts[1], clean, first, second)
    for p, q in zip(params, clean, strict=True):
        assert_same_bits(p.detach(), q.detach())
    assert int(opts[0].skipped_steps) == 0
    inject(params, first)
    opts[0].mask_grads_()
    assert all((p.grad[~m] == 0).all() for p, m in zip(params, exists, strict=True))
    assert all(torch.equal(p.grad[m], g[m]) for p, g, m in zip(params, first, exists, strict=True))


def test_property_33_the_weight_mask_is_in_the_checkpoint(backend):
    a, b = mlp(), mlp(seed=9)
    exists = random_masks(list(a.parameters()))
    opt = SAM(a.parameters(), SGD, rho=0.3, lr=0.1, momentum=0.9, weight_mask=exists,
              backend=backend)  # fmt: skip
    train_sam(a, opt, 3)
    resumed = SAM(b.parameters(), SGD, rho=0.3, lr=0.1, momentum=0.9, backend=backend)
    train_sam(b, resumed, 1)  # a backup without a mask was made
    b.load_state_dict(through_disk(a.state_dict()))
    resumed.load_state_dict(through_disk(opt.state_dict()))
    assert resumed.weight_mask == opt.weight_mask
    for model, o in ((a, opt), (b, resumed)):
        train_sam(model, o, 5)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())


def test_bad_weight_masks_are_refused_and_nothing_changes(backend):
    params = make_params()
    opt = SAM(params, SGD, lr=0.1, backend=backend)
    before = [bits(p) for p in params]
    good = random_masks(params)
    for masks, word in ((good[:1], "1 masks for 2"), ([good[0].float(), None], "not a bool"),
                        ([good[0].t(), None], "shape")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            opt.set_weight_mask(masks)
    assert opt.weight_mask is None
    assert all(torch.equal(bits(p), b) for p, b in zip(params, before, strict=True))
    opt.set_weight_mask([None, good[1]])
    assert opt.weight_mask.popcount() == [35, int(good[1].sum())]
    inject(params, draw(params, 1)[0][0])
    opt.first_step()
    with pytest.raises(RuntimeError, match="perturbed"):
        opt.set_weight_mask(None)
