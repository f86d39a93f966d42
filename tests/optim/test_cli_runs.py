"""Real runs of the sparse-optim command on small data."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_cases import few_digits
from sparse_optim import BitMask, cli
from sparse_optim.demo import commands, methods, models, report, sparse


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
    assert flops_of(lines[2]) == flops_of(lines[-1])
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
    cheaper = {"--interval", "dynamic", "random", "magnitude"} & {*options}  # or without samples
    theory = [flops_of(text[-1])[0] for text in texts]
    assert (theory[1] < theory[0]) == bool(cheaper)


def flops_of(line):
    """Per cent of dense SGD, in theory and issued, in a line of ``train``."""
    theory, _, issued = (
        line.split("FLOPs ")[1].removeprefix("so far ").partition(" % of dense SGD in theory, ")
    )
    return float(theory), float(issued.split()[0])


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "ssam", "zosam"])
@pytest.mark.parametrize("method", sparse.METHODS[1:])
def test_train_with_sparse_methods(method, optimizer, mnist, tmp_path, capsys):
    target = tmp_path / "run.pt"
    argv = ["train", "--data", "mnist", "--data-dir", mnist, "--optimizer", optimizer]
    argv += ["--sparse-method", method, "--weight-sparsity", "0.8", "--epochs", "2"]
    assert cli.main([*argv, "--batch-size", "32", "--save", str(target)]) == 0
    *_, epoch, last = capsys.readouterr().out.splitlines()
    theory, issued = flops_of(last)
    assert theory < issued
    assert flops_of(epoch) == (theory, issued)
    saved = torch.load(target, weights_only=True)
    assert saved["options"]["sparse_method"] == method
    state = saved["sparse"]
    assert state["names"] == ["0.weight", "2.weight", "5.weight", "9.weight"]
    mask = BitMask.from_state(state["mask"], [torch.device("cpu")] * 4)
    assert mask.live / mask.numel == pytest.approx(0.2, abs=1e-4)
    for name, exists in zip(state["names"], mask.to_bool(), strict=True):
        assert not saved["model"][name][~exists].any(), name
    assert state["updates"] == {"snip": 1, "grasp": 1, "mest": 4, "gmp": 4}.get(method, 3)


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
    tiny = replace(methods.PLANS[0], batch_size=80, recipes=methods.PLANS[0].recipes[4:])
    monkeypatch.setattr(commands, "PLANS", (tiny,))
    monkeypatch.setattr(commands, "load_digits", few_digits)
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
    tiny = replace(methods.PLANS[0], batch_size=80, recipes=methods.PLANS[0].recipes[:4])
    monkeypatch.setattr(commands, "PLANS", (tiny,))
    monkeypatch.setattr(commands, "load_digits", few_digits)
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
    theory, issued = ([float(r[name]) for r in records] for name in report.FLOPS_COLUMNS)
    assert theory[0] == 100.0
    assert all(share < done for share, done in zip(theory[1:], issued[1:], strict=True))
    # two passes of dense kernels, and one over SNIP's 128 samples for 320 that are trained on
    assert issued[1:3] == pytest.approx([2.4 * issued[0]] * 2, abs=0.02)
