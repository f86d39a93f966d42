"""Small runs of the demo's methods."""

from __future__ import annotations

import functools

from sparse_optim.demo import data, methods, runner, variants

_whole = functools.cache(data.load_digits)


def few_digits(train: int = 160, test: int = 60) -> data.Dataset:
    """A piece of digits, so that an epoch is a few steps."""
    whole = _whole()
    parts = [
        data.Split(split.images[:count], split.labels[:count])
        for split, count in ((whole.train, train), (whole.test, test))
    ]
    return data.make_dataset("digits", *parts, 10)


def new_run(
    digits: data.Dataset, optimizer: str = "ssam", steps: int = 8, backend: str = "auto", **options
) -> runner.Run:
    """A run of the CNN with checked options."""
    recipe = variants.check_recipe(methods.Recipe("x", optimizer, {"lr": 0.05, **options}))
    return runner.Run("cnn", digits, recipe, backend, 3, steps)


def train(run: runner.Run, epochs: int) -> None:
    """Epochs of 160 / 40 = 4 steps."""
    assert len(list(runner.train(run, epochs, 40, 3))) == epochs
