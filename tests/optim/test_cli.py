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
from sparse_optim import BitMask, cli
from sparse_optim.demo import commands, methods, models, report, sparse, variants

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
        ("train --optimizer ssam --mask best", "invalid choice: 'best'"),
        ("train --optimizer ssam --pattern 5:4", "n must be at most m"),
        ("train --optimizer ssam --pattern column", "pattern must be one of"),
        ("train --optimizer sam --interval 0", "--interval: 0 must be at least 1"),
        ("train --optimizer ssam --axis out", "--axis goes with n:m patterns"),
        ("train --optimizer ssam --pattern 2:4 --sparsity 0.5", "--sparsity is no option of"),
        ("train --optimizer ssam --form implicit --norm dense", "whose perturbation is dense"),
        ("train --optimizer ssam --form implicit --mask dynamic", "no implicit form"),
        ("train --optimizer ssam --mask dynamic --pattern row", "it has no --pattern row"),
        ("train --sparse-method prune", "invalid choice: 'prune'"),
        ("train --weight-sparsity 0.9", "--weight-sparsity needs --sparse-method"),
        ("train --sparse-method snip --weight-sparsity 1", "--weight-sparsity: 1 must be below 1"),
        ("train --sparse-method lth --weight-distribution er", "needs --sparse-method set, dsr"),
        ("train --sparse-method lth --epochs 1 --batch-size 999", "lth needs 4 steps"),
        ("demo --mask dynamic --pattern 2:4", "it has no --pattern 2:4"),
        ("demo --weight-sparsity 0.5", "--weight-sparsity needs --sparse-method"),
        ("study --seeds 0", "--seeds: 0 must be at least 1"),
        ("study --model resnet", "invalid choice: 'resnet'"),
        ("study --sparsities 0.5,high", "'high' is not a number"),
        ("study --sparse-methods snip,none", "'none' is none of snip, grasp, lth"),
        ("study --weight-sparsity 0.5", "--weight-sparsity needs --sparse-methods"),
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
    values = {
        "distribution": "normal", "num_directions": "1", "coarse_steps": "1", "interval": "2",
        "mask": "random", "pattern": "row", "axis": "in", "form": "explicit", "norm": "dense",
        "sparse_method": "snip", "weight_distribution": "er",
    }  # fmt: skip
    foreign = {name for options in methods.OPTIONS.values() for name in options}
    foreign -= set(methods.OPTIONS[optimizer])
    assert foreign
    for name in foreign:
        option = "--" + name.replace("_", "-")
        given = [option] if name == "adaptive" else [option, values.get(name, "0.5")]
        message = failure(["train", "--optimizer", optimizer, *given], capsys)
        assert f"{option} is no option of --optimizer {optimizer}, which has --lr" in message


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "mnist"])
def test_missing_files_are_named(data, tmp_path, capsys):
    message = failure(["train", "--data", data, "--data-dir", str(tmp_path)], capsys)
    first = {"cifar10": "data_batch_1", "cifar100": "train", "mnist": "train-images-idx3-ubyte"}
    assert first[data] in message
    assert str(tmp_path) in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", ["demo", "train", "study"])
def test_missing_device(command, capsys):
    assert "no CUDA device" in failure([command, "--device", "cuda"], capsys)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("demo", "sklearn.datasets"),
        ("demo", "rich.progress"),
        ("demo", "matplotlib.pyplot"),
        ("train", "sklearn.datasets"),
        ("study", "sklearn.datasets"),
        ("study", "rich.progress"),
        ("study", "matplotlib.pyplot"),
    ],
)
def test_missing_package_names_the_extra(command, module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)  # what an import of a missing package finds
    message = failure([command], capsys)
    assert module.partition(".")[0] in message
    assert 'pip install "sparse-kernels[demo]"' in message


@pytest.mark.parametrize("command", ["demo", "study"])
def test_output_folder_that_is_a_file(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "--out: cannot make the folder" in failure(
        [command, "--out", str(tmp_path / "file")], capsys
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
    for name in variants.CHOICES:
        assert f"--{name.replace('_', '-')}" in demo
    study = help_of(["study"], capsys)
    for option in ("--out", "--seeds", "--model", "--epochs", "--sparse-methods", "--backend"):
        assert option in study
    assert "0.5,0.8,0.9,0.95,0.98" in study
    train = help_of(["train"], capsys)
    for options in methods.OPTIONS.values():
        for name in options:
            assert f"--{name.replace('_', '-')}" in train
    assert "threshold a zero weight must pass" in train
    assert "linbreg: 0.1; adabreg: 0.02" in train  # who has --lam, with which default
    assert "set and rigl, uniform for dsr and mest" in train
    assert "4 rounds of equally many steps within the epochs given" in train  # lottery tickets
    for name in (*models.MODELS, *methods.OPTIMIZERS, *methods.MASKS, *sparse.METHODS):
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


@pytest.mark.parametrize(
    "line",
    [
        "sam --adaptive --rho 0.5",
        "sam --interval 2",
        "zosam --interval 2",
        "ssam --mask dynamic",
        "ssam --mask random --sparsity 0.9",
        "ssam --mask magnitude --norm masked",
        "ssam --pattern row",
        "ssam --pattern filter --mask random",
        "ssam --pattern tensor --adaptive",
        "ssam --pattern 2:4 --axis out",
        "ssam --form implicit",
        "ssam --form implicit --pattern 2:4 --mask magnitude --interval 3",
    ],
)
def test_train_with_every_choice(line, mnist, capsys):
    """Each acts: the weights after it, and so the losses, are not those without it."""
    optimizer, *options = line.split()
    argv = ["train", "--data", "mnist", "--data-dir", mnist, "--optimizer", optimizer]
    argv += ["--epochs", "2", "--batch-size", "32", "--lr", "0.05"]
    argv += [] if "--rho" in options else ["--rho", "0.5"]
    texts = []
    for extra in ([], options):
        assert cli.main([*argv, *extra]) == 0
        texts.append(capsys.readouterr().out.splitlines())
    losses = [text[2].split("test accuracy")[0] for text in texts]
    assert losses[0].startswith("epoch   2/2  loss ")
    assert losses[0] != losses[1]
    counted = "--interval" not in options or optimizer == "zosam"
    assert ("training FLOPs not counted" in texts[1][-1]) != counted


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "ssam", "zosam"])
@pytest.mark.parametrize("method", sparse.METHODS[1:])
def test_train_with_sparse_methods(method, optimizer, mnist, tmp_path, capsys):
    target = tmp_path / "run.pt"
    argv = ["train", "--data", "mnist", "--data-dir", mnist, "--optimizer", optimizer]
    argv += ["--sparse-method", method, "--weight-sparsity", "0.8", "--epochs", "2"]
    assert cli.main([*argv, "--batch-size", "32", "--save", str(target)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "training FLOPs not counted" in last
    saved = torch.load(target, weights_only=True)
    assert saved["options"]["sparse_method"] == method
    state = saved["sparse"]
    assert state["names"] == ["0.weight", "2.weight", "5.weight", "9.weight"]
    mask = BitMask.from_state(state["mask"], [torch.device("cpu")] * 4)
    assert mask.live / mask.numel == pytest.approx(0.2, abs=1e-4)
    for name, exists in zip(state["names"], mask.to_bool(), strict=True):
        assert not saved["model"][name][~exists].any(), name
    assert state["updates"] == {"snip": 1, "grasp": 1, "mest": 4}.get(method, 3)


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
        assert not (out / "masks.png").exists()  # no run of Sparse SAM, no masks
        for file in ("results.csv", "accuracy.png", "sparsity.png", "step_time.png"):
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


def test_demo_with_choices(tmp_path, monkeypatch, capsys):
    tiny = replace(methods.PLANS[0], batch_size=512, recipes=methods.PLANS[0].recipes[:4])
    monkeypatch.setattr(commands, "PLANS", (tiny,))
    argv = ["demo", "--out", str(tmp_path), "--epochs", "2", "--mask", "magnitude"]
    argv += ["--pattern", "2:4", "--sparse-method", "snip", "--weight-sparsity", "0.5"]
    assert cli.main(argv) == 0
    assert str(tmp_path / "masks.png") in capsys.readouterr().out.splitlines()[-1]
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert [r["method"] for r in records] == [
        "SGD", "SAM + snip", "SSAM magnitude 2:4 + snip", "ZO-SAM + snip",
    ]  # fmt: skip
    assert [r["weight_sparsity_percent"] for r in records] == ["0.00", "50.00", "50.00", "50.00"]
    assert [r["training_flops_percent"] for r in records] == ["100.00", "", "", ""]
