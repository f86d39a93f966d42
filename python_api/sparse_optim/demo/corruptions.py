"""Test images with noise, blur or little contrast: how a model copes with what it never saw.

The corruptions work on grey levels as they are stored, before normalisation, and keep them between
0 and the largest one there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from .data import Dataset, Split

_SEED = 0  # of the noise: all runs see the same images


def noise(images: Tensor, amount: float, top: float, generator: torch.Generator) -> Tensor:
    """Add independent normal noise.

    Args:
        images: grey levels [N, channels, height, width].
        amount: standard deviation as a fraction of ``top``.
        top: the largest grey level.
        generator: on the CPU, so that the noise does not depend on the device.

    Returns:
        float32 images of the same shape.
    """
    drawn = torch.randn(images.shape, generator=generator).to(images.device)
    return (images.to(torch.float32) + amount * top * drawn).clamp(0.0, top)


def blur(images: Tensor, amount: float, top: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur with a standard deviation of ``amount`` pixels; the edge is continued.

    Other arguments and the result as of ``noise``; nothing is drawn.
    """
    reach = max(1, round(3.0 * amount))
    at = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp(-0.5 * (at / amount).square())
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    count, channels, height, width = images.shape
    x = images.to(torch.float32).reshape(count * channels, 1, height, width)
    x = conv2d(pad(x, (reach, reach, 0, 0), mode="replicate"), kernel)
    x = conv2d(pad(x, (0, 0, reach, reach), mode="replicate"), kernel.transpose(2, 3))
    return x.reshape(images.shape).clamp(0.0, top)


def contrast(images: Tensor, amount: float, top: float, generator: torch.Generator) -> Tensor:
    """Pull every image towards its own mean: ``amount`` of the contrast is left.

    Other arguments and the result as of ``noise``; nothing is drawn.
    """
    x = images.to(torch.float32)
    mean = x.mean((1, 2, 3), keepdim=True)
    return (mean + amount * (x - mean)).clamp(0.0, top)


Corruption = Callable[[Tensor, float, float, torch.Generator], Tensor]
#: by name: the function and its amounts, from mild to strong. Chosen by hand so that a dense SGD
#: run on digits loses a little at the mildest and much at the strongest.
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "noise": (noise, (0.1, 0.2, 0.3)),
    "blur": (blur, (0.5, 0.75, 1.0)),
    "contrast": (contrast, (0.5, 0.3, 0.15)),
}


def corrupted(data: Dataset) -> dict[str, list[Dataset]]:
    """The data set with its test images corrupted, by corruption, one per amount.

    Every corruption draws from a generator of its own with the same seed, so the images are the
    same in every call and do not depend on which other corruptions there are. Model and
    normalisation do not see them before the test.

    Source: noise, blur and contrast as in common-corruption benchmarks, arXiv 1903.12261.
    """
    top = float(data.train.images.max())
    found: dict[str, list[Dataset]] = {}
    for name, (function, amounts) in CORRUPTIONS.items():
        generator = torch.Generator().manual_seed(_SEED)
        images = [function(data.test.images, amount, top, generator) for amount in amounts]
        found[name] = [replace(data, test=Split(x, data.test.labels)) for x in images]
    return found
