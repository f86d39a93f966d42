"""Readers of the image files as they are distributed: CIFAR's Python batches, MNIST's idx files."""

from __future__ import annotations

import gzip
import importlib
import math
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._support import UserError, require

Pair = tuple[Tensor, Tensor]

# all that a pickled uint8 array needs; a file from elsewhere may not call anything else
_PICKLE_NAMES = {
    ("_reconstruct", "multiarray"),
    ("_frombuffer", "numeric"),
    ("ndarray", "numpy"),
    ("dtype", "numpy"),
    ("encode", "_codecs"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays inside plain containers and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        root, _, leaf = module.partition(".")
        leaf = leaf.rpartition(".")[2] or root
        if root not in ("numpy", "_codecs") or (name, leaf) not in _PICKLE_NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if module.startswith("numpy.core"):  # the name before numpy 2; either one may be missing
            try:
                return getattr(importlib.import_module(module.replace(".core", "._core", 1)), name)
            except ModuleNotFoundError:
                pass
        return getattr(importlib.import_module(module), name)


def _cifar_batch(path: Path, label_key: bytes) -> Pair:
    require("numpy")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        data, labels = batch[b"data"], batch[label_key]
        images = torch.from_numpy(data.copy())
        targets = torch.tensor(list(labels), dtype=torch.int64)
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a CIFAR batch: {error}") from error
    except (ValueError, ImportError) as error:
        raise UserError(f"{path} is not a CIFAR batch: {error}") from error
    if images.dtype != torch.uint8 or images.dim() != 2 or images.shape[1] != 3072:
        raise UserError(
            f"{path}: data are {images.dtype} {tuple(images.shape)}, not uint8 [N, 3072]"
        )
    if len(images) != len(targets):
        raise UserError(f"{path}: {len(images)} images but {len(targets)} labels")
    return images.reshape(-1, 3, 32, 32), targets


def _inside(folder: Path, usual: str, first: str) -> Path:
    """The folder itself, or the one the archive unpacks to inside it."""
    return folder / usual if not (folder / first).exists() and (folder / usual).is_dir() else folder


def _joined(pairs: Iterable[Pair]) -> Pair:
    images, labels = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(labels)


def read_cifar10(folder: Path) -> tuple[Pair, Pair]:
    """Read data_batch_1 ... data_batch_5 and test_batch ("CIFAR-10 python version").

    Args:
        folder: cifar-10-batches-py, or the folder that holds it.

    Returns:
        (images uint8 [N, 3, 32, 32], labels int64 [N]) for training and test.

    Raises:
        UserError: a file is missing or is not such a batch.
    """
    folder = _inside(folder, "cifar-10-batches-py", "data_batch_1")
    train = [_cifar_batch(folder / f"data_batch_{i}", b"labels") for i in range(1, 6)]
    return _joined(train), _cifar_batch(folder / "test_batch", b"labels")


def read_cifar100(folder: Path) -> tuple[Pair, Pair]:
    """Read train and test ("CIFAR-100 python version"), with the 100 fine labels.

    Args:
        folder: cifar-100-python, or the folder that holds it.

    Returns:
        As ``read_cifar10``.

    Raises:
        UserError: a file is missing or is not such a batch.
    """
    folder = _inside(folder, "cifar-100-python", "train")
    train, test = (_cifar_batch(folder / name, b"fine_labels") for name in ("train", "test"))
    return train, test


def _idx(folder: Path, stem: str, kind: str, dims: int) -> Tensor:
    """One idx file: bytes 0, 0, 8 (uint8), dims, then big-endian int32 sizes, then the data."""
    names = [f"{stem}-{kind}{end}" for end in ("", ".gz")]
    names += [f"{stem}.{kind}{end}" for end in ("", ".gz")]  # as some archives name them
    path = next((folder / n for n in names if (folder / n).is_file()), None)
    if path is None:
        raise UserError(f"there is no {names[0]} (or .gz) in {folder}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * dims
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dims)):
        raise UserError(f"{path} is not an idx file of {dims}-dimensional unsigned bytes")
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    if len(raw) - header != math.prod(sizes):
        raise UserError(f"{path}: {len(raw) - header} bytes of data, its header says {sizes}")
    if not math.prod(sizes):
        return torch.zeros(sizes, dtype=torch.uint8)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).reshape(sizes)


def read_mnist(folder: Path) -> tuple[Pair, Pair]:
    """Read the four idx files of MNIST (or of a data set in its format), plain or gzipped.

    Args:
        folder: holds train-images-idx3-ubyte, train-labels-idx1-ubyte and the t10k- pair.

    Returns:
        (images uint8 [N, 1, height, width], labels int64 [N]) for training and test.

    Raises:
        UserError: a file is missing or is not what its name says.
    """
    pairs = []
    for part in ("train", "t10k"):
        images = _idx(folder, f"{part}-images", "idx3-ubyte", 3)
        labels = _idx(folder, f"{part}-labels", "idx1-ubyte", 1)
        if len(images) != len(labels):
            raise UserError(f"{folder}: {len(images)} {part} images but {len(labels)} labels")
        pairs.append((images.unsqueeze(1), labels.to(torch.int64)))
    return pairs[0], pairs[1]
