"""The command study-zo: its tables and pictures."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_cases import few_digits
from sparse_optim import cli
from sparse_optim.demo import (
    corruptions,
    study,
    study_command,
    zo_cosine,
    zo_report,
    zo_study,
    zo_throughput,
)

from bench import tables


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[tuple[Path, str]]:
    """Two equal runs of the command: their folders and what they printed."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_command, "load_digits", lambda: few_digits(64))
        patch.setattr(zo_throughput, "BLOCKS", 2)
        patch.setattr(zo_throughput, "BLOCK", 5)
        patch.setattr(zo_cosine, "ALL_DIRECTIONS", 8)
        patch.setattr(zo_cosine, "FEWEST_DRAWS", 2)
        for name in ("a", "b"):
            out = tmp_path_factory.mktemp(name)
            argv = ["study-zo", "--out", str(out), "--seeds", "2", "--epochs", "2"]
            argv += ["--sparse-methods", "snip,rigl", "--sparsities", "0.8", "--directions", "1,3"]
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                assert cli.main([*argv, "--rhos", "0.05,0.5"]) == 0
            found.append((out, text.getvalue()))
    return found


def test_command_writes_its_tables(folders):
    out, text = folders[0]
    lines = {"zo_throughput": 10, "zo_runs": 40, "zo_summary": 20, "zo_differences": 10}
    lines |= {"zo_rho_runs": 10, "zo_rho": 5, "zo_cosine": 8}
    last = " ".join(text.splitlines()[-2:])
    for name, count in lines.items():
        rows = read(out / f"{name}.csv")
        assert len(rows) == count
        assert str(out / f"{name}.csv") in last
        for row in rows:
            assert row["command"].startswith(f"sparse-optim study-zo --out {out} --seeds 2")
            assert row["torch"] == torch.__version__
            assert row["machine"].endswith(" 1 thread")
            assert len(row["date"]) == 10
    for name in ("zo_accuracy", "zo_rho"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert str(out / f"{name}.png") in last
    assert "one of the 60 test images is 1.67 %" in text


@pytest.mark.parametrize(
    ("runs", "summary"), [("zo_runs", "zo_summary"), ("zo_rho_runs", "zo_rho")]
)
def test_summary_is_that_of_the_runs(runs, summary, folders):
    out, _ = folders[0]
    shared = ("part", "sparse_method", "sparsity_percent", "method", "rho", "steps")
    values: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for run in read(out / f"{runs}.csv"):
        values.setdefault(tuple(run[k] for k in shared), []).append(run)
    rows = read(out / f"{summary}.csv")
    assert list(values) == [tuple(row[k] for k in shared) for row in rows]
    for row, own in zip(rows, values.values(), strict=True):
        for what in ("test", "corrupted"):
            measured = [float(run[f"{what}_accuracy_percent"]) for run in own]
            mean, spread = (
                float(row[f"{what}_accuracy_percent_{k}"]) for k in ("mean", "deviation")
            )
            assert mean == pytest.approx(np.mean(measured), abs=0.011)
            assert spread == pytest.approx(np.std(measured, ddof=1), abs=0.02)
        for name in corruptions.CORRUPTIONS:
            measured = [float(run[f"{name}_accuracy_percent"]) for run in own]
            assert float(row[f"{name}_accuracy_percent_mean"]) == pytest.approx(
                np.mean(measured), abs=0.011
            )


def test_equal_time_has_the_steps_of_the_speed_table(folders):
    out, _ = folders[0]
    speed = {(r["sparse_method"], r["method"]): r for r in read(out / "zo_throughput.csv")}
    for row in read(out / "zo_summary.csv"):
        share = float(speed[row["sparse_method"], row["method"]]["percent_of_sgd"])
        timed = row["part"] == zo_study.TIME and row["method"] != "SGD"
        assert int(row["steps"]) == pytest.approx(4 * share / 100 if timed else 4, abs=1.0)


def test_command_is_reproducible(folders):
    """All but what hangs on the clock: the speed, and the steps that fit into equal time."""
    (first, _), (second, _) = folders
    for name in ("zo_runs", "zo_rho_runs", "zo_rho", "zo_cosine"):
        rows = [
            [
                {**row, "command": "", "date": "", "training_seconds": ""}
                for row in read(folder / f"{name}.csv")
                if row.get("part") != zo_study.TIME
            ]
            for folder in (first, second)
        ]
        assert rows[0] == rows[1]
        assert rows[0]


def test_tables_for_the_readme(folders, monkeypatch):
    out, _ = folders[0]
    monkeypatch.setattr(tables, "ROOT", out)
    kinds = {
        "zo_speed": "zo_throughput", "zo_differences": "zo_differences",
        "zo_accuracy": "zo_summary", "zo_cosine": "zo_cosine",
    }  # fmt: skip
    for kind, name in kinds.items():
        text = tables.table(kind, out / f"{name}.csv")
        rows = read(out / f"{name}.csv")
        assert len([line for line in text.splitlines() if line.startswith("| ")]) == len(rows) + 1
        assert f"machine {rows[0]['machine']}" in text
        assert f"`{rows[0]['command']}`" in text
    rho = tables.table("zo_accuracy", out / "zo_rho.csv").splitlines()
    assert [line.split(" | ")[4] for line in rho[2:7]] == ["-", "0.05", "0.5", "0.05", "0.5"]


def test_published_speed_is_shown_beside_the_measured(folders):
    out, text = folders[0]
    rows = {r["method"]: r["published_percent_of_sgd"] for r in read(out / "zo_throughput.csv")}
    assert rows["ZO-SAM"] == "76.7"
    assert rows["SAM"] == "47.7"
    assert rows["random sign"] == rows["interval SAM (5)"] == ""
    assert "76.7" in text


def test_parts_can_be_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_command, "load_digits", lambda: few_digits(64))
    monkeypatch.setattr(zo_cosine, "ALL_DIRECTIONS", 2)
    monkeypatch.setattr(zo_cosine, "FEWEST_DRAWS", 2)
    argv = ["study-zo", "--out", str(tmp_path), "--parts", "cosine", "--directions", "1"]
    assert cli.main(argv) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["zo_cosine.csv"]
    assert "cosine of estimate and gradient" in capsys.readouterr().out


def made_up(name: str, values: tuple[float, float], **options: float) -> list[study.Outcome]:
    """Two seeds; corrupted images 10 % worse."""
    case = zo_study.method_case(name, "mest", 0.9, **options)
    return [
        study.Outcome(case, i, 4, v, None, 90.0, corrupted={"noise": v - 10.0})
        for i, v in enumerate(values)
    ]


def test_pictures_show_the_errors(tmp_path, monkeypatch):
    from matplotlib import figure, pyplot

    shown = []
    save = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda f, *args, **kw: (shown.append(f), save(f, *args, **kw))
    )
    outcomes = made_up("SGD", (97.0, 98.0)) + made_up("ZO-SAM", (90.0, 94.0))
    summaries = study.summarise(outcomes)
    zo_report.plot_accuracy({"equal time": summaries}, tmp_path / "a.png")
    (axis,) = shown[0].get_axes()
    assert axis.get_title() == "mest, equal time"
    lines = [container.lines for container in axis.containers]
    assert [list(line.get_ydata()) for line, _, _ in lines] == [[2.5], [8.0]]
    bars = [part.get_segments()[0] for _, _, (part,) in lines]
    assert [bar[1][1] - bar[0][1] for bar in bars] == pytest.approx([2**0.5, 2 * 8**0.5])
    assert [text.get_text() for text in shown[0].legends[0].get_texts()] == ["SGD", "ZO-SAM"]

    for rho, values in ((0.05, (90.0, 94.0)), (2.0, (80.0, 70.0))):
        outcomes += made_up("random sign", values, rho=rho)
    summaries = study.summarise([o for o in outcomes if o.case.method != "ZO-SAM"])
    zo_report.plot_radius(summaries, tmp_path / "r.png")
    for axis, more in zip(shown[1].get_axes(), (0.0, 10.0), strict=True):
        (container,) = axis.containers
        line = container.lines[0]
        assert list(line.get_xdata()) == [0.05, 2.0]
        assert list(line.get_ydata()) == pytest.approx([8.0 + more, 25.0 + more])
        assert set(axis.get_lines()[0].get_ydata()) == {2.5 + more}  # SGD
    assert not pyplot.get_fignums()
