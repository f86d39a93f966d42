"""The sparse-optim command: one line and exit code 2 for mistakes, real runs for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sparse_optim import cli
from sparse_optim.demo import methods, models, sparse, variants

ROOT = Path(__file__).parents[2]


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
        (
            "train --sparse-method set --weight-distribution global",
            "global needs --sparse-method gmp",
        ),
        (
            "train --sparse-method gmp --sparse-start scaled",
            "--sparse-start needs --sparse-method set",
        ),
        ("train --optimizer linbreg --reg l2", "invalid choice: 'l2'"),
        ("train --optimizer linbreg --groups rows", "--groups needs --reg l1_l2 or sparse_group"),
        (
            "train --optimizer linbreg --reg l1_l2 --groups rows",
            "--optimizer linbreg: groups='rows'",
        ),
        ("train --optimizer adabreg --reg l1_l2 --block 2,2", "--block needs --groups blocks"),
        ("train --optimizer adabreg --block 2", "'2' is not ROWS,COLUMNS"),
        ("train --optimizer linbreg --l1-ratio 0.5", "--l1-ratio needs --reg sparse_group"),
        ("train --optimizer linbreg --control feedback", "--control needs --target-sparsity"),
        (
            "train --optimizer linbreg --target-sparsity 0.5 --feedback-gain 2",
            "--feedback-gain needs --target-sparsity and --control feedback",
        ),
        ("train --optimizer linbreg --target-sparsity 1", "--target-sparsity: 1 must be below 1"),
        (
            "train --optimizer proxsgd --target-sparsity 0.5 --control quantile",
            "QuantileLambda ranks duals, which ProxSGD does not have",
        ),
        (
            "train --optimizer linbreg --reg sparse_group --target-sparsity 0.5",
            "QuantileLambda has no ranking for reg 'sparse_group'",
        ),
        ("study-bregman --data mnist", "invalid choice: 'mnist'"),
        ("study-bregman --parts curves,rho", "'rho' is none of methods, sensitivity, curves"),
        ("study-bregman --sparsities 1", "--sparsities: 1 must be below 1"),
        ("study-bregman --seeds 0", "--seeds: 0 must be at least 1"),
        ("demo --mask dynamic --pattern 2:4", "it has no --pattern 2:4"),
        ("demo --weight-sparsity 0.5", "--weight-sparsity needs --sparse-method"),
        ("study --seeds 0", "--seeds: 0 must be at least 1"),
        ("study --model resnet", "invalid choice: 'resnet'"),
        ("study --sparsities 0.5,high", "'high' is not a number"),
        ("study --sparse-methods snip,none", "'none' is none of snip, grasp, lth"),
        ("study --weight-sparsity 0.5", "--weight-sparsity needs --sparse-methods"),
        ("study --weight-distribution er", "--weight-distribution needs --sparse-methods"),
        ("study-zo --seeds 0", "--seeds: 0 must be at least 1"),
        ("study-zo --parts rho,speed", "'speed' is none of accuracy, rho, cosine"),
        ("study-zo --sparse-methods none", "'none' is none of snip, grasp, lth"),
        ("study-zo --sparsities 0.9,1", "--sparsities: 1 must be below 1"),
        ("study-zo --rhos 0.05,0", "--rhos: 0 must be finite and above 0"),
        ("study-zo --directions 0", "--directions: 0 must be at least 1"),
        ("study-zo --backend cuda", "backend 'cuda' is not available"),
        ("train --optimizer zosam --sign left", "invalid choice: 'left'"),
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
        "sparse_method": "snip", "weight_distribution": "er", "sign": "random",
        "restore": "replay", "reg": "l1", "groups": "rows", "block": "2,2", "control": "feedback",
        "sparse_start": "scaled",
    }  # fmt: skip
    foreign = {name for options in methods.OPTIONS.values() for name in options}
    foreign -= set(methods.OPTIONS[optimizer])
    assert foreign
    for name in foreign:
        option = "--" + name.replace("_", "-")
        given = (
            [option]
            if name in ("adaptive", "forward_difference")
            else [option, values.get(name, "0.5")]
        )
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
