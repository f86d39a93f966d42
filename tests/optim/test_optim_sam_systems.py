"""SAM and SSAM in a training program: checkpoints, copies, schedulers, loss scaling."""

import copy
import warnings

import pytest
import torch
from optim_cases import (
    assert_same_params,
    batch,
    bits,
    cross_entropy,
    mlp,
    through_disk,
    train_sam,
)
from sparse_optim import SAM, SSAM, RandomMask
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

BASES = [(SGD, {"momentum": 0.9, "nesterov": True}), (AdamW, {}), (Adam, {"fused": True})]


def make(model, base, options, **own):
    return SSAM(
        model.parameters(), base, rho=0.3, mask=RandomMask(), seed=4, lr=0.05, **options, **own
    )


@pytest.mark.parametrize(("base", "options"), BASES)
def test_property_33_resuming_continues_bit_for_bit(backend, base, options):
    a = mlp()
    opt = make(a, base, options, backend=backend)
    train_sam(a, opt, 3)
    opt.update_mask()
    state = through_disk(opt.state_dict())
    weights = through_disk(a.state_dict())
    train_sam(a, opt, 20)
    opt.update_mask()

    b = mlp(seed=77)
    b.load_state_dict(weights)
    resumed = make(b, base, options, backend=backend, sparsity=0.9)  # another mask, then loaded
    resumed.sparsity = 0.5
    resumed.load_state_dict(state)
    assert resumed.param_groups is resumed.base_optimizer.param_groups
    train_sam(b, resumed, 20)
    resumed.update_mask()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(bits(p), bits(q))
    assert resumed.mask == opt.mask


def test_the_checkpoint_loads_into_the_plain_base_and_back():
    model = mlp()
    opt = SAM(model.parameters(), SGD, lr=0.1, momentum=0.9)
    train_sam(model, opt, 2)
    plain = SGD(model.parameters(), lr=0.1, momentum=0.9)
    plain.load_state_dict(opt.state_dict())
    again = SAM(model.parameters(), SGD, rho=0.7, lr=0.1, momentum=0.9)
    reference = SGD(model.parameters(), lr=0.1, momentum=0.9)
    reference.load_state_dict(plain.state_dict())
    state = reference.state_dict()
    for group in state["param_groups"]:
        group.pop("rho")
    again.load_state_dict(state)
    assert again.param_groups[0]["rho"] == 0.7
    p = model[0].weight
    assert torch.equal(again.state[p]["momentum_buffer"], opt.state[p]["momentum_buffer"])


def test_foreign_weight_copies_are_left_out_with_one_warning():
    model = mlp()
    opt = SAM(model.parameters(), SGD, lr=0.1, momentum=0.9)
    train_sam(model, opt, 1)
    state = opt.state_dict()
    for i in range(4):
        state["state"][i] = {**state["state"][i], "old_p": torch.ones(2), "e_w": torch.ones(2)}
    with pytest.warns(UserWarning, match="left out") as caught:
        opt.load_state_dict(state)
    assert len(caught) == 1
    assert set(opt.state[model[0].weight]) == {"momentum_buffer"}
    wrong = copy.deepcopy(opt.state_dict())
    wrong["param_groups"][0]["params"].pop()
    with pytest.raises(ValueError, match="groups of"):
        opt.load_state_dict(wrong)


@pytest.mark.parametrize(("base", "options"), BASES[:2])
def test_deepcopy_is_independent_and_equal(base, options):
    model = mlp()
    opt = make(model, base, options)
    train_sam(model, opt, 2)
    other, other_opt = copy.deepcopy((model, opt))
    assert other_opt.param_groups[0]["params"][0] is other[0].weight
    frozen = [p.detach().clone() for p in other.parameters()]
    train_sam(model, opt, 3)
    assert_same_params(frozen, other)
    train_sam(other, other_opt, 3)
    assert_same_params(model, other)


@pytest.mark.parametrize("on_base", [False, True])
def test_schedulers_work_on_either(on_base):
    model = mlp()
    opt = SAM(model.parameters(), SGD, lr=0.1)
    target = opt.base_optimizer if on_base else opt
    parts = [LinearLR(target, 0.1, total_iters=2), CosineAnnealingLR(target, 4)]
    schedule = SequentialLR(target, parts, milestones=[2])
    seen = []
    with warnings.catch_warnings():
        # torch's SequentialLR steps its parts itself
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*epoch.*")
        for _ in range(4):
            train_sam(model, opt, 1)
            seen.append(opt.base_optimizer.param_groups[0]["lr"])
            schedule.step()
    assert seen[0] == pytest.approx(0.01)
    assert len({round(v, 9) for v in seen}) >= 3
    assert opt.param_groups is opt.base_optimizer.param_groups


def test_groups_added_later_get_all_defaults_and_are_trained():
    model, extra = mlp(), nn.Parameter(torch.ones(3))
    opt = SAM(model.parameters(), SGD, rho=0.2, lr=0.1, momentum=0.9)
    opt.add_param_group({"params": [extra], "lr": 0.5})
    group = opt.param_groups[1]
    assert (group["rho"], group["momentum"], group["lr"]) == (0.2, 0.9, 0.5)
    assert opt.param_groups is opt.base_optimizer.param_groups
    extra.grad = torch.ones(3)
    opt.first_step()
    assert not torch.equal(extra.detach(), torch.ones(3))
    opt.second_step()
    torch.testing.assert_close(extra.detach(), torch.full((3,), 0.5))
    with pytest.raises(ValueError, match="rho"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -1.0})
    assert len(opt.param_groups) == 2


def scaled_run(model, opt, scaler, x, y, *, unscale=False, clip=None, way="steps"):
    scaler.scale(cross_entropy(model(x), y)).backward()
    if way == "steps":
        opt.first_step(zero_grad=True)
        scaler.scale(cross_entropy(model(x), y)).backward()
    else:
        with opt.perturbed():
            scaler.scale(cross_entropy(model(x), y)).backward()
    if unscale:
        scaler.unscale_(opt)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(opt)
    scaler.update()
    opt.zero_grad()


@pytest.mark.parametrize("way", ["steps", "context"])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize(("base", "options"), [*BASES[:2], (SGD, {"momentum": 0.9, "fused": True})])
def test_property_35_loss_scaling_matches_the_unscaled_run(base, options, unscale, way):
    a, b = mlp(), mlp()
    x, y = batch()
    first = SAM(a.parameters(), base, rho=0.2, lr=0.05, **options)
    scaled = SAM(b.parameters(), base, rho=0.2, lr=0.05, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(5):
        cross_entropy(a(x), y).backward()
        first.first_step(zero_grad=True)
        cross_entropy(a(x), y).backward()
        if unscale:
            nn.utils.clip_grad_norm_(a.parameters(), 0.5)
        first.second_step(zero_grad=True)
        scaled_run(b, scaled, scaler, x, y, unscale=unscale, clip=0.5, way=way)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-7)
    assert not torch.equal(a[0].weight, mlp()[0].weight)
    assert int(scaled.skipped_steps) == 0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_property_35_and_9_an_overflow_restores_and_skips(fused, unscale):
    model = mlp()
    x, y = batch()
    opt = SAM(model.parameters(), SGD, rho=0.2, lr=0.05, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled_run(model, opt, scaler, x, y)
    before = [bits(p) for p in model.parameters()]
    scaler.scale(cross_entropy(model(x), y)).backward()
    opt.first_step(zero_grad=True)
    scaler.scale(cross_entropy(model(x), y)).backward()
    model[0].weight.grad[0, 0] = float("inf")
    if unscale:
        scaler.unscale_(opt)
    scaler.step(opt)
    scaler.update()
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(bits(p), b)
    assert int(opt.skipped_steps) == 1
    assert scaler.get_scale() == 2.0**9
    assert opt.phase == "idle"
    opt.zero_grad()
    scaled_run(model, opt, scaler, x, y)
    assert not torch.equal(bits(model[0].weight), before[0])
    opt.found_inf = torch.zeros(())  # as the scaler sets it around step
    with pytest.raises(RuntimeError, match="closure cannot"):
        opt.step(lambda: None)
