"""What runs need of data, and image data sets as whole tensors, normalised batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from . import readers
from ._support import UserError, require

IMAGE_SETS = ("digits", "cifar10", "cifar100", "mnist")
DATASETS = (*IMAGE_SETS, "stdlib")  # the last one is text.py's
_EVAL_BATCH = 512
_SPLIT_SEED = 0  # the split is part of the data set, not of the run


class Data(Protocol):
    """What a run needs of its data: ``Dataset`` holds images, ``text.TextData`` characters.

    Samples and labels are given out as they are stored; ``inputs`` makes of samples what the model
    takes.
    """

    @property
    def name(self) -> str:
        """In messages."""

    @property
    def classes(self) -> int:
        """Number of labels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""

    def to(self, device: str) -> Data:
        """The same data on another device."""

    def inputs(self, samples: Tensor) -> Tensor:
        """What the model takes."""

    def samples(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and labels of at most ``count`` training samples, drawn at random."""

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Training samples and labels of one epoch."""

    def steps(self, size: int) -> int:
        """Number of batches that ``batches`` gives."""

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of every test sample once, in order."""

    def summary(self) -> str:
        """What there is, for the first line of a run."""

    def result_text(self, loss: float, accuracy: float) -> str:
        """A result on the test samples, for the lines of a run."""


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, channels, height, width] and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, and the training images' mean and deviation per channel."""

    name: str
    train: Split
    test: Split
    classes: int
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.mean.device

    def to(self, device: str) -> Dataset:
        """The same data on another device."""
        train, test = (
            Split(s.images.to(device), s.labels.to(device)) for s in (self.train, self.test)
        )
        mean, std = self.mean.to(device), self.std.to(device)
        return Dataset(self.name, train, test, self.classes, mean, std)

    def inputs(self, images: Tensor) -> Tensor:
        """Normalised float32 images."""
        return (images.to(torch.float32) - self.mean) / self.std

    def samples(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and labels of at most ``count`` training samples, drawn without repeats."""
        chosen = torch.randperm(len(self.train), generator=generator)[:count].to(self.device)
        return self.inputs(self.train.images[chosen]), self.train.labels[chosen]

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """``epoch_batches`` of the training split."""
        return epoch_batches(self.train, size, generator)

    def steps(self, size: int) -> int:
        """Number of batches that ``batches`` gives."""
        return steps_per_epoch(len(self.train), size)

    def test_batches(self, size: int = _EVAL_BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test sample once, in order."""
        for first in range(0, len(self.test), size):
            part = slice(first, first + size)
            yield self.inputs(self.test.images[part]), self.test.labels[part]

    def summary(self) -> str:
        """What there is."""
        return f"{self.name}: {len(self.train)} training and {len(self.test)} test images"

    def result_text(self, loss: float, accuracy: float) -> str:
        """The accuracy; the loss is not told."""
        return f"test accuracy {accuracy:.2f} %"


def make_dataset(name: str, train: Split, test: Split, classes: int) -> Dataset:
    """Put two splits together; mean and deviation come from the training images.

    Raises:
        UserError: a label is not in [0, classes) or a split is empty.
    """
    for what, split in (("training", train), ("test", test)):
        if len(split) == 0:
            raise UserError(f"{name}: the {what} data hold no sample")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"{name}: {what} labels run from {low} to {high}, not 0 to {classes - 1}"
            )
    # one channel at a time: a float copy of all of CIFAR would be 1.2 GB
    channels = [train.images[:, c].to(torch.float32) for c in range(train.images.shape[1])]
    mean = torch.stack([c.mean() for c in channels]).reshape(-1, 1, 1)
    std = torch.stack([c.std(unbiased=False) for c in channels]).reshape(-1, 1, 1).clamp_min(1e-6)
    return Dataset(name, train, test, classes, mean, std)


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8; every fifth of each class is a test image.

    Raises:
        UserError: scikit-learn is not installed.
    """
    (datasets,) = require("sklearn.datasets")
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)  # grey levels 0 ... 16
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        test[order[labels[order] == digit][::5]] = True
    train_split, test_split = (Split(images[part], labels[part]) for part in (~test, test))
    return make_dataset("digits", train_split, test_split, 10)


def load(name: str, folder: str | None) -> Dataset:
    """Load a data set of images by name.

    Args:
        name: one of ``IMAGE_SETS``.
        folder: where the files are; not for digits, which scikit-learn brings along.

    Raises:
        UserError: a folder or file is missing or is not what it should be.
    """
    if name == "digits":
        return load_digits()
    if folder is None:
        raise UserError(f"--data {name} needs --data-dir, the folder with its files")
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"--data-dir: there is no folder {folder}")
    read = {
        "cifar10": readers.read_cifar10,
        "cifar100": readers.read_cifar100,
        "mnist": readers.read_mnist,
    }[name]
    train, test = (Split(*pair) for pair in read(path))
    return make_dataset(name, train, test, 100 if name == "cifar100" else 10)


def epoch_batches(
    split: Split, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled full batches of one epoch; a remainder is left out (all, if there is no full one).

    The order is drawn on the CPU, so it is the same whatever the device.
    """
    order = torch.randperm(len(split), generator=generator).to(split.labels.device)
    size = min(size, len(split))
    for first in range(0, len(order) - size + 1, size):
        part = order[first : first + size]
        yield split.images[part], split.labels[part]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Batches that ``epoch_batches`` gives.

    Example:
        >>> steps_per_epoch(1000, 64), steps_per_epoch(10, 64)
        (15, 1)
    """
    return max(1, samples // batch_size)
