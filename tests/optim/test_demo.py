"""The demo's parts: methods, runs in lockstep, table and pictures."""

from __future__ import annotations

import struct
import time
from dataclasses import replace

import pytest
import torch
from demo_cases import few_digits
from sparse_optim.demo import compare as compare_module
from sparse_optim.demo import data, methods, plots, report, runner, stopwatch
from sparse_optim.demo._support import UserError, require

# -- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", methods.OPTIMIZERS)
@pytest.mark.parametrize("model", ["cnn", "resnet"])
def test_every_optimizer_takes_steps(optimizer, model):
    small = few_digits(64, 32)
    run = runner.Run(model, small, methods.Recipe(optimizer, optimizer), "auto", 0, 4)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.start_epoch(torch.Generator().manual_seed(0))
    for images, labels in data.epoch_batches(small.train, 32, torch.Generator().manual_seed(0)):
        loss = run.step(images, labels)
    assert 0.5 < float(loss) < 20.0
    assert run.optimizer.param_groups[0]["lr"] < run.recipe.option("lr")  # the cosine acts
    pairs = zip(before, run.model.parameters(), strict=True)
    assert any(not torch.equal(b, p) for b, p in pairs)
    assert len(run.seconds) == 2
    assert all(s > 0.0 for s in run.seconds)


def test_bregman_runs_start_as_sparse_as_asked():
    recipe = methods.Recipe("x", "linbreg", {"density": 0.25})
    run = runner.Run("cnn", few_digits(), recipe, "auto", 0, 1)
    assert run.sparsity() == pytest.approx(75.0, abs=0.1)
    dense = runner.Run("cnn", few_digits(), methods.Recipe("x", "sgd"), "auto", 0, 1)
    assert dense.sparsity() == 0.0


def test_accuracy_counts_right_answers():
    small = few_digits(test=50)
    run = runner.Run("cnn", small, methods.Recipe("x", "sgd"), "auto", 0, 1)

    class Says3(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    run.model = Says3()
    share = (small.test.labels == 3).double().mean().item()
    assert run.accuracy() == pytest.approx(100.0 * share)
    assert run.model.training


def test_stopwatch_leaves_out_what_is_switched_off(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])
    watch = stopwatch.Stopwatch(torch.device("cpu"))
    clock[0] += 100.0
    with watch.on():
        clock[0] += 1.0
        with watch.off():
            clock[0] += 50.0
        clock[0] += 2.0
    assert watch.take() == 3.0
    assert watch.take() == 0.0


@pytest.mark.parametrize(("optimizer", "forwards"), [("zosam", 3), ("mezo", 2), ("mezo-eager", 2)])
def test_probe_time_excludes_forwards(optimizer, forwards, monkeypatch):
    """A slow model does not make the optimizer slow."""
    small = few_digits(32, 32)
    run = runner.Run("cnn", small, methods.Recipe("x", optimizer), "auto", 0, 1)
    slow, forward = [0], run.model.forward

    def slow_forward(x):
        time.sleep(0.2)
        slow[0] += 1
        return forward(x)

    monkeypatch.setattr(run.model, "forward", slow_forward)
    run.step(small.train.images, small.train.labels)
    assert slow[0] == forwards  # two probes, and the training forward of zosam
    assert run.seconds[0] < 0.2
    assert run.step_seconds[0] >= 0.2 * forwards
    assert run.whole_ms_per_step() == 1e3 * run.step_seconds[0]


def test_ms_per_step_is_the_median_of_cycle_means():
    recipe = methods.Recipe("x", "linbreg", {"coarse_steps": 4})
    run = runner.Run("cnn", few_digits(), recipe, "auto", 0, 1)
    run.seconds = [9.0] * 5 + [0.001, 0.001, 0.001, 0.001, 0.006] * 3
    assert run.ms_per_step() == pytest.approx(2.0)
    run.seconds = [0.004]
    assert run.ms_per_step() == pytest.approx(4.0)


TINY = methods.Plan("cnn", "CNN", 5, 32, methods.PLANS[0].recipes)


@pytest.fixture(scope="module")
def rows() -> dict[str, compare_module.Row]:
    """Every recipe of the demo's CNN: 25 steps on 160 images."""
    small = few_digits()
    return {r.label: compare_module.compare(TINY, r, small, "auto", 0) for r in TINY.recipes}


def test_fused_runs_follow_their_reference(rows):
    assert {row.steps for row in rows.values()} == {25}
    for label, row in rows.items():
        if label in ("SGD", "ZO-SAM"):  # torch's own fused rounding; normals within 4 ulp
            assert row.max_difference < 1e-5, label
        else:
            assert row.max_difference == 0.0, label
            assert row.accuracy[0] == row.accuracy[1], label
            assert row.sparsity[0] == row.sparsity[1], label
        assert row.accuracy[1] > 20.0, label  # ten classes: it has learned something
        assert row.ratio == pytest.approx(row.ms[0] / row.ms[1])


def test_difference_sees_runs_that_part(monkeypatch):
    """The same comparison with another learning rate on one side is not zero."""
    build = compare_module.Run

    def skewed(model, small, recipe, backend, seed, steps):
        if backend == "reference":
            recipe = replace(recipe, options={**recipe.options, "lr": 0.021})
        return build(model, small, recipe, backend, seed, steps)

    monkeypatch.setattr(compare_module, "Run", skewed)
    sam = replace(TINY, epochs=1)
    row = compare_module.compare(sam, methods.Recipe("SAM", "sam"), few_digits(), "auto", 0)
    assert row.max_difference > 1e-3


def test_flops(rows):
    assert rows["SGD"].flops_percent[0] == pytest.approx(100.0)
    assert rows["SAM"].flops_percent[0] == pytest.approx(200.0)
    # 128 mask samples per epoch of 160
    assert rows["SSAM 50 %"].flops_percent[0] == pytest.approx(200.0 + 100.0 * 128 / 160)
    assert rows["ZO-SAM"].flops_percent[0] == pytest.approx(100.0 * (1 + 2 / 3))
    # (1 + 2 rho) / 3 lies between 1/3 and 1; a cycle of m = 4 between 1/15 and 1
    assert 100 / 3 < rows["LinBreg"].flops_percent[0] < 75.0
    assert 100 / 3 < rows["AdaBreg"].flops_percent[0] < 75.0
    assert 100 / 15 < rows["LinBreg m=4"].flops_percent[0] < rows["LinBreg"].flops_percent[0]
    for label in ("LinBreg", "AdaBreg", "LinBreg m=4"):
        assert rows[label].sparsity[1] > 50.0


# -- report --------------------------------------------------------------------------------------


def test_table_and_csv_show_the_rows(rows, tmp_path):
    import csv

    from rich.console import Console

    report.write_csv(list(rows.values()), tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert tuple(records[0]) == report.COLUMNS
    assert [r["method"] for r in records] == list(rows)
    for record, row in zip(records, rows.values(), strict=True):
        assert float(record["test_accuracy_percent"]) == pytest.approx(row.accuracy[1], abs=0.01)
        assert float(record["optimizer_ms_fused"]) == pytest.approx(row.ms[1], abs=1e-4)
        assert float(record["max_difference_20_steps"]) == pytest.approx(
            row.max_difference, rel=1e-2
        )
    console = Console(width=110, record=True, file=(tmp_path / "t").open("w", encoding="utf-8"))
    console.print(report.make_table(list(rows.values())))
    console.file.close()
    text = console.export_text()
    for row in rows.values():
        line = next(ln for ln in text.splitlines() if f" {row.method} " in ln)
        assert report.ms_text(row.ms[0]) in line
        for percent in row.flops_percent:
            assert f"{percent:.1f}" in line


def test_pictures_are_drawn_without_a_display(rows, tmp_path):
    other = [replace(row, model="MLP") for row in rows.values()]
    paths = plots.write_plots([*rows.values(), *other], tmp_path)
    names = ["accuracy.png", "masks.png", "sparsity.png", "step_time.png"]
    assert sorted(p.name for p in paths) == names
    for path in paths:
        raw = path.read_bytes()
        assert raw.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", raw[16:24])
        assert width > 800
        assert height > 400


def test_require_names_what_is_missing(monkeypatch):
    assert require("math")[0].pi > 3
    with pytest.raises(UserError, match=r'no_such_module is not .* "sparse-kernels\[demo\]"'):
        require("no_such_module")
