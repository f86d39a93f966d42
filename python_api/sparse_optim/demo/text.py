"""Text that every machine has: the source of Python's standard library, character by character."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ._support import UserError

PRINTABLE = bytes(range(32, 127)) + b"\n"
UNKNOWN = len(PRINTABLE)  # code of every other byte
CLASSES = UNKNOWN + 1
WINDOW = 128
EPOCH_STEPS = 100
HELD_OUT = 5  # every fifth file is never trained on
TEST_WINDOWS = 256  # at most, spread evenly over the held-out files
_EVAL_BATCH = 32


@dataclass(frozen=True)
class Text:
    """Files one after the other as codes uint8 [N]."""

    codes: Tensor
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def windows(self, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Codes uint8 and, as labels, the characters after them int64, both [starts, length]."""
        places = starts.unsqueeze(1) + torch.arange(length + 1)
        cut = self.codes[places.to(self.codes.device)]
        return cut[:, :-1], cut[:, 1:].long()


@dataclass(frozen=True)
class TextData:
    """Training and held-out text, read in windows; a window's labels are its next characters.

    Attributes:
        name: in messages.
        train, test: made of different files.
        window: characters of one sample.
        epoch_steps: batches of what counts as an epoch: windows are drawn, not gone through.
    """

    name: str
    train: Text
    test: Text
    window: int = WINDOW
    epoch_steps: int = EPOCH_STEPS
    classes: int = CLASSES

    @property
    def shape(self) -> tuple[int, ...]:
        """The window."""
        return (self.window,)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.train.codes.device

    def to(self, device: str) -> TextData:
        """The same text on another device."""
        train, test = (replace(t, codes=t.codes.to(device)) for t in (self.train, self.test))
        return replace(self, train=train, test=test)

    def inputs(self, samples: Tensor) -> Tensor:
        """Codes int64."""
        return samples.long()

    def _drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        last = len(self.train) - self.window
        # drawn on the CPU, so that the windows do not depend on the device
        return self.train.windows(torch.randint(last, (count,), generator=generator), self.window)

    def samples(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and labels of ``count`` training windows, drawn at random."""
        codes, labels = self._drawn(count, generator)
        return self.inputs(codes), labels

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """``epoch_steps`` batches of random training windows."""
        return (self._drawn(size, generator) for _ in range(self.epoch_steps))

    def steps(self, size: int) -> int:
        """Number of batches that ``batches`` gives, whatever their size."""
        return self.epoch_steps

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows of the held-out text, always the same."""
        room = len(self.test) - self.window - 1
        count = min(TEST_WINDOWS, 1 + room // self.window)
        starts = torch.linspace(0, room, count, dtype=torch.float64).long()
        for part in starts.split(_EVAL_BATCH):
            codes, labels = self.test.windows(part, self.window)
            yield self.inputs(codes), labels

    def summary(self) -> str:
        """What there is."""
        parts = " and ".join(
            f"{len(text):,} {what} characters ({len(text.files)} files)"
            for what, text in (("training", self.train), ("held-out", self.test))
        )
        return f"{self.name}: {parts} in windows of {self.window}"

    def result_text(self, loss: float, accuracy: float) -> str:
        """Loss of the held-out windows per character, and the share of characters foreseen."""
        bits = loss / math.log(2.0)
        return (
            f"held-out loss {loss:.4f} ({bits:.4f} bits per character)  "
            f"test accuracy {accuracy:.2f} %"
        )


def encode(raw: bytes) -> Tensor:
    """Codes uint8 of bytes: printable ASCII and the newline have their own, all others one.

    Example:
        >>> encode(b"A~\\n\\t").tolist()
        [33, 94, 95, 96]
    """
    table = torch.full((256,), UNKNOWN, dtype=torch.uint8)
    table[list(PRINTABLE)] = torch.arange(len(PRINTABLE), dtype=torch.uint8)
    if not raw:
        return table[:0]
    return table[torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()]


def _read(root: Path, files: list[Path]) -> Text:
    raw = b"".join(path.read_bytes() for path in files)
    return Text(encode(raw), tuple(path.relative_to(root).as_posix() for path in files))


def load_stdlib(
    package: str | None = None, window: int = WINDOW, epoch_steps: int = EPOCH_STEPS
) -> TextData:
    """The standard library's own source, every fifth file held out.

    Args:
        package: a package such as "encodings", with all below it; None: the modules at the top,
            which no package has a part in.
        window: characters of one sample.
        epoch_steps: batches per epoch.

    Raises:
        UserError: there is no source, or too little for one window in either part.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    if not any(root.glob("*.py")):
        raise UserError(
            f"--data stdlib: there is no Python source in {root}; this Python keeps its library "
            "elsewhere, perhaps in a zip file"
        )
    if package is not None and not (
        package.isidentifier() and (root / package / "__init__.py").is_file()
    ):
        raise UserError(f"--package: the standard library in {root} has no package {package!r}")
    found = root.glob("*.py") if package is None else (root / package).rglob("*.py")
    files = sorted(path for path in found if path.is_file())
    name = "stdlib" if package is None else f"stdlib {package}"
    train, test = (
        _read(
            root, [path for i, path in enumerate(files) if (i % HELD_OUT == HELD_OUT - 1) is held]
        )
        for held in (False, True)
    )
    for what, text in (("training", train), ("held-out", test)):
        if len(text) <= window:
            raise UserError(
                f"{name}: {len(text)} {what} characters in {len(text.files)} files are too few "
                f"for a window of {window}"
            )
    return TextData(name, train, test, window, epoch_steps)
