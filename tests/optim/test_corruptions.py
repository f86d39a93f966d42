"""Corrupted test images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from demo_cases import few_digits, new_run
from sparse_optim.demo import corruptions, data


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits(128)


def test_corruptions_are_deterministic_and_stay_in_range(digits):
    first, second = corruptions.corrupted(digits), corruptions.corrupted(digits)
    assert list(first) == ["noise", "blur", "contrast"]
    clean = digits.test.images.float()
    for name, parts in first.items():
        distances = []
        for one, other in zip(parts, second[name], strict=True):
            assert torch.equal(one.test.images, other.test.images)
            assert torch.equal(one.test.labels, digits.test.labels)
            assert one.train is digits.train
            assert one.mean is digits.mean
            assert one.test.images.shape == clean.shape
            assert 0.0 <= float(one.test.images.min()) <= float(one.test.images.max()) <= 16.0
            distances.append(float((one.test.images - clean).norm()))
        assert distances == sorted(distances)  # from mild to strong
        assert distances[0] > 0.05 * float(clean.norm())


def test_noise_has_the_deviation_asked_for():
    grey = torch.full((50, 1, 20, 20), 8, dtype=torch.uint8)
    x = corruptions.noise(grey, 0.1, 16.0, torch.Generator().manual_seed(1))
    assert float(x.mean()) == pytest.approx(8.0, abs=4 * 1.6 / math.sqrt(x.numel()))
    assert float(x.std()) == pytest.approx(1.6, rel=4 / math.sqrt(2 * x.numel()))
    assert len({float(v) for v in x[:, 0, 0, 0]}) == 50  # every image has noise of its own
    dark = corruptions.noise(torch.zeros_like(grey), 0.1, 16.0, torch.Generator().manual_seed(1))
    assert float(dark.min()) == 0.0
    assert float((dark == 0).float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(20_000))


@pytest.mark.parametrize("sigma", corruptions.CORRUPTIONS["blur"][1])
def test_blur_is_a_gaussian_filter(sigma, digits):
    ndimage = pytest.importorskip("scipy.ndimage")  # scikit-learn brings it
    images = digits.test.images[:5]
    blurred = corruptions.blur(images, sigma, 16.0, torch.Generator())
    for got, image in zip(blurred, images, strict=True):
        wanted = ndimage.gaussian_filter(
            image[0].double().numpy(), sigma, mode="nearest", truncate=3.0
        )
        assert np.allclose(got[0].numpy(), wanted, atol=1e-4)


def test_contrast_keeps_the_mean(digits):
    images = digits.test.images[:7]
    for amount in (1.0, 0.3):
        x = corruptions.contrast(images, amount, 16.0, torch.Generator())
        clean = images.float()
        torch.testing.assert_close(x.mean((1, 2, 3)), clean.mean((1, 2, 3)))
        torch.testing.assert_close(x.std((1, 2, 3)), amount * clean.std((1, 2, 3)))


def test_accuracy_on_other_images(digits):
    run = new_run(digits, "sgd")
    swapped = data.Split(digits.test.images, 9 - digits.test.labels)
    other = data.make_dataset("digits", digits.train, swapped, 10)
    with torch.no_grad():
        found = run.model(digits.inputs(digits.test.images)).argmax(1)
    for part, given in ((digits, None), (other, other)):
        right = (found == part.test.labels).float().mean()
        assert run.accuracy(given) == pytest.approx(100.0 * float(right))
    assert run.accuracy() != run.accuracy(other)
