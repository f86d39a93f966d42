"""Regularisers, groups and control of the sparsity in the demo's runs and in ``train``."""

from __future__ import annotations

import pytest
import torch
from demo_cases import few_digits, new_run, train
from sparse_optim import FeedbackLambda, ProxSGD, QuantileLambda, cli
from sparse_optim.demo import data, methods, regularized

WEIGHTS = 25_866 - 122  # convolution and linear weights of the CNN, without its biases


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits()


def weights(run):
    return [layer.weight.detach() for layer in run.flops.layers]


# -- start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["linbreg", "adabreg"])
def test_runs_start_as_sparse_as_they_end(optimizer, digits):
    """Where no density is given; each layer has at least one weight per output."""
    floors = {"0.weight": 16, "2.weight": 32, "5.weight": 64, "9.weight": 10}
    for options, density in (
        ({}, regularized.DENSITY),
        ({"target_sparsity": 0.75}, 0.25),
        ({"target_sparsity": 0.75, "density": 0.5}, 0.5),
    ):
        run = new_run(digits, optimizer, **options)
        for name, (live, total) in run.nonzeros().items():
            assert live == max(floors[name], int(density * total + 0.5))


def test_starts_suit_the_regulariser(digits):
    wide, narrow = (new_run(digits, "linbreg", init_gain=gain) for gain in (1.0, 0.5))
    for a, b in zip(weights(wide), weights(narrow), strict=True):
        torch.testing.assert_close(b, 0.5 * a)
    run = new_run(digits, "linbreg", reg="l1_pos")
    assert all(w.min() == 0.0 and w.max() > 0.0 for w in weights(run))
    run = new_run(digits, "linbreg", reg="l1_l2", density=0.25)
    for w in weights(run):
        per_group = (w.flatten(2) if w.dim() == 4 else w).count_nonzero(-1)
        assert set(per_group.unique().tolist()) <= {0, w[0, 0].numel() if w.dim() == 4 else 256}
    run = new_run(digits, "linbreg", reg="l1_l2", groups="blocks", block=(2, 3), density=0.25)
    tiles = weights(run)[1].flatten(1).unflatten(0, (16, 2)).unflatten(2, (48, 3))
    assert set(tiles.count_nonzero((1, 3)).unique().tolist()) == {0, 6}


# -- control -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["linbreg", "adabreg"])
@pytest.mark.parametrize("coarse", [0, 1])
def test_quantile_sets_the_sparsity_exactly(optimizer, coarse, digits):
    """In every tenth step, the first among them, and in every full one of a cycle."""
    run = new_run(digits, optimizer, steps=12, target_sparsity=0.9, coarse_steps=coarse)
    assert isinstance(run.control, QuantileLambda)
    generator, live = torch.Generator().manual_seed(0), []
    for _ in range(3):
        for samples, labels in data.epoch_batches(digits.train, 40, generator):
            run.step(samples, labels)
            live.append(sum(n for n, _ in run.nonzeros().values()))
    wanted = int((1.0 - 0.9) * WEIGHTS + 0.5)
    first, *others = live[1::2] if coarse else live[::10]
    assert others == [wanted] * (5 if coarse else 1)
    # AdaBreg's first steps are all of one length: at its first lam many duals tie, and die
    assert first == wanted if optimizer == "linbreg" else 0 < first < wanted
    assert coarse or live[5] != wanted


@pytest.mark.parametrize(
    ("optimizer", "options", "every"),
    [("linbreg", {}, 10), ("adabreg", {"coarse_steps": 1}, 1), ("proxsgd", {}, 10)],
)
def test_feedback_moves_lam_when_it_is_due(optimizer, options, every, digits):
    run = new_run(
        digits, optimizer, steps=24, target_sparsity=0.99, control="feedback", lam=0.5, **options
    )
    assert isinstance(run.control, FeedbackLambda)
    assert run.control.every == every
    lams = [run.control.lam]
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for samples, labels in data.epoch_batches(digits.train, 40, generator):
            run.step(samples, labels)
            lams.append(run.control.lam)
    period = every * (options.get("coarse_steps", 0) + 1)
    changed = [i for i in range(1, 25) if lams[i] != lams[i - 1]]
    assert changed == [i for i in range(1, 25) if i % period == 0]
    assert lams[changed[0]] == run.optimizer.param_groups[0]["lam"] or len(changed) > 1


def test_without_a_target_lam_stays(digits):
    run = new_run(digits, "linbreg", lam=0.25)
    assert run.control is None
    train(run, 2)
    assert run.optimizer.param_groups[0]["lam"] == 0.25


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_scaled_starts_keep_the_variance(method, digits):
    options = {"sparse_method": method, "weight_sparsity": 0.9}
    masked = new_run(digits, "sgd", **options)
    scaled = new_run(digits, "sgd", sparse_start="scaled", **options)
    for (live, total), a, b in zip(
        masked.nonzeros().values(), weights(masked), weights(scaled), strict=True
    ):
        torch.testing.assert_close(b, a * (total / live) ** 0.5)


# -- train ---------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr("sparse_optim.demo.data.load_digits", few_digits)


@pytest.mark.parametrize(
    "line",
    [
        "linbreg --reg l1_pos",
        "linbreg --reg l1_l2 --coarse-steps 1",
        "linbreg --reg l1_l2 --groups filters",
        "linbreg --reg l1_l2 --groups blocks --block 4,4",
        "linbreg --reg sparse_group --l1-ratio 0.2",
        "adabreg --reg nuclear",
        "adabreg --target-sparsity 0.6",
        "adabreg --target-sparsity 0.6 --control feedback",
        "proxsgd --reg l1_l2",
        "proxsgd --target-sparsity 0.6",
        "adabreg --target-sparsity 0.6 --control feedback --feedback-gain 50",
        "adabreg --init-gain 0.5",
        "adamw --sparse-method gmp",
        "sgd --sparse-method gmp --weight-distribution erk",
    ],
)
def test_every_choice_acts(line, small, capsys):
    optimizer, *options = line.split()
    argv = ["train", "--optimizer", optimizer, "--epochs", "3", "--batch-size", "10"]
    losses = []
    for extra in ([], options):
        assert cli.main([*argv, *extra]) == 0
        losses.append(capsys.readouterr().out.splitlines()[3].split("FLOPs")[0])
    assert losses[0].startswith("epoch   3/3  loss ")
    assert losses[0] != losses[1]


def test_layers_are_logged_after_every_epoch(small, capsys):
    argv = ["train", "--optimizer", "linbreg", "--target-sparsity", "0.9", "--epochs", "2"]
    assert cli.main([*argv, "--log-layers"]) == 0
    logged = [line for line in capsys.readouterr().out.splitlines() if "nonzero weights:" in line]
    assert len(logged) == 2
    for line in logged:
        parts = [part.split() for part in line.split(": ")[1].split(", ")]
        assert [(name, total) for name, _, _, total in parts] == [
            ("0.weight", "144"), ("2.weight", "4608"), ("5.weight", "18432"), ("9.weight", "2560"),
        ]  # fmt: skip
        # the last change of lam was in the first or the twenty-first step of 22 an epoch
        assert sum(int(live) for _, live, _, _ in parts) == pytest.approx(0.1 * WEIGHTS, abs=200)
    assert cli.main(argv) == 0
    assert "nonzero weights" not in capsys.readouterr().out


def test_saved_runs_hold_their_controller(small, tmp_path, capsys):
    path = tmp_path / "run.pt"
    argv = ["train", "--optimizer", "linbreg", "--target-sparsity", "0.75", "--epochs", "1"]
    assert cli.main([*argv, "--control", "feedback", "--save", str(path)]) == 0
    saved = torch.load(path, weights_only=True)
    assert saved["control"]["target"] == 0.75
    assert saved["options"]["reg"] == "l1"
    recipe = methods.Recipe("x", "linbreg", {"target_sparsity": 0.75, "control": "feedback"})
    run = new_run(few_digits(), "linbreg", **recipe.options)
    run.control.load_state_dict(saved["control"])
    assert run.control.full_steps == saved["control"]["full_steps"] == 2


def test_proxsgd_starts_dense(digits):
    run = new_run(digits, "proxsgd", lam=0.5)
    assert isinstance(run.optimizer, ProxSGD)
    assert run.sparsity() < 0.1
    train(run, 2)
    assert run.sparsity() > 50.0
