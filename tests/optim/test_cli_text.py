"""Real runs of the sparse-optim command on text: pretraining, fine-tuning and the study of MeZO."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
import torch
from sparse_optim import cli
from test_cli import failure, help_of
from text_cases import small_stdlib

SIZE = ["--width", "16", "--depth", "1", "--window", "12", "--epoch-steps", "4", "--epochs", "2"]


@pytest.fixture(autouse=True)
def stdlib(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "lib"
    folder.mkdir()
    return small_stdlib(folder, monkeypatch)


@pytest.fixture
def pretrained(tmp_path, capsys) -> tuple[str, str]:
    """A saved model and the last result that its training printed."""
    path = str(tmp_path / "pretrained.pt")
    argv = ["train", "--data", "stdlib", *SIZE, "--optimizer", "adamw", "--lr", "1e-2"]
    assert cli.main([*argv, "--save", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stdlib: 1,776 training characters (8 files) and 444 held-out ")
    assert lines[0].endswith("adamw on torch")
    return path, lines[-1].split(": ")[1].split(",")[0]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tune(path: str, *extra: str) -> list[str]:
    argv = ["train", "--data", "stdlib", "--package", "tables", *SIZE, "--optimizer", "mezo"]
    return [*argv, "--lr", "1e-3", "--load", path, *extra]


# -- train ---------------------------------------------------------------------------------------


def test_loaded_weights_are_those_saved(pretrained, capsys):
    path, result = pretrained
    argv = ["train", "--data", "stdlib", *SIZE, "--optimizer", "sgd", "--load", path]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{path}: {result}"


def test_fine_tuning_acts_and_repeats(pretrained, tmp_path, capsys):
    path, _ = pretrained
    texts = []
    for name, extra in (("a", []), ("b", []), ("c", ["--mask", "small"]),
                        ("d", ["--mask", "small", "--sparsity", "0.9"])):  # fmt: skip
        assert cli.main(tune(path, *extra, "--save", str(tmp_path / name))) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith("stdlib tables: ")
        assert out[2].rsplit("  ", 1)[1].endswith(" MB")
        texts.append([line.rsplit("  ", 1)[0] for line in out[1:4]])
    assert texts[0] == texts[1]
    assert texts[0][0] == texts[2][0]  # all start at the same weights
    assert len({tuple(t) for t in texts}) == 3
    start = torch.load(path, weights_only=True)["model"]
    for name, share in (("a", 0.0), ("c", 0.5), ("d", 0.9)):
        end = torch.load(tmp_path / name, weights_only=True)["model"]
        for key, w in start.items():
            kept = math.floor(share * w.numel() + 0.5)
            assert int((w == end[key]).sum()) == kept, key


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--data stdlib --model cnn", "--model cnn is not for --data stdlib, which are text"),
        ("--model transformer", "--model transformer is not for --data digits, which are images"),
        ("--package tables", "--package needs --data stdlib"),
        ("--window 8", "--window needs --data stdlib"),
        ("--epoch-steps 8", "--epoch-steps needs --data stdlib"),
        ("--epoch-steps 0", "--epoch-steps: 0 must be at least 1"),
        ("--width 8", "--width needs --model resnet or transformer"),
        ("--model mlp --depth 2", "--depth needs --model resnet or transformer"),
        ("--data stdlib --data-dir /tmp", "which Python brings along"),
        ("--data stdlib --package sables", "has no package 'sables'"),
        ("--data stdlib --window 900", "are too few for a window of 900"),
        ("--data stdlib --sparse-method grasp", "grasp wants samples of every class"),
        ("--optimizer mezo --sparsity 0.5", "--sparsity needs --mask"),
        ("--optimizer mezo --mask fisher", "--mask fisher scores with gradients"),
        ("--optimizer adamw --backend cpp", "adamw is plain torch: it has no backend cpp"),
        ("--optimizer mezo-eager --num-directions 2", "--num-directions is no option of"),
        ("--load /no/such/file", "--load: cannot read /no/such/file: No such file"),
        ("--optimizer linbreg --density 0.1 --load x", "--density is of new weights"),
    ],
)
def test_mistake_gets_one_line(line, says, capsys):
    assert says in failure(["train", *line.split()], capsys)


def test_a_file_of_another_model_is_refused(pretrained, tmp_path, capsys):
    path, _ = pretrained
    assert "holds a transformer, not a cnn" in failure(["train", "--load", path], capsys)
    wide = failure(tune(path, "--width", "24"), capsys)
    assert "a model of another size" in wide
    assert "size mismatch for head.1.weight" in wide or "head.1.bias" in wide
    (tmp_path / "text").write_text("no weights")
    torch.save([1, 2], tmp_path / "list")
    torch.save({"options": {"model": "transformer"}, "model": [1, 2]}, tmp_path / "half")
    for name in ("text", "list", "half"):
        assert "was not written by --save" in failure(tune(str(tmp_path / name)), capsys)


# -- the study -----------------------------------------------------------------------------------


def test_study_writes_what_it_measures(pretrained, tmp_path, capsys):
    path, _ = pretrained
    argv = ["study-mezo", "--load", path, "--package", "tables", *SIZE, "--lr", "1e-3"]
    argv += ["--batch-size", "4", "--sparsity", "0.75", "--seeds", "2"]
    tables = []
    for name in ("a", "b"):
        out = tmp_path / name
        assert cli.main([*argv, "--out", str(out)]) == 0
        text = capsys.readouterr().out
        assert (out / "mezo.png").read_bytes().startswith(b"\x89PNG")
        assert str(out / "mezo.png") in text.splitlines()[-1]
        tables.append((read(out / "mezo.csv"), read(out / "mezo_curve.csv")))
    rows, curve = tables[0]
    names = ["MeZO", "MeZO, smallest 25 %", "MeZO, replay", "MeZO as published"]
    assert [(r["method"], r["seed"]) for r in rows] == [(n, s) for s in "01" for n in names]
    assert [r["moved_percent"][:4] for r in rows[:4]] == ["100.", "25.0", "100.", "100."]
    assert [r["backend"] for r in rows[:4]] == ["cpp", "cpp", "cpp", "torch"]
    assert len({r["held_out_loss_before"] for r in rows}) == 1
    assert len({r["held_out_loss_after"] for r in rows if r["method"] != "MeZO, replay"}) == 6
    for row in rows:
        own = [c for c in curve if (c["method"], c["seed"]) == (row["method"], row["seed"])]
        assert [c["step"] for c in own] == ["0", "4", "8"]
        assert own[0]["training_loss"] == ""
        assert own[0]["held_out_loss"] == row["held_out_loss_before"]
        assert own[-1]["held_out_loss"] == row["held_out_loss_after"]
        for when in ("before", "after"):
            bits = float(row[f"bits_per_character_{when}"])
            loss = float(row[f"held_out_loss_{when}"])
            assert bits == pytest.approx(loss / math.log(2.0), abs=2e-4)
        assert row["steps"] == "8"
        assert 0.0 < float(row["ms_outside_forwards"]) < float(row["ms_per_step"])
        assert row["command"].startswith(f"sparse-optim study-mezo --load {path}")
        assert row["machine"]
        assert row["date"]
        assert row["bits_per_character_after"] in text
    weights = 4 * sum(w.numel() for w in torch.load(path, weights_only=True)["model"].values())
    added = {r["method"]: int(r["added_bytes_step"]) for r in rows[:4]}
    forward = {int(r["added_bytes_forward"]) for r in rows}
    assert len(forward) == 1
    assert weights <= added["MeZO"] <= weights + max(forward) + 20_000  # the backup and a forward
    assert added["MeZO, replay"] <= max(forward) + 20_000
    assert added["MeZO, smallest 25 %"] < added["MeZO"]
    for part in (0, 1):
        timeless = [
            [{k: v for k, v in r.items() if k != "command" and not k.startswith("ms_")} for r in t]
            for t in (tables[0][part], tables[1][part])
        ]
        assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("study-mezo", "--load"),
        ("study-mezo --load /no/such", "--load: cannot read /no/such"),
        ("study-mezo --load x --seeds 0", "--seeds: 0 must be at least 1"),
        ("study-mezo --load x --sparsity 2", "--sparsity: 2 must be finite"),
    ],
)
def test_study_mistake_gets_one_line(line, says, capsys):
    assert says in failure(line.split(), capsys)


def test_study_explains_its_options(capsys):
    text = help_of(["study-mezo"], capsys)
    for option in ("--load", "--out", "--seeds", "--package", "--sparsity", "--smoothing"):
        assert option in text
    assert "default 0.0005" in text
    assert "study-mezo" in help_of([], capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_study_names_the_missing_device(pretrained, capsys):
    argv = ["study-mezo", "--load", pretrained[0], "--device", "cuda"]
    assert "no CUDA device" in failure(argv, capsys)


@pytest.mark.parametrize("module", ["rich.progress", "matplotlib.pyplot"])
def test_study_names_the_missing_package(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    message = failure(["study-mezo", "--load", "x"], capsys)
    assert 'pip install "sparse-kernels[demo]"' in message
