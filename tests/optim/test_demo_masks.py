"""The demo's choices of Sparse SAM and sparse training, and the picture of the masks."""

from __future__ import annotations

import doctest
import itertools
import math
import struct

import pytest
import torch
from demo_cases import few_digits, new_run
from sparse_optim import (
    SAM,
    SSAM,
    DynamicMask,
    FisherMask,
    MagnitudeMask,
    RandomMask,
    SmallMagnitudeMask,
    live_count,
)
from sparse_optim.demo import compare, data, mask_plot, methods, plots, variants
from sparse_optim.demo._support import UserError

POLICIES = {
    "fisher": FisherMask,
    "dynamic": DynamicMask,
    "random": RandomMask,
    "magnitude": MagnitudeMask,
    "small": SmallMagnitudeMask,
}


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits()


# -- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", methods.MASKS)
def test_explicit_choices_reach_the_optimizer(mask, digits):
    pattern = "unstructured" if mask == "dynamic" else "2:4"
    more = {} if mask == "dynamic" else {"axis": "out"}
    run = new_run(digits, mask=mask, pattern=pattern, norm="masked", adaptive=True, interval=2,
                  **more)  # fmt: skip
    opt = run.optimizer
    assert isinstance(opt, SSAM)
    assert run.implicit is None
    assert type(opt.policy) is POLICIES[mask]
    assert (opt.pattern.name, opt.norm_form, opt.interval) == (pattern, "masked", 2)
    assert opt.pattern.axis == more.get("axis", "in")
    assert all(group["adaptive"] for group in opt.param_groups)
    assert new_run(digits, sparsity=0.75).optimizer.sparsity == 0.75


def test_implicit_choices_reach_the_masks(digits):
    run = new_run(digits, form="implicit", mask="magnitude", pattern="2:4")
    assert type(run.optimizer) is SAM
    implicit = run.implicit
    assert type(implicit.policy) is MagnitudeMask
    assert (implicit.pattern, implicit.axis, implicit.layers) == (
        "2:4",
        "out",
        ("0", "2", "5", "9"),
    )
    assert new_run(digits, form="implicit", pattern="2:4", axis="in").implicit.axis == "in"
    assert new_run(digits, optimizer="sam").implicit is None


@pytest.mark.parametrize("form", methods.FORMS)
@pytest.mark.parametrize("mask", ["fisher", "random", "magnitude"])
def test_masks_are_renewed_every_epoch(mask, form, digits, monkeypatch):
    run = new_run(digits, mask=mask, form=form, sparsity=0.8)
    seen, passes = [], []
    monkeypatch.setattr(run.flops, "count_passes", lambda *counted: passes.append(counted))
    for _ in range(3):
        run.start_epoch(torch.Generator().manual_seed(len(seen)))
        seen.append(torch.cat([m.flatten() for m in run.masks().values()]))
        for images, labels in data.epoch_batches(digits.train, 80, torch.Generator()):
            run.step(images, labels)
    for before, after in itertools.pairwise(seen):
        assert before.sum() == after.sum() == live_count(len(before), 0.8)
        assert not torch.equal(before, after)
    assert passes == ([(128, 1, 1)] * 3 if mask == "fisher" else [])


def test_dynamic_mask_exchanges_less_and_less(digits):
    run = new_run(digits, mask="dynamic", sparsity=0.8, steps=16)
    k = live_count(25_866, 0.8)
    generator, changed = torch.Generator().manual_seed(0), []
    for _ in range(4):
        before = torch.cat([m.flatten() for m in run.masks().values()])
        run.start_epoch(generator)
        for images, labels in data.epoch_batches(digits.train, 40, generator):
            run.step(images, labels)
        after = torch.cat([m.flatten() for m in run.masks().values()])
        assert int(after.sum()) == k
        changed.append(int((before & ~after).sum()))
    rates = [0.5 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    assert changed == [math.floor(k * r + 0.5) for r in rates]


def test_rules_name_the_option(digits):
    for options, says in (
        ({"axis": "in"}, "--axis goes with"),
        ({"pattern": "2:4", "sparsity": 0.5}, "--sparsity is no option of --pattern 2:4"),
        ({"mask": "dynamic", "pattern": "tensor"}, "no --pattern tensor"),
        ({"sparse_method": "lth", "weight_distribution": "er"}, "--weight-distribution needs"),
    ):
        with pytest.raises(UserError, match=says):
            new_run(digits, **options)


def test_choices_change_the_plan_where_they_act():
    plan = methods.PLANS[0]
    assert variants.with_choices(plan, {}) == plan
    changed = variants.with_choices(plan, {"form": "implicit", "sparse_method": "set"})
    labels = [r.label for r in changed.recipes]
    assert labels == [
        "SGD", "SAM + set", "SSAM 50 % implicit + set", "ZO-SAM + set", "LinBreg", "AdaBreg",
        "LinBreg m=4",
    ]  # fmt: skip
    assert [r.options for r in changed.recipes[4:]] == [r.options for r in plan.recipes[4:]]
    groups = variants.with_choices(plan, {"pattern": "2:4"}).recipes[2]
    assert groups.label == "SSAM 2:4"
    assert "sparsity" not in groups.options


@pytest.mark.parametrize("module", [variants, mask_plot], ids=["variants", "mask_plot"])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# -- the picture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 3, 3, 3), (100, 130), (3, 1000), (48, 48), (5, 1)])
def test_mask_image_is_exact(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3
    table = mask.reshape(shape[0], -1)
    image = mask_plot.mask_image(mask, 48)
    assert image.shape == tuple(min(n, 48) for n in table.shape)
    rows, columns = ([i * n // min(n, 48) for i in range(min(n, 48) + 1)] for n in table.shape)
    for i in range(image.shape[0]):
        for j in (0, image.shape[1] // 2, image.shape[1] - 1):
            part = table[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            assert image[i, j].item() == pytest.approx(part.double().mean().item(), abs=1e-12)


def test_masks_of_a_run_are_what_it_perturbs(digits):
    run = new_run(digits, sparse_method="snip", weight_sparsity=0.6, sparsity=0.5, rho=0.1)
    run.start_epoch(torch.Generator().manual_seed(0))
    masks = run.masks()
    assert list(masks) == [name for name, _ in run.model.named_parameters()]
    x, y = digits.inputs(digits.train.images[:40]), digits.train.labels[:40]
    before = [p.detach().clone() for p in run.model.parameters()]
    torch.nn.functional.cross_entropy(run.model(x), y).backward()
    run.optimizer.first_step()
    for (name, mask), p, b in zip(masks.items(), run.model.parameters(), before, strict=True):
        assert torch.equal(p[~mask], b[~mask]), name
    moved = sum(int((p != b).sum()) for p, b in zip(run.model.parameters(), before, strict=True))
    assert moved > 0.5 * sum(int(m.sum()) for m in masks.values())
    run.optimizer.restore()
    assert new_run(digits, "sam").masks() == {}


def test_picture_shows_the_masks(digits, tmp_path, monkeypatch):
    """Every bar is a layer's share, every image its mask."""
    from matplotlib import figure, pyplot

    run = new_run(digits, mask="random", sparsity=0.7)
    masks = run.masks()
    zero = (0.0, 0.0)
    row = compare.Row("CNN", "SSAM", "cpp", 1, zero, zero, 209.1, (1.0, 1.0), 0.0, masks)
    shown = []
    save = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda f, *args, **kw: (shown.append(f), save(f, *args, **kw))
    )
    pyplot.switch_backend("agg")
    mask_plot.plot_masks([row, row], tmp_path / "m.png")
    axes = shown[0].get_axes()
    bars = [a for a in axes if a.patches]
    images = [a for a in axes if a.get_images()]
    assert len(bars) == 2
    assert len(images) == 2 * 4
    shares = list(mask_plot.live_shares(masks).values())
    assert len(shares) == 8
    widths = [patch.get_width() for patch in bars[0].patches]
    assert widths == pytest.approx([100.0] * 8 + shares)
    assert [t.get_text() for t in bars[0].get_yticklabels()] == list(masks)
    weights = {n: m for n, m in masks.items() if m.dim() >= 2}
    for axis, (name, mask) in zip(images, weights.items(), strict=False):
        assert axis.get_visible()
        assert axis.get_title().startswith(f"{name}: {mask.shape[0]} x ")
        assert torch.equal(
            torch.from_numpy(axis.get_images()[0].get_array().data), mask_plot.mask_image(mask)
        )
    raw = (tmp_path / "m.png").read_bytes()
    assert struct.unpack(">II", raw[16:24]) > (800, 400)
    pyplot.close("all")


def test_picture_of_the_masks_comes_with_the_others(digits, tmp_path):
    plan = methods.Plan("cnn", "CNN", 1, 80, (methods.PLANS[0].recipes[2],))
    row = compare.compare(plan, plan.recipes[0], digits, "auto", 0)
    assert sum(int(m.sum()) for m in row.masks.values()) == live_count(25_866, 0.5)
    names = [path.name for path in plots.write_plots([row], tmp_path)]
    assert names == ["accuracy.png", "sparsity.png", "step_time.png", "masks.png"]
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
