"""The study: cases, paired seeds, summaries, tables and the picture."""

from __future__ import annotations

import csv
import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_cases import few_digits
from sparse_optim import cli
from sparse_optim.demo import data, methods, runner, study, study_command, study_report

from bench import tables

PLAN = study.plan_of("cnn", 1)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits(128)


def made_up(method: str, sparsity: float | None, values: list[float]) -> list[study.Outcome]:
    case = study.Case(methods.Recipe(method, "sam", {"lr": 0.1}), sparsity)
    return [study.Outcome(case, i, 4, v, 25.0 + i, 90.0) for i, v in enumerate(values)]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- cases ---------------------------------------------------------------------------------------


def test_cases_of_the_perturbation():
    cases = study.perturbation_cases(PLAN, study.SPARSITIES)
    assert study.SPARSITIES == (0.5, 0.8, 0.9, 0.95, 0.98)
    curve = [50.0, 80.0, 90.0, 95.0, 98.0]
    by_method: dict[str, list[float | None]] = {}
    for case in cases:
        by_method.setdefault(case.method, []).append(case.sparsity)
        assert case.recipe.option("lr") == 0.02  # all at the plan's
    assert by_method == {
        "SGD": [None], "SAM": [None], "SSAM-F": curve, "SSAM-D": curve, "SSAM-F rows": curve,
        "SSAM-F 2:4": [50.0],
    }  # fmt: skip
    options = {case.method: case.recipe.all_options() for case in cases}
    assert options["SSAM-D"]["mask"] == "dynamic"
    assert options["SSAM-F"]["mask"] == options["SSAM-F rows"]["mask"] == "fisher"
    assert options["SSAM-F rows"]["pattern"] == "row"
    assert options["SSAM-F 2:4"]["pattern"] == "2:4"


def test_cases_of_sparse_training():
    cases = study.training_cases(("snip", "rigl"), 0.8, "er")
    assert [(c.method, c.sparsity) for c in cases] == [
        ("SGD", None), ("SGD + snip", 80.0), ("SGD + rigl", 80.0),
        ("SAM", None), ("SAM + snip", 80.0), ("SAM + rigl", 80.0),
    ]  # fmt: skip
    assert {c.recipe.option("lr") for c in cases} == {study.SPARSE_LR}
    given = [c.recipe.options.get("weight_distribution") for c in cases]
    assert given == [None, None, "er"] * 2


def test_what_is_perturbed_is_measured(digits):
    def outcome(optimizer: str, **options: object) -> study.Outcome:
        case = study.Case(methods.Recipe("x", optimizer, options))
        return study.train_case(case, PLAN, digits, "auto", 0)

    assert outcome("sgd").perturbed is None
    assert outcome("sam").perturbed == 100.0
    assert outcome("ssam", sparsity=0.9).perturbed == pytest.approx(10.0, abs=0.01)
    # all 122 biases and, of lines of 9, 144, 288 and 256 entries, half or (9) five of nine
    groups = 122 + 16 * 5 + (32 * 144 + 64 * 288 + 10 * 256) // 2
    assert outcome("ssam", pattern="2:4").perturbed == pytest.approx(100.0 * groups / 25_866)
    sparse = outcome("sam", sparse_method="snip", weight_sparsity=0.75)
    assert sparse.zeros == pytest.approx(75.0)
    assert sparse.perturbed == pytest.approx(100.0 * (122 + 25_744 / 4) / 25_866, abs=0.01)


def test_seeds_pair_the_methods(digits, monkeypatch):
    """Equal seeds: the same start and the same batches; other seeds: neither."""
    seen: list[tuple[float, list[int]]] = []
    make, step = runner.Run.__init__, runner.Run.step

    def recorded_make(run, *args, **kwargs):
        make(run, *args, **kwargs)
        seen.append((float(next(run.model.parameters()).detach().sum()), []))

    def recorded_step(run, images, labels):
        seen[-1][1].extend(labels.tolist())
        return step(run, images, labels)

    monkeypatch.setattr(runner.Run, "__init__", recorded_make)
    monkeypatch.setattr(runner.Run, "step", recorded_step)
    cases = study.perturbation_cases(PLAN, (0.5,))
    outcomes = list(study.run_cases(cases, PLAN, digits, "auto", 2))
    assert [(o.case, o.seed) for o in outcomes] == [(c, s) for c in cases for s in (0, 1)]
    assert len(seen) == 12
    assert all(run == seen[0] for run in seen[::2])
    assert all(run == seen[1] for run in seen[1::2])
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]
    assert len(seen[0][1]) == 128


# -- summaries -----------------------------------------------------------------------------------


def test_summary_is_mean_and_sample_deviation():
    a, b, c = [97.0, 98.5, 96.25], [90.0, 91.0, 95.0], [50.0]
    outcomes = made_up("A", 50.0, a) + made_up("A", 90.0, b) + made_up("B", None, c)
    summaries = study.summarise(outcomes)
    assert [(s.case.method, s.case.sparsity, s.seeds) for s in summaries] == [
        ("A", 50.0, 3), ("A", 90.0, 3), ("B", None, 1),
    ]  # fmt: skip
    for summary, values in zip(summaries, (a, b, c), strict=True):
        assert summary.mean == pytest.approx(np.mean(values))
    assert summaries[0].deviation == pytest.approx(np.std(a, ddof=1))
    assert summaries[1].deviation == pytest.approx(np.std(b, ddof=1))
    assert summaries[2].deviation is None
    assert summaries[0].perturbed == pytest.approx(26.0)


def test_picture_shows_the_summaries(tmp_path, monkeypatch):
    from matplotlib import figure, pyplot

    values = {"SGD": 97.0, "SAM": 98.0, "SSAM-F": 99.0}
    outcomes = made_up("SGD", None, [96.0, 98.0]) + made_up("SAM", None, [98.0, 98.0])
    outcomes += made_up("SSAM-F", 90.0, [98.0, 100.0]) + made_up("SSAM-F", 50.0, [97.0, 97.5])
    shown = []
    save = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda f, *args, **kw: (shown.append(f), save(f, *args, **kw))
    )
    study_report.plot_study(study.summarise(outcomes), PLAN, 364, tmp_path / "s.png")
    (axis,) = shown[0].get_axes()
    lines = {line.get_label(): line for line in axis.get_lines()}
    for dense in ("SGD", "SAM"):
        assert set(lines[dense].get_ydata()) == {values[dense]}
    (container,) = axis.containers
    line, _, bars = container.lines
    assert list(line.get_ydata()) == [99.0, 97.25]
    assert line.get_xdata()[0] > line.get_xdata()[1]  # 90 % lies right of 50 %
    heights = [segment[1][1] - segment[0][1] for segment in bars[0].get_segments()]
    assert heights == pytest.approx([2 * np.std([98, 100], ddof=1), 2 * np.std([97, 97.5], ddof=1)])
    assert [t.get_text() for t in axis.get_xticklabels()] == ["50", "90"]
    assert "one of 364 test images is 0.27 %" in axis.get_title()
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert not pyplot.get_fignums()


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[tuple[Path, str]]:
    """Two equal runs of the command: their folders and what they printed."""
    import contextlib
    import io

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_command, "load_digits", lambda: few_digits(64))
        for name in ("a", "b"):
            out = tmp_path_factory.mktemp(name)
            argv = ["study", "--out", str(out), "--seeds", "2", "--epochs", "1"]
            argv += ["--sparsities", "0.9", "--sparse-methods", "snip,set"]
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                assert cli.main([*argv, "--weight-sparsity", "0.8"]) == 0
            found.append((out, text.getvalue()))
    return found


def test_command_writes_what_it_prints(folders):
    out, text = folders[0]
    for name, methods_in in (("study", 2 + 3 + 1), ("sparse_methods", 2 * 3)):
        single, summary = read(out / f"{name}.csv"), read(out / f"{name}_summary.csv")
        assert len(single) == 2 * methods_in
        assert {row["steps"] for row in single} == {"2"}
        assert len(summary) == methods_in
        for row in summary:
            own = [
                float(r["test_accuracy_percent"]) for r in single
                if (r["method"], r["sparsity_percent"]) == (row["method"], row["sparsity_percent"])
            ]  # fmt: skip
            assert len(own) == int(row["seeds"]) == 2
            mean, deviation = (
                float(row[f"test_accuracy_percent_{what}"]) for what in ("mean", "deviation")
            )
            assert mean == pytest.approx(np.mean(own), abs=0.011)
            assert deviation == pytest.approx(np.std(own, ddof=1), abs=0.02)
            assert f"{mean:.2f} ± {deviation:.2f}" in text
            assert row["command"].startswith(f"sparse-optim study --out {out} --seeds 2")
            assert row["torch"] == torch.__version__
            assert str(out / f"{name}_summary.csv") in text.splitlines()[-1]
    zeros = {r["method"]: r["weight_sparsity_percent"] for r in read(out / "sparse_methods.csv")}
    assert zeros["SGD"] == zeros["SAM"] == "0.00"
    assert zeros["SGD + snip"] == zeros["SAM + snip"] == "80.00"
    assert (out / "study.png").stat().st_size > 5000
    assert "one of the 60 test images is 1.67 %" in text


def test_command_is_reproducible(folders):
    (first, _), (second, _) = folders
    for name in ("study.csv", "study_summary.csv", "sparse_methods.csv"):
        rows = [[{**r, "command": ""} for r in read(folder / name)] for folder in (first, second)]
        assert rows[0] == rows[1]


def test_tables_for_the_readme(folders, monkeypatch):
    out, _ = folders[0]
    monkeypatch.setattr(tables, "ROOT", out)
    for kind, name in (("study", "study_summary.csv"), ("methods", "sparse_methods_summary.csv")):
        text = tables.table(kind, out / name)
        rows = read(out / name)
        lines = text.splitlines()
        assert lines[0].startswith("| method | ")
        assert len([line for line in lines if line.startswith("| S")]) == len(rows)
        for row, line in zip(rows, lines[2:], strict=False):
            assert line.startswith(f"| {row['method']} | ")
            assert f"| {float(row['test_accuracy_percent_mean']):.2f} |" in line
        assert f"`{rows[0]['command']}`" in text


def test_commit_is_that_of_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(study_report, "__file__", str(tmp_path / "study_report.py"))
    assert study_report.commit() == ""


def test_examples():
    assert doctest.testmod(study_report).failed == 0


@pytest.mark.parametrize("name", ["sam_study", "sparse_methods"])
def test_stored_summary_is_that_of_the_stored_runs(name):
    results = Path(__file__).parents[2] / "docs" / "results"
    runs, summary = read(results / f"{name}_seeds.csv"), read(results / f"{name}.csv")
    values: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        key = (run["method"], run["sparsity_percent"])
        values.setdefault(key, []).append(float(run["test_accuracy_percent"]))
    assert list(values) == [(row["method"], row["sparsity_percent"]) for row in summary]
    for row, own in zip(summary, values.values(), strict=True):
        assert len(own) == int(row["seeds"]) == 3
        # the runs are stored with two digits
        assert float(row["test_accuracy_percent_mean"]) == pytest.approx(np.mean(own), abs=0.011)
        spread = float(row["test_accuracy_percent_deviation"])
        assert spread == pytest.approx(np.std(own, ddof=1), abs=0.011)
    assert len({(row["command"], row["commit"]) for row in (*runs, *summary)}) == 1
