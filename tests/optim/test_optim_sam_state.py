"""Interrupted steps, checkpoints and copies with packed backups (properties 9, 10, 14, 33)."""

import copy

import pytest
import torch
from optim_cases import (
    assert_same_bits,
    batch,
    bits,
    cross_entropy,
    mlp,
    planted,
    through_disk,
    train_sam,
)
from sam_cases import draw, inject, injected_step, make_params, random_masks
from sparse_optim import (
    SSAM,
    BitMask,
    DynamicMask,
    MagnitudeMask,
    Phase,
    RandomMask,
    _ascent,
    _fused_base,
)
from torch import nn
from torch.optim import SGD, AdamW, RMSprop

BASES = [(SGD, {"momentum": 0.9, "nesterov": True}), (AdamW, {}), (RMSprop, {"momentum": 0.5})]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


class Broken(SGD):
    """A base whose step fails."""

    def step(self, closure=None):
        raise KeyError("in the base step")


@pytest.mark.parametrize("ptype", DTYPES)
@pytest.mark.parametrize("way", ["closure", "context", "steps", "no gradient", "base"])
def test_property_9_exceptions_leave_the_bits(backend, ptype, way):
    params = [planted(ptype), planted(ptype, 70)]
    opt = SSAM(params, Broken if way == "base" else SGD, rho=1.0, mask=RandomMask(), lr=0.1,
               sparsity=0.4, check_gradients=False, backend=backend)  # fmt: skip
    before = [bits(p) for p in params]
    grads = [torch.ones_like(p) for p in params]

    def boom():
        assert not torch.equal(bits(params[0]), before[0])
        raise KeyError("inside the second pass")

    for _ in range(3):
        inject(params, grads)
        if way == "closure":
            with pytest.raises(KeyError):
                opt.step(boom)
        elif way == "context":
            with pytest.raises(KeyError), opt.perturbed():
                boom()
        else:
            opt.first_step(zero_grad=True)
            inject(params, grads if way == "base" else [None, None])
            wrong = torch.sparse_coo_tensor([[0]], [1.0], (70,), dtype=ptype, check_invariants=True)
            if way == "steps":
                params[1].grad = wrong
            error = KeyError if way == "base" else RuntimeError
            with pytest.raises(error):
                opt.second_step()
        assert opt.phase is Phase.IDLE
        assert all(torch.equal(bits(p), b) for p, b in zip(params, before, strict=True))


def test_a_failing_ascent_restores_what_it_has_moved(backend, monkeypatch):
    """Several calls make one ascent: the second fails."""
    params = make_params() + make_params(dtype=torch.float64)
    opt = SSAM(params, SGD, rho=1.0, mask=RandomMask(), lr=0.1, backend=backend)
    before, calls = [bits(p) for p in params], []
    real = _ascent.masked_perturb_

    def failing(*args, **kwargs):
        calls.append(len(calls))
        if len(calls) == 2:
            assert not torch.equal(bits(params[0]), before[0])
            raise MemoryError
        real(*args, **kwargs)

    monkeypatch.setattr(_ascent, "masked_perturb_", failing)
    inject(params, draw(params, 1)[0][0])
    with pytest.raises(MemoryError):
        opt.first_step()
    assert calls == [0, 1]
    assert all(torch.equal(bits(p), b) for p, b in zip(params, before, strict=True))
    assert opt.phase is Phase.IDLE


def test_a_failing_fused_step_leaves_no_parameter_perturbed(backend, monkeypatch):
    """As in a base whose step fails half-way: the first group is updated, the second is at w."""
    params, late = make_params(), make_params(seed=8)
    groups = [{"params": params}, {"params": late, "momentum": 0.5}]
    opt = SSAM(groups, SGD, rho=1.0, mask=RandomMask(), lr=0.1, backend=backend)
    first, second = draw([*params, *late], 1)[0]
    before = [p.detach().clone() for p in (*params, *late)]
    real, calls = _fused_base.restore_sgd_, []

    def failing(*args, **kwargs):
        calls.append(len(calls))
        if len(calls) == 2:
            raise MemoryError
        real(*args, **kwargs)

    monkeypatch.setattr(_fused_base, "restore_sgd_", failing)
    inject([*params, *late], first)
    opt.first_step()
    inject([*params, *late], second)
    with pytest.raises(MemoryError):
        opt.second_step()
    for p, w, g in zip(params, before, second, strict=False):
        torch.testing.assert_close(p.detach(), w - 0.1 * g)
    for p, w in zip(late, before[2:], strict=True):
        assert_same_bits(p.detach(), w)
        assert "momentum_buffer" not in opt.state[p]
    assert opt.phase is Phase.IDLE


def test_property_10_storage_and_aliases_with_a_packed_backup(backend):
    flat = torch.randn(90)
    params = [nn.Parameter(flat[:54].view(6, 9)), nn.Parameter(flat[54:].view(4, 9).t())]
    opt = SSAM(params, SGD, rho=0.5, mask=RandomMask(), lr=0.1, backend=backend)
    pointers = [(p.data_ptr(), p.stride()) for p in params]
    first, second = draw(params, 1)[0]
    before = flat.clone()
    inject(params, first)
    opt.first_step()
    assert int((flat != before).sum()) == opt.mask.live
    inject(params, second)
    opt.second_step()
    assert [(p.data_ptr(), p.stride()) for p in params] == pointers
    expected = torch.cat([g.reshape(-1) for g in (second[0], second[1].t())])
    torch.testing.assert_close(flat, before - 0.1 * expected)


def make(model, base, options, backend, **own):
    settings = {"sparsity": 0.4, "mask": DynamicMask(update_every=3, end=40.0), "seed": 4, **own}
    return SSAM(model.parameters(), base, rho=0.3, interval=2, lr=0.05, backend=backend,
                **settings, **options)  # fmt: skip


@pytest.mark.parametrize("after", [3, 4])
@pytest.mark.parametrize(("base", "options"), BASES)
def test_property_33_resuming_with_masks_exchanges_and_interval(backend, base, options, after):
    """Saved before a step that does not perturb and before one that does; an exchange is due."""
    a, b = mlp(), mlp(seed=77)
    opt = make(a, base, options, backend, weight_mask=random_masks(list(a.parameters()), 0.7))
    train_sam(a, opt, after)
    state, weights = through_disk(opt.state_dict()), through_disk(a.state_dict())
    first_mask = opt.mask
    b.load_state_dict(weights)
    resumed = make(b, base, options, backend, seed=5)
    resumed.load_state_dict(state)
    x, y = batch()
    for _ in range(20):
        for model, o in ((a, opt), (b, resumed)):
            train_sam(model, o, 1)
        assert_same_bits(cross_entropy(a(x), y), cross_entropy(b(x), y))
        assert opt.mask == resumed.mask
        assert opt.perturbs is resumed.perturbs
    assert opt.mask != first_mask
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(bits(p), bits(q))


def test_property_33_an_exchange_that_is_due_survives_a_checkpoint(backend):
    a, b = make_params(), make_params(seed=50)
    opt, resumed = (
        SSAM(ps, SGD, mask=DynamicMask(), seed=s, lr=0.1, backend=backend)
        for ps, s in ((a, 7), (b, 1))
    )
    steps = draw(a, 3)
    injected_step(opt, a, *steps[0])
    opt.update_mask(4)
    resumed.load_state_dict(through_disk(opt.state_dict()))
    old = opt.mask
    for p, q in zip(a, b, strict=True):
        q.data.copy_(p.data)
    for pair in steps[1:]:
        injected_step(opt, a, *pair)
        injected_step(resumed, b, *pair)
        assert opt.mask == resumed.mask != old
    assert opt._mask_updates == resumed._mask_updates == 2


def test_property_25_a_mask_survives_a_change_of_memory_format(backend):
    p = nn.Parameter(torch.randn(3, 4, 5, 2))
    opt = SSAM([p], SGD, rho=0.5, mask=MagnitudeMask(), lr=0.1, backend=backend)
    (first, second), (third, _) = draw([p], 2)
    injected_step(opt, [p], first, second)
    mask = opt.mask.to_bool()[0]
    p.data = p.data.to(memory_format=torch.channels_last)
    before = p.detach().clone()
    inject([p], third)
    opt.first_step()
    assert torch.equal(p.detach() != before, mask)
    opt.restore()
    assert torch.equal(p.detach(), before)
    opt.update_mask()
    assert opt.mask == MagnitudeMask().compute([before.contiguous()], 0.5)


@pytest.mark.parametrize(("base", "options"), BASES)
def test_copies_in_the_middle_of_a_run_go_on_alike(backend, base, options):
    model = mlp()
    opt = make(model, base, options, backend)
    opt.set_weight_mask(random_masks(list(model.parameters()), 0.7))
    train_sam(model, opt, 4)
    other, copied = copy.deepcopy((model, opt))
    assert copied.mask == opt.mask
    frozen = [bits(p) for p in other.parameters()]
    train_sam(model, opt, 5)
    assert all(torch.equal(bits(p), b) for p, b in zip(other.parameters(), frozen, strict=True))
    train_sam(other, copied, 5)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())
    assert copied.mask == opt.mask


def test_a_checkpoint_of_another_shape_is_refused_and_changes_nothing(backend):
    params, other = make_params(), make_params(((5, 7), (33,)))
    opt = SSAM(params, SGD, mask=RandomMask(), seed=3, lr=0.1, backend=backend)
    old = opt.mask
    state = SSAM(other, SGD, mask=RandomMask(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['params'\]\[0\].*shape \(5, 7\)"):
        opt.load_state_dict(state)
    weights = SSAM(other, SGD, mask=RandomMask(), weight_mask=random_masks(other), lr=0.1)
    state = opt.state_dict()
    state["sparse_optim"]["weights"] = weights.state_dict()["sparse_optim"]["weights"]
    with pytest.raises(ValueError, match=r"shape \(5, 7\)"):
        opt.load_state_dict(state)
    assert opt.mask is old
    assert isinstance(opt.mask, BitMask)
    assert opt.weight_mask is None
