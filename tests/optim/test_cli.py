"""The sparse-optim command: one line and exit code 2 for mistakes, real runs for the rest."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sparse_optim import cli
from sparse_optim.demo import commands, methods, models, report

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    """One for the small models; the demo sets torch's count for its process, so give it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def failure(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; its only line on stderr."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("sparse-optim: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> str:
    """A folder of MNIST files with 12x12 images whose one bright pixel tells the label."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 96), ("t10k", 30)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = random.integers(0, 60, (count, 12, 12), dtype=np.uint8)
        images[np.arange(count), labels] = 250
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return str(folder)


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("demo --nonsense", "--nonsense"),
        ("demo --epoch 3", "--epoch"),  # no guessing of abbreviations
        ("demo --epochs 0", "--epochs: 0 must be at least 1"),
        ("demo --epochs many", "'many' is not an integer"),
        ("demo --backend fast", "invalid choice: 'fast'"),
        ("demo --seed -1", "--seed"),
        ("train --data imagenet", "invalid choice: 'imagenet'"),
        ("train --model vgg", "invalid choice: 'vgg'"),
        ("train --optimizer adam", "invalid choice: 'adam'"),
        ("train --lr 0", "--lr: 0 must be finite and above 0"),
        ("train --lr nan", "--lr: nan must be finite"),
        ("train --lr fast", "'fast' is not a number"),
        ("train --momentum 1", "--momentum: 1 must be below 1"),
        ("train --optimizer ssam --sparsity 1.5", "at least 0 and at most 1"),
        ("train --optimizer linbreg --density 0", "above 0 and at most 1"),
        ("train --optimizer linbreg --coarse-steps -1", "at least 0"),
        ("train --optimizer mezo --distribution cauchy", "invalid choice: 'cauchy'"),
        ("train --batch-size 0", "--batch-size"),
        ("train --data mnist", "--data mnist needs --data-dir"),
        ("train --data mnist --data-dir /no/such", "there is no folder /no/such"),
        ("train --data-dir /tmp", "--data-dir is no option of --data digits"),
        ("train --save /no/such/folder/x.pt", "there is no folder /no/such/folder"),
        ("train --backend cuda", "backend 'cuda' is not available"),
    ],
)
def test_mistake_gets_one_line(line, says, capsys):
    assert says in failure(line.split(), capsys)


@pytest.mark.parametrize("optimizer", methods.OPTIMIZERS)
def test_options_of_other_optimizers_are_refused(optimizer, capsys):
    values = {"distribution": "normal", "num_directions": "1", "coarse_steps": "1"}
    foreign = {name for options in methods.OPTIONS.values() for name in options}
    foreign -= set(methods.OPTIONS[optimizer])
    assert foreign
    for name in foreign:
        option = "--" + name.replace("_", "-")
        argv = ["train", "--optimizer", optimizer, option, values.get(name, "0.5")]
        message = failure(argv, capsys)
        assert f"{option} is no option of --optimizer {optimizer}, which has --lr" in message


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "mnist"])
def test_missing_files_are_named(data, tmp_path, capsys):
    message = failure(["train", "--data", data, "--data-dir", str(tmp_path)], capsys)
    first = {"cifar10": "data_batch_1", "cifar100": "train", "mnist": "train-images-idx3-ubyte"}
    assert first[data] in message
    assert str(tmp_path) in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", ["demo", "train"])
def test_missing_device(command, capsys):
    assert "no CUDA device" in failure([command, "--device", "cuda"], capsys)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("demo", "sklearn.datasets"),
        ("demo", "rich.progress"),
        ("demo", "matplotlib.pyplot"),
        ("train", "sklearn.datasets"),
    ],
)
def test_missing_package_names_the_extra(command, module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)  # what an import of a missing package finds
    message = failure([command], capsys)
    assert module.partition(".")[0] in message
    assert 'pip install "sparse-kernels[demo]"' in message


def test_output_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "--out: cannot make the folder" in failure(
        ["demo", "--out", str(tmp_path / "file")], capsys
    )


def test_module_entry_point_has_no_traceback():
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_api")])
    done = subprocess.run(
        [sys.executable, "-m", "sparse_optim", "train", "--optimizer", "sam", "--lam", "1"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "--lam is no option of --optimizer sam" in done.stderr


# -- help ----------------------------------------------------------------------------------------


def help_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*argv, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_explains_every_option(capsys):
    assert "demo" in help_of([], capsys)
    demo = help_of(["demo"], capsys)
    for option in ("--out", "--seed", "--epochs", "--device", "--backend"):
        assert option in demo
    train = help_of(["train"], capsys)
    for options in methods.OPTIONS.values():
        for name in options:
            assert f"--{name.replace('_', '-')}" in train
    assert "threshold a zero weight must pass" in train
    assert "linbreg: 0.1; adabreg: 0.02" in train  # who has --lam, with which default
    for name in (*models.MODELS, *methods.OPTIMIZERS):
        assert name in train


# -- runs ----------------------------------------------------------------------------------------


def lines_without_times(text: str) -> list[str]:
    """Epoch lines end in seconds, the last line in ms/step."""
    return [line.rsplit("  ", 1)[0].split(", optimizer ")[0] for line in text.splitlines()]


@pytest.mark.parametrize("optimizer", methods.OPTIMIZERS)
def test_train(optimizer, mnist, capsys):
    argv = ["train", "--data", "mnist", "--data-dir", mnist, "--optimizer", optimizer]
    argv += ["--epochs", "2", "--batch-size", "32", "--seed", "5"]
    assert cli.main(argv) == 0
    first = capsys.readouterr()
    assert first.err == ""
    lines = first.out.splitlines()
    assert "mnist: 96 training and 30 test images; cnn with 25,866 weights" in lines[0]
    assert [line.split()[1] for line in lines[1:3]] == ["1/2", "2/2"]
    assert lines[-1].startswith(f"{optimizer}: test accuracy ")
    assert "training FLOPs" in lines[-1]
    assert cli.main(argv) == 0
    assert lines_without_times(capsys.readouterr().out) == lines_without_times(first.out)


def test_train_learns_and_options_act(mnist, capsys):
    argv = ["train", "--data", "mnist", "--data-dir", mnist, "--optimizer", "linbreg"]
    argv += ["--epochs", "12", "--batch-size", "16", "--model", "mlp", "--lr", "0.02"]
    shares = []
    for lam in ("0.01", "0.04"):
        assert cli.main([*argv, "--lam", lam]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert float(last.split("test accuracy ")[1].split()[0]) > 80.0
        shares.append(float(last.split("zero weights ")[1].split()[0]))
    assert shares[1] > shares[0] + 1.0


def test_train_saves_what_loads(mnist, tmp_path, capsys):
    target = tmp_path / "run.pt"
    argv = ["train", "--data", "mnist", "--data-dir", mnist, "--optimizer", "adabreg"]
    argv += ["--epochs", "1", "--coarse-steps", "1", "--save", str(target)]
    assert cli.main(argv) == 0
    assert f"saved to {target}" in capsys.readouterr().out
    saved = torch.load(target, weights_only=True)
    assert saved["options"]["optimizer"] == "adabreg"
    assert saved["options"]["coarse_steps"] == 1
    model = models.build("cnn", (1, 12, 12), 10)
    model.load_state_dict(saved["model"])
    recipe = methods.Recipe("adabreg", "adabreg", {"coarse_steps": 1})
    optimizer = methods.build_optimizer(model, recipe, "auto", 0)
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.steps_taken == 1


def test_demo_is_reproducible_and_names_its_files(tmp_path, monkeypatch, capsys):
    tiny = replace(methods.PLANS[0], batch_size=512, recipes=methods.PLANS[0].recipes[4:])
    monkeypatch.setattr(commands, "PLANS", (tiny,))
    tables = []
    for name in ("a", "b"):
        out = tmp_path / "new" / name
        assert cli.main(["demo", "--out", str(out), "--epochs", "2", "--seed", "3"]) == 0
        text = capsys.readouterr().out
        files = ("results.csv", "accuracy.png", "sparsity.png", "step_time.png")
        for file in files:
            assert (out / file).stat().st_size > 100
            assert str(out / file) in text.splitlines()[-1]
        with (out / "results.csv").open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
        tables.append(
            [{k: v for k, v in r.items() if k not in report.TIME_COLUMNS} for r in records]
        )
    assert tables[0] == tables[1]
    assert [r["method"] for r in tables[0]] == ["LinBreg", "AdaBreg", "LinBreg m=4"]
    assert {r["steps"] for r in tables[0]} == {"4"}
