"""The study of Bregman training: cases, equal sparsity, tables, curves and the command."""

from __future__ import annotations

import contextlib
import csv
import doctest
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_cases import few_digits
from sparse_optim import cli
from sparse_optim.demo import bregman_curves, bregman_study, report, study, study_command, text
from text_cases import small_stdlib

from bench import tables

RESULTS = Path(__file__).parents[2] / "docs" / "results"
CLOCK = ("training_seconds", "optimizer_ms_per_step")
TINY = {"LAMS": {"digits": (0.01, 1.0), "stdlib": (0.01, 1.0)}, "COARSE_STEPS": (0, 4)}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(*argv: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["study-bregman", *argv]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[tuple[Path, str]]:
    """Two equal runs on digits: their folders and what they printed."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_command, "load_digits", lambda: few_digits(128))
        for name, value in TINY.items():
            patch.setattr(bregman_study, name, value)
        for name in ("a", "b"):
            out = tmp_path_factory.mktemp(name)
            argv = ["--out", str(out), "--seeds", "2", "--epochs", "3", "--sparsities", "0.8"]
            found.append((out, run(*argv)))
    return found


@pytest.fixture
def stdlib(tmp_path, monkeypatch) -> Path:
    """A small standard library and a transformer to match, 2 epochs of 4 steps."""
    folder = tmp_path / "lib"
    folder.mkdir()
    monkeypatch.setattr(text, "EPOCH_STEPS", 4)
    monkeypatch.setattr(bregman_study, "WINDOW", 12)
    small = replace(bregman_study.PLANS["stdlib"], sizes={"width": 16, "depth": 1}, epochs=2)
    monkeypatch.setitem(bregman_study.PLANS, "stdlib", small)
    for name, value in TINY.items():
        monkeypatch.setattr(bregman_study, name, value)
    return small_stdlib(folder, monkeypatch)


# -- cases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", bregman_study.DATA)
def test_methods_meet_at_the_same_sparsities(data):
    dense, *cases = bregman_study.method_cases(data, (0.9, 0.99), "feedback")
    assert dense.sparsity is None
    assert dense.recipe.optimizer == ("sgd" if data == "digits" else "adamw")
    by_sparsity: dict[float | None, list[str]] = {}
    for case in cases:
        by_sparsity.setdefault(case.sparsity, []).append(case.method)
        options = case.recipe.all_options()
        if case.recipe.optimizer == dense.recipe.optimizer:
            assert options["weight_sparsity"] == pytest.approx(case.sparsity / 100.0)
        else:
            assert options["target_sparsity"] == pytest.approx(case.sparsity / 100.0)
            assert options["control"] == "feedback"
            assert options["density"] is None  # as sparse at the start as in the end
    assert list(by_sparsity) == [90.0, 99.0]
    assert by_sparsity[90.0] == by_sparsity[99.0]
    assert {m.split("m=")[1] for m in by_sparsity[90.0] if "m=" in m} == {"9", "99"}
    methods = {c.recipe.options.get("sparse_method") for c in cases}
    assert methods == {None, "gmp", "rigl"}


def test_m_and_lam_are_all_that_differs():
    cases = bregman_study.sensitivity_cases("digits")
    pairs = [(c.recipe.option("coarse_steps"), c.recipe.option("lam")) for c in cases]
    assert len(set(pairs)) == 25
    assert {m for m, _ in pairs} == {0, 4, 9, 49, 99}
    lams = sorted({lam for _, lam in pairs})
    assert lams[-1] / lams[0] == pytest.approx(100.0)
    others = {
        tuple((k, v) for k, v in c.recipe.options.items() if k not in ("coarse_steps", "lam"))
        for c in cases
    }
    assert len(others) == 1
    assert all(c.recipe.option("target_sparsity") is None for c in cases)


# -- the command on digits -----------------------------------------------------------------------


def test_command_writes_its_tables(folders):
    out, shown = folders[0]
    lines = {"bregman_digits": 1 + 6, "bregman_digits_runs": 2 * 7}
    lines |= {"bregman_digits_sensitivity": 4, "bregman_digits_sensitivity_runs": 8}
    last = shown.splitlines()[-1]
    for name, count in lines.items():
        rows = read(out / f"{name}.csv")
        assert len(rows) == count
        assert str(out / f"{name}.csv") in last
        for row in rows:
            assert row["command"].startswith(f"sparse-optim study-bregman --out {out} --seeds 2")
            assert row["torch"] == torch.__version__
            assert row["machine"].endswith(" 1 thread")
            assert row["steps"] == "12"
            assert row["bits_per_character" + ("_mean" if "seeds" in row else "")] == ""
            assert float(row["theoretical_flops_percent"]) <= 100.0
            assert 99.0 < float(row["issued_flops_percent"]) < 100.0  # dense kernels throughout
    assert (out / "bregman_digits_curves.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "bregman_digits_curves.png") in last


def test_sparsities_are_equal(folders):
    """Feedback has had one full step or two: runs that start at the target are about there."""
    for row in read(folders[0][0] / "bregman_digits_runs.csv"):
        zeros, target = float(row["weight_sparsity_percent"]), row["sparsity_target_percent"]
        if row["method"] == "SGD":
            assert (zeros, target) == (0.0, "")
        elif "+" in row["method"]:
            assert zeros == pytest.approx(float(target), abs=0.01)
        else:
            assert zeros == pytest.approx(float(target), abs=5.0)


@pytest.mark.parametrize(("control", "slack"), [("quantile", 0.05), ("feedback", 1.0)])
@pytest.mark.parametrize("method", ["LinBreg", "AdaBreg", "LinBreg m=9"])
def test_runs_end_at_their_target(method, control, slack):
    cases = bregman_study.method_cases("digits", (0.9,), control)
    (case,) = (c for c in cases if c.method == method)
    plan = bregman_study.plan_of("digits", 60 if "m=" in method else 20)
    outcome = study.train_case(case, plan, few_digits(), "auto", 0)
    assert outcome.zeros == pytest.approx(90.0, abs=slack)


@pytest.mark.parametrize("name", ["bregman_digits", "bregman_digits_sensitivity"])
def test_summary_is_that_of_the_runs(name, folders):
    check_summary(folders[0][0], name, "test_accuracy_percent", 0.011)


def check_summary(folder: Path, name: str, result: str, slack: float) -> None:
    """Means and deviations of the runs, which are stored rounded."""
    shared = ("data", "steps", "method", "lr", "lam", "coarse_steps", "sparsity_target_percent")
    values: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for one in read(folder / f"{name}_runs.csv"):
        values.setdefault(tuple(one[k] for k in shared), []).append(one)
    rows = read(folder / f"{name}.csv")
    assert list(values) == [tuple(row[k] for k in shared) for row in rows]
    for row, own in zip(rows, values.values(), strict=True):
        assert len(own) == int(row["seeds"])
        measured = [float(one[result]) for one in own]
        assert float(row[f"{result}_mean"]) == pytest.approx(np.mean(measured), abs=slack)
        if len(own) > 1:
            spread = float(row[f"{result}_deviation"])
            assert spread == pytest.approx(np.std(measured, ddof=1), abs=2 * slack)
        for column in ("weight_sparsity_percent", "theoretical_flops_percent", *CLOCK):
            mean = np.mean([float(one[column]) for one in own])
            assert float(row[column]) == pytest.approx(mean, abs=0.011)


def test_command_is_reproducible(folders):
    """All but what hangs on the clock."""
    unequal = dict.fromkeys(("command", "date", *CLOCK), "")
    for path in sorted(folders[0][0].glob("*.csv")):
        first, second = (
            [{**row, **unequal} for row in read(folder / path.name)] for folder, _ in folders
        )
        assert first == second


def test_curves_add_up(folders):
    rows = read(folders[0][0] / "bregman_digits_curves.csv")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    assert methods == list(bregman_study.CURVES["digits"])
    counts = ("nonzeros", "entries", "births", "deaths")
    for method in methods:
        steps: dict[str, list[dict[str, int]]] = {}
        for row in rows:
            if row["method"] == method:
                own = {name: int(row[name]) for name in counts}
                steps.setdefault(row["step"], []).append(own)
        assert [int(step) for step in steps] == list(range(1, 13))
        born = []
        for *layers, total in steps.values():
            assert len(layers) == 4
            assert total == {name: sum(x[name] for x in layers) for name in counts}
            born.append(total["nonzeros"] - total["births"] + total["deaths"])
        assert len(set(born)) == 1  # nonzeros at the start
        assert born[0] == pytest.approx(0.05 * 25_744, abs=30)
    changes = {m: [(int(r["births"]), int(r["deaths"])) for r in rows if r["method"] == m]
               for m in methods}  # fmt: skip
    # 12 steps are too few for the first full one of m = 99: only those of its start return
    assert all(births <= deaths for births, deaths in changes["LinBreg m=99"])
    assert max(births for births, _ in changes["LinBreg"]) > 0


def test_curves_of_an_uneven_number_of_steps(monkeypatch):
    monkeypatch.setattr(bregman_curves, "POINTS", 3)
    plan = bregman_study.plan_of("digits", 2)
    case = bregman_study.curve_cases("digits")[0]
    points = bregman_curves.follow(case, plan, few_digits(128), "auto")
    assert [p.step for p in points] == [3, 6, 8]
    assert points[-1].total[1] == 25_744
    assert points[-1].lam == case.recipe.option("lam")


def test_tables_for_the_readme(folders, monkeypatch):
    out, _ = folders[0]
    monkeypatch.setattr(tables, "ROOT", out)
    for kind, name in (
        ("bregman_methods", "bregman_digits"),
        ("bregman_sensitivity", "bregman_digits_sensitivity"),
    ):
        rows = read(out / f"{name}.csv")
        lines = tables.table(kind, out / f"{name}.csv").splitlines()
        for row, line in zip(rows, lines[2:], strict=False):
            assert f"| {float(row['test_accuracy_percent_mean']):.2f} |" in line
            assert f"| {float(row['theoretical_flops_percent']):.1f} |" in line
        assert f"`{rows[0]['command']}`" in lines[-1]


# -- text ----------------------------------------------------------------------------------------


def test_command_on_text(stdlib, tmp_path):
    out = tmp_path / "out"
    shown = run("--out", str(out), "--data", "stdlib", "--seeds", "1", "--sparsities", "0.5")
    assert "8 files" in shown
    rows = read(out / "bregman_stdlib.csv")
    assert [row["method"] for row in rows[:2]] == ["AdamW", "LinBreg"]
    assert len(rows) == len(bregman_study._METHODS["stdlib"])
    check_summary(out, "bregman_stdlib", "bits_per_character", 1e-4)
    for row in rows:
        assert 0.0 < float(row["bits_per_character_mean"]) < 10.0
        if "+" in row["method"]:
            assert float(row["weight_sparsity_percent"]) == pytest.approx(50.0, abs=0.1)
    layers = {row["layer"] for row in read(out / "bregman_stdlib_curves.csv")}
    assert layers == {
        "layers.0.attention.1.inputs.weight", "layers.0.attention.1.output.weight",
        "layers.0.mlp.1.weight", "layers.0.mlp.3.weight", "head.1.weight", "all",
    }  # fmt: skip


# -- pieces --------------------------------------------------------------------------------------


def test_summary_has_the_costs():
    case = bregman_study.method_cases("digits", (0.9,))[1]
    outcomes = [
        study.Outcome(case, i, 4, 90.0, None, 90.0, s, {}, loss, (f, 99.5), ms)
        for i, (s, loss, f, ms) in enumerate([(1.0, 0.5, 30.0, 2.0), (3.0, 0.7, 40.0, 3.0)])
    ]
    (summary,) = study.summarise(outcomes)
    assert summary.seconds == pytest.approx(2.0)
    assert summary.loss == pytest.approx(0.6)
    assert summary.loss_deviation == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert summary.flops == pytest.approx((35.0, 99.5))
    assert summary.ms == pytest.approx(2.5)


def test_examples():
    assert doctest.testmod(report).failed == 0


@pytest.mark.parametrize(
    ("name", "result", "slack"),
    [
        ("bregman_digits", "test_accuracy_percent", 0.011),
        ("bregman_digits_sensitivity", "test_accuracy_percent", 0.011),
        ("bregman_stdlib", "bits_per_character", 1e-4),
    ],
)
def test_stored_summary_is_that_of_the_stored_runs(name, result, slack):
    check_summary(RESULTS, name, result, slack)
