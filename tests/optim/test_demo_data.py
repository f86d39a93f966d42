"""The demo's data: CIFAR and MNIST files as they are distributed, digits, batches, models."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from sparse_optim.demo import data, models, readers
from sparse_optim.demo._support import UserError

DIGITS = data.load_digits()


# -- files as they are distributed ---------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes str and bytes as Python 2 wrote its str, and numpy's names as they were then.

    CIFAR's files come from such a pickler: loading them needs ``encoding="bytes"``.
    """

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_python2_str(self, value):
        raw = value.encode("latin-1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    def save_global(self, value, name=None):
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_python2_str
    dispatch[type] = save_global
    dispatch[type(np.zeros)] = save_global


def write_pickle(path: Path, value: object) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(value)


def write_cifar10(folder: Path, per_batch: int = 4) -> np.ndarray:
    """Five training batches and a test batch of random images; labels count up. All pixels."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6 * per_batch, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        part = slice(i * per_batch, (i + 1) * per_batch)
        labels = [k % 10 for k in range(part.start, part.stop)]
        batch = {
            "batch_label": name,
            "labels": labels,
            "data": pixels[part],
            "filenames": ["a.png"],
        }
        write_pickle(folder / name, batch)
    return pixels


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
    raw = header + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, end: str = "", train: int = 40, test: int = 20) -> np.ndarray:
    """The four files, 28x28; labels count up. The training pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    for name, part in (("train", slice(0, train)), ("t10k", slice(train, None))):
        write_idx(folder / f"{name}-images-idx3-ubyte{end}", pixels[part])
        write_idx(folder / f"{name}-labels-idx1-ubyte{end}", labels[part])
    return pixels[:train]


def test_python2_pickler_writes_what_python2_wrote(tmp_path):
    write_pickle(tmp_path / "x", {"data": np.zeros(1, dtype=np.uint8)})
    raw = (tmp_path / "x").read_bytes()
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in raw
    assert b"_codecs" not in raw  # how Python 3 would have written bytes


@pytest.mark.parametrize("inside", [True, False], ids=["folder", "parent"])
def test_cifar10(tmp_path, inside):
    folder = tmp_path / "cifar-10-batches-py"
    pixels = write_cifar10(folder)
    (images, labels), (test_images, test_labels) = readers.read_cifar10(
        folder if inside else tmp_path
    )
    assert images.shape == (20, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [k % 10 for k in range(20)]
    # a row is 1024 red, 1024 green, 1024 blue values, each row-major
    assert images[7, 2, 5, 9] == pixels[7, 2 * 1024 + 5 * 32 + 9]
    assert np.array_equal(test_images.reshape(4, -1).numpy(), pixels[20:])
    assert test_labels.tolist() == [k % 10 for k in range(20, 24)]


def test_cifar100_takes_fine_labels(tmp_path):
    pixels = np.arange(3 * 3072, dtype=np.uint32).astype(np.uint8).reshape(3, 3072)
    for name in ("train", "test"):
        batch = {"fine_labels": [99, 0, 42], "coarse_labels": [1, 2, 3], "data": pixels}
        write_pickle(tmp_path / name, batch)
    loaded = data.load("cifar100", str(tmp_path))
    assert loaded.classes == 100
    assert loaded.train.labels.tolist() == [99, 0, 42]
    assert np.array_equal(loaded.test.images.reshape(3, -1).numpy(), pixels)


def test_cifar_pickled_by_python3_loads(tmp_path):
    write_cifar10(tmp_path / "c")
    batch = {b"labels": [3], b"data": np.full((1, 3072), 5, dtype=np.uint8)}
    for protocol in (2, 5):
        (tmp_path / "c" / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
        _, (images, labels) = readers.read_cifar10(tmp_path / "c")
        assert images.unique().tolist() == [5]
        assert labels.tolist() == [3]


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 images but 1 labels"),
        ({"data": np.zeros((2, 100), np.uint8), "labels": [1, 2]}, r"not uint8 \[N, 3072\]"),
        ({"data": np.zeros((2, 3072), np.int16), "labels": [1, 2]}, "torch.int16"),
        ({"labels": [1, 2]}, "not a CIFAR batch"),
        ([1, 2], "not a CIFAR batch"),
    ],
)
def test_cifar_batch_that_is_none(tmp_path, content, message):
    write_cifar10(tmp_path / "c")
    write_pickle(tmp_path / "c" / "data_batch_3", content)
    with pytest.raises(UserError, match=message):
        readers.read_cifar10(tmp_path / "c")


def test_cifar_refuses_code_and_garbage(tmp_path):
    write_cifar10(tmp_path / "c")
    target = tmp_path / "c" / "test_batch"
    target.write_bytes(pickle.dumps(_Evil(tmp_path / "touched")))
    with pytest.raises(UserError, match="asks for"):
        readers.read_cifar10(tmp_path / "c")
    assert not (tmp_path / "touched").exists()
    target.write_bytes(b"not a pickle")
    with pytest.raises(UserError, match="test_batch is not a CIFAR batch"):
        readers.read_cifar10(tmp_path / "c")
    target.unlink()
    with pytest.raises(UserError, match=r"there is no file .*test_batch"):
        readers.read_cifar10(tmp_path / "c")


@pytest.mark.parametrize("end", ["", ".gz"], ids=["plain", "gz"])
def test_mnist(tmp_path, end):
    pixels = write_mnist(tmp_path, end)
    loaded = data.load("mnist", str(tmp_path))
    assert loaded.shape == (1, 28, 28)
    assert np.array_equal(loaded.train.images[:, 0].numpy(), pixels)
    assert loaded.train.labels.tolist() == [k % 10 for k in range(40)]
    assert len(loaded.test) == 20
    # the statistics are the training images'
    assert loaded.mean.item() == pytest.approx(pixels.mean(), rel=1e-5)
    assert loaded.std.item() == pytest.approx(pixels.std(), rel=1e-5)


def test_mnist_files_that_are_wrong(tmp_path):
    def fails(match: str) -> None:
        with pytest.raises(UserError, match=match):
            data.load("mnist", str(tmp_path))

    fails("there is no train-images-idx3-ubyte")
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    good = labels.read_bytes()
    labels.write_bytes(good[:-1])
    fails("39 bytes of data")
    labels.write_bytes(b"\0\0\x0d\1" + good[4:])  # floats
    fails("not an idx file of 1-dimensional")
    write_idx(labels, np.zeros(39, np.uint8))
    fails("40 train images but 39 labels")
    write_idx(labels, np.full(40, 11, np.uint8))
    fails("labels run from 11 to 11")
    labels.unlink()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    fails("cannot be read")


# -- data and models -----------------------------------------------------------------------------


def test_digits_split_is_fixed_stratified_and_complete():
    again = data.load_digits()
    assert torch.equal(DIGITS.test.images, again.test.images)
    assert len(DIGITS.train) + len(DIGITS.test) == 1797
    per_class = torch.bincount(DIGITS.train.labels) / torch.bincount(
        torch.cat([DIGITS.train.labels, DIGITS.test.labels])
    )
    assert per_class.min() > 0.79
    assert per_class.max() < 0.81
    inputs = DIGITS.inputs(DIGITS.train.images)
    assert abs(float(inputs.mean())) < 1e-5
    assert float(inputs.std()) == pytest.approx(1.0, abs=1e-3)


def test_epoch_batches_shuffle_without_repeats():
    split = data.Split(torch.arange(10).reshape(10, 1, 1, 1), torch.arange(10))
    generator = torch.Generator().manual_seed(0)
    first, second = (
        [labels.tolist() for _, labels in data.epoch_batches(split, 4, generator)] for _ in range(2)
    )
    assert [len(b) for b in first] == [4, 4]
    assert len({*first[0], *first[1]}) == 8
    assert first != second
    assert len(first) == data.steps_per_epoch(10, 4)
    (everything,) = data.epoch_batches(split, 64, generator)
    assert sorted(everything[1].tolist()) == list(range(10))


def test_models_have_the_sizes_they_claim():
    def count(model):
        return sum(p.numel() for p in model.parameters())

    assert count(models.build("cnn", (1, 8, 8), 10)) == 25_866
    assert count(models.build("mlp", (1, 8, 8), 10)) == 998_410
    assert abs(count(models.build("mlp", (3, 32, 32), 100)) - 1_000_000) < 40_000
    resnet = models.build("resnet", (3, 32, 32), 10)
    deep = [m for m in resnet.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len([m for m in deep if m.weight.shape[-1] != 1]) == 20  # without the 1x1 shortcuts
    for name in models.IMAGE_MODELS:
        for shape in ((1, 8, 8), (3, 32, 32), (1, 28, 28)):
            assert models.build(name, shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_make_dataset_refuses_an_empty_split():
    empty = data.Split(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0).long())
    with pytest.raises(UserError, match="test data hold no sample"):
        data.make_dataset("digits", DIGITS.train, empty, 10)
