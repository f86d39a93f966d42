"""Files of trained weights: what ``--save`` writes and ``--load`` reads."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import models
from ._support import UserError
from .runner import Run


def check_folder(path: Path | None) -> None:
    """UserError if the folder of a file to be written does not exist."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UserError(f"--save: there is no folder {path.parent}")


def save(run: Run, options: dict[str, Any], path: Path) -> None:
    """Write model, optimizer and options; ``torch.load(weights_only=True)`` reads the file.

    Raises:
        UserError: the file cannot be written.
    """
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "options": options,
    }
    if run.implicit is not None:
        state["implicit"] = run.implicit.state_dict()
    if run.sparse is not None:
        state["sparse"] = run.sparse.scheduler.state_dict()
    if run.control is not None:
        state["control"] = run.control.state_dict()
    try:
        torch.save(state, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError
        raise UserError(f"--save: cannot write {path}: {error}") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and the model's state in a file that ``save`` wrote.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        options, weights = dict(state["options"]), dict(state["model"])
        options["model"]
    except OSError as error:
        raise UserError(f"--load: cannot read {path}: {error.strerror}") from error
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"--load: {path} was not written by --save") from error
    return options, weights


def load_weights(path: Path, model: str) -> dict[str, Any]:
    """The model's state in a file that ``save`` wrote.

    Args:
        path: of the file.
        model: the name it must have been saved under.

    Raises:
        UserError: there is no such file, it holds something else, or another model.
    """
    options, weights = read(path)
    if options["model"] != model:
        raise UserError(f"--load: {path} holds a {options['model']}, not a {model}")
    return weights


def build_model(path: Path, options: dict[str, Any], weights: dict[str, Any]) -> nn.Module:
    """The model that ``read`` found.

    Raises:
        UserError: the file does not say its sizes, as older ones, or the weights do not fit them.
    """
    try:
        sizes = {name: options[name] for name in ("width", "depth") if name in options}
        shape = tuple(options["shape"])
        model = models.build(options["model"], shape, options["classes"], **sizes)
        model.load_state_dict(weights)
    except (LookupError, TypeError, RuntimeError) as error:
        raise UserError(f"--load: {path} does not say of what sizes its model is") from error
    return model
