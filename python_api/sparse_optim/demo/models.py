"""Small models for images: a CNN, a two-layer perceptron and a residual network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MODELS = ("cnn", "mlp", "resnet")
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


def build(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A new model by name, initialised from torch's global generator.

    Args:
        name: one of ``MODELS``.
        shape: channels, height and width of an image.
        classes: number of outputs.
    """
    return {"cnn": cnn, "mlp": mlp, "resnet": resnet}[name](shape, classes)
