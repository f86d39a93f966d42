"""sparse-optim export: what train --save wrote, as layers for inference."""

from __future__ import annotations

import pytest
import torch
from demo_cases import few_digits
from sparse_optim import cli
from sparse_optim.demo import commands
from test_cli import failure


@pytest.fixture
def saved(tmp_path, monkeypatch, capsys):
    """Train a little and save; gives a function from options to the file."""
    monkeypatch.setattr(commands, "load", lambda name, folder: few_digits())

    def make(*options):
        target = tmp_path / "run.pt"
        argv = ["train", "--epochs", "1", "--save", str(target), *options]
        assert cli.main(argv) == 0
        capsys.readouterr()
        return target

    return make


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (("--model", "cnn"), ["0", "2", "5", "9"]),
        (("--model", "mlp", "--optimizer", "linbreg"), ["1", "3"]),
        (("--model", "resnet", "--depth", "1", "--width", "4"), ["0", "5.shortcut.0", "8"]),
    ],
)
@pytest.mark.parametrize("layout", ["csr", "2:4", "auto", "compact"])
def test_export(options, layers, layout, saved, capsys):
    target = saved(*options)
    argv = ["export", "--load", str(target), "--layout", layout, "--batch-size", "8"]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    firsts = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert firsts[0] == "run.pt:"
    for name in (*layers, "whole"):
        assert name in firsts
    last = out.splitlines()[-1]
    assert last.startswith("size ")
    assert last.split()[-1] in ("faster", "slower")
    if layout == "csr" and "linbreg" in options:
        assert float(last.split()[1]) < 50.0
        assert " csr " in out
    if layout == "2:4":
        assert last.startswith("size 100.0 % of dense, ")


def test_export_of_a_model_of_text(tmp_path, capsys):
    target = tmp_path / "text.pt"
    argv = ["train", "--data", "stdlib", "--package", "encodings", "--window", "16", "--epochs"]
    argv += ["1", "--epoch-steps", "2", "--width", "64", "--depth", "1", "--optimizer", "adabreg"]
    assert cli.main([*argv, "--batch-size", "4", "--save", str(target)]) == 0
    assert cli.main(["export", "--load", str(target), "--layout", "csr"]) == 0
    out = capsys.readouterr().out
    assert " csr " in out
    assert "layers.0.mlp.1" in out


def test_mistakes(saved, tmp_path, capsys):
    assert "--load" in failure(["export"], capsys)
    assert "cannot read" in failure(["export", "--load", "/no/such.pt"], capsys)
    target = saved("--model", "cnn", "--optimizer", "linbreg")
    line = ["export", "--load", str(target)]
    assert "invalid choice: 'coo'" in failure([*line, "--layout", "coo"], capsys)
    message = failure([*line, "--layout", "csr", "--tolerance", "0"], capsys)
    assert "export_model: the outputs differ by" in message
    if not torch.cuda.is_available():
        assert "no CUDA device" in failure([*line, "--device", "cuda"], capsys)
    state = torch.load(target, weights_only=True)
    del state["options"]["shape"]
    torch.save(state, target)
    assert "does not say of what sizes its model is" in failure(line, capsys)
    torch.save({"options": {}, "model": {}}, target)
    assert "was not written by --save" in failure(line, capsys)
