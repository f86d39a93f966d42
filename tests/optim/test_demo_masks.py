"""The demo's choices of Sparse SAM and sparse training, and the picture of the masks."""

from __future__ import annotations

import doctest
import itertools
import math
import struct

import pytest
import torch
from sparse_optim import (
    SAM,
    SSAM,
    DynamicMask,
    FisherMask,
    MagnitudeMask,
    RandomMask,
    layer_counts,
    live_count,
)
from sparse_optim.demo import compare, data, mask_plot, methods, plots, runner, sparse, variants
from sparse_optim.demo._support import UserError

POLICIES = {
    "fisher": FisherMask,
    "dynamic": DynamicMask,
    "random": RandomMask,
    "magnitude": MagnitudeMask,
}
WEIGHTS = 25_866 - 122  # convolution and linear weights of the CNN, without its biases


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As the demo runs: the models are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    """A piece of digits, so that an epoch is a few steps."""
    whole = data.load_digits()
    parts = [
        data.Split(split.images[:count], split.labels[:count])
        for split, count in ((whole.train, 160), (whole.test, 60))
    ]
    return data.make_dataset("digits", *parts, 10)


def new_run(digits, optimizer="ssam", steps=8, backend="auto", **options) -> runner.Run:
    recipe = variants.check_recipe(methods.Recipe("x", optimizer, {"lr": 0.05, **options}))
    return runner.Run("cnn", digits, recipe, backend, 3, steps)


def train(run: runner.Run, epochs: int, size: int = 40) -> None:
    """Epochs of 160 / 40 = 4 steps."""
    assert len(list(runner.train(run, epochs, size, 3))) == epochs


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
def test_masks_are_renewed_every_epoch(mask, form, digits):
    run = new_run(digits, mask=mask, form=form, sparsity=0.8)
    seen = []
    for _ in range(3):
        run.start_epoch(torch.Generator().manual_seed(len(seen)))
        seen.append(torch.cat([m.flatten() for m in run.masks().values()]))
        for images, labels in data.epoch_batches(digits.train, 80, torch.Generator()):
            run.step(images, labels)
    for before, after in itertools.pairwise(seen):
        assert before.sum() == after.sum() == live_count(len(before), 0.8)
        assert not torch.equal(before, after)
    assert run.mask_samples == (3 * 128 if mask == "fisher" else 0)


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


# -- sparse training -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("method", sparse.METHODS[1:])
def test_sparse_methods_keep_their_counts(method, backend, digits):
    run = new_run(digits, "sgd", backend=backend, sparse_method=method, weight_sparsity=0.75)
    first = run.sparse.scheduler.mask
    train(run, 2)
    scheduler = run.sparse.scheduler
    live = live_count(WEIGHTS, 0.75)
    assert scheduler.mask.live == pytest.approx(live, abs=2 if method in ("lth", "mest") else 0)
    for p, exists in zip(scheduler.weights.values(), scheduler.mask.to_bool(), strict=True):
        assert not p[~exists].any()
    assert run.sparsity() >= 100.0 * (1 - scheduler.mask.live / WEIGHTS)
    # updates in steps 1 to 5 of 8 (RigL's last time 6 is excluded), MEST's also at time 0
    assert scheduler.updates == {"snip": 1, "grasp": 1, "lth": 3, "mest": 6}.get(method, 5)
    assert (scheduler.mask == first) == (method in ("snip", "grasp"))


@pytest.mark.parametrize(("given", "acts"), [(None, "erk"), ("er", "er"), ("uniform", "uniform")])
def test_weight_distribution(given, acts, digits):
    more = {} if given is None else {"weight_distribution": given}
    run = new_run(digits, "sam", sparse_method="set", weight_sparsity=0.8, **more)
    scheduler = run.sparse.scheduler
    shapes = {n: p.shape for n, p in scheduler.weights.items()}
    assert scheduler.layer_live == layer_counts(shapes, 0.8, acts, first_dense=False)


def test_rigl_takes_the_place_of_a_step(digits):
    """Around every optimizer; ZO-SAM hands over its gradients at w + e and is idle afterwards."""
    for optimizer in ("sgd", "sam", "ssam", "zosam"):
        run = new_run(digits, optimizer, sparse_method="rigl", weight_sparsity=0.5)
        run.start_epoch(torch.Generator().manual_seed(0))
        scheduler = run.sparse.scheduler
        assert scheduler.update_due
        assert run.sparse.wants_perturbed == (optimizer == "zosam")
        before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        run.step(digits.train.images[:40], digits.train.labels[:40])
        assert scheduler.updates == 1
        exists = dict(zip(scheduler.weights, scheduler.mask.to_bool(), strict=True))
        for name, p in run.model.named_parameters():
            kept = exists.get(name, torch.ones(p.shape, dtype=torch.bool))
            assert torch.equal(p[kept], before[name][kept]), (optimizer, name)
        run.step(digits.train.images[:40], digits.train.labels[:40])


def test_lottery_ticket_rewinds_and_starts_its_schedule_again(digits):
    run = new_run(digits, "ssam", steps=16, sparse_method="lth", weight_sparsity=0.875)
    start = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    rates = []
    for epoch in range(4):
        run.start_epoch(generator)
        scheduler = run.sparse.scheduler
        assert scheduler.level == epoch
        # halved three times: 1 - 0.875 = 0.5 ** 3
        assert scheduler.mask.live == pytest.approx(WEIGHTS * 0.5**epoch, abs=2)
        for name, p in run.model.named_parameters():
            assert torch.equal(p[p != 0], start[name][p != 0]), name
        # what is perturbed was chosen among the weights that are left
        alive = 122 + scheduler.mask.live
        assert sum(int(m.sum()) for m in run.masks().values()) == live_count(alive, 0.5)
        for images, labels in data.epoch_batches(digits.train, 40, generator):
            run.step(images, labels)
            rates.append(run.optimizer.param_groups[0]["lr"])
    expected = [0.05 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)] * 4
    assert rates == pytest.approx(expected)


def test_lottery_rounds_need_not_be_epochs(digits):
    run = new_run(digits, "sgd", steps=10, sparse_method="lth", weight_sparsity=0.5)
    assert [run.sparse.progress(i) for i in (0, 1, 2, 4, 5, 6, 7, 9)] == pytest.approx(
        [0, 1 / 2, 0, 2 / 3, 0, 1 / 2, 0, 2 / 3]
    )
    levels = []
    for _ in range(10):
        run.step(digits.train.images[:40], digits.train.labels[:40])
        levels.append(run.sparse.scheduler.level)
    assert levels == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_flops_are_given_only_where_they_are_counted(digits):
    for optimizer, options, counted in (
        ("ssam", {"mask": "dynamic"}, True),
        ("ssam", {"form": "implicit"}, True),
        ("sam", {"interval": 2}, False),
        ("zosam", {"interval": 2}, True),
        ("sgd", {"sparse_method": "snip"}, False),
    ):
        run = new_run(digits, optimizer, **options)
        train(run, 1)
        assert (run.flops_percent() is not None) == counted, (optimizer, options)
    # every second step of ZO-SAM does without its two probes
    run = new_run(digits, "zosam", interval=2)
    train(run, 1)
    assert run.flops_percent() == pytest.approx(100.0 * (1 + 0.5 * 2 / 3))


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
