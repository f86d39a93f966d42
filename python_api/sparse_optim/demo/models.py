"""Small models: a CNN, a two-layer perceptron and a residual network, and one for text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_MODELS = ("cnn", "mlp", "resnet")
MODELS = (*IMAGE_MODELS, "transformer")
SIZED = ("resnet", "transformer")  # those with a width and a depth to choose
HEAD_WIDTH = 64  # of one attention head, at most
MLP_HIDDEN = 13312  # 64 -> 13312 -> 10 has 998,410 weights and biases


def cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Three convolutions and a linear layer; 8x8 grey images: 25,866 weights and biases."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


def mlp(shape: tuple[int, int, int], classes: int, hidden: int | None = None) -> nn.Module:
    """Two linear layers, wide enough for about a million weights if ``hidden`` is not given."""
    inputs = shape[0] * shape[1] * shape[2]
    if hidden is None:
        # the 8x8 width for 10 classes, scaled to other inputs; a multiple of 16 suits vector units
        hidden = max(64, round(MLP_HIDDEN * 74 / (inputs + classes) / 16) * 16)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


class _Block(nn.Module):
    """Two convolutions with batch normalisation around a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(shape: tuple[int, int, int], classes: int, depth: int = 3, width: int = 16) -> nn.Module:
    """Residual network of 6 ``depth`` + 2 layers in three stages, for 32x32 images (ResNet-20)."""
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(3):
        for i in range(depth):
            out = width << stage
            layers.append(_Block(channels, out, 2 if stage > 0 and i == 0 else 1))
            channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


class _Attention(nn.Module):
    """Causal self-attention: a position sees itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = (t.unflatten(2, (self.heads, -1)) for t in self.inputs(x).chunk(3, dim=2))
        query, key, value = (t.transpose(1, 2) for t in split)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """Attention and a perceptron, each behind a layer normalisation and around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = -(-width // HEAD_WIDTH)
        self.attention = nn.Sequential(nn.LayerNorm(width), _Attention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Transformer(nn.Module):
    """Predicts the next character at every position of a window; 3.2 million weights by default.

    Takes codes int64 [batch, positions <= window] and gives scores [batch, classes, positions],
    the shape that ``cross_entropy`` takes for labels [batch, positions].
    """

    def __init__(self, window: int, classes: int, depth: int = 4, width: int = 256) -> None:
        super().__init__()
        self.characters = nn.Embedding(classes, width)
        self.places = nn.Parameter(torch.empty(window, width))
        for table in (self.characters.weight, self.places):
            nn.init.normal_(table, std=0.02)
        self.layers = nn.Sequential(*(_Layer(width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, codes: Tensor) -> Tensor:
        x = self.characters(codes) + self.places[: codes.shape[1]]
        return self.head(self.layers(x)).transpose(1, 2)


def transformer(
    shape: tuple[int, ...], classes: int, depth: int = 4, width: int = 256
) -> nn.Module:
    """A ``Transformer`` for windows of ``shape[0]`` characters."""
    return Transformer(shape[0], classes, depth, width)


def build(name: str, shape: tuple[int, ...], classes: int, **sizes: int) -> nn.Module:
    """A new model by name, initialised from torch's global generator.

    Args:
        name: one of ``MODELS``.
        shape: channels, height and width of an image, or the window of a text.
        classes: number of outputs.
        sizes: ``depth`` and ``width`` of those in ``SIZED``.
    """
    makers: dict[str, Any] = {
        "cnn": cnn, "mlp": mlp, "resnet": resnet, "transformer": transformer
    }  # fmt: skip
    return makers[name](shape, classes, **sizes)
