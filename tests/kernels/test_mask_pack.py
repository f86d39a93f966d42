"""pack_mask, unpack_mask: the bit layout, in every shape."""

from __future__ import annotations

import pytest
import torch

import sparse_kernels as sk
from sparse_kernels.testing import LIST_CASES, assert_bit_equal, make_list, make_masks

WORD_EDGES = [0, 1, 7, 31, 32, 33, 63, 64, 65, 255, 256, 257, 65535, 65536, 65537, 8192 * 32 + 5]


def layout(mask: torch.Tensor) -> list[int]:
    """The contract, spelled out: bit i of word w is element 32 w + i in row-major order."""
    flat = [bool(x) for x in mask.reshape(-1).tolist()]
    words = [flat[i : i + 32] for i in range(0, len(flat), 32)]
    unsigned = [sum(1 << i for i, bit in enumerate(word) if bit) for word in words]
    return [u - 2**32 if u >= 2**31 else u for u in unsigned]


def masks_of(case, device, density=0.5):
    return make_masks(make_list(case, torch.float32, device), density, seed=7)


@pytest.mark.parametrize("case", [c for c in LIST_CASES if c not in ("chunk-edges", "tiny-1000")])
def test_layout_of_the_words(target, case):
    masks = masks_of(case, target.device)
    words = sk.pack_mask(masks, backend=target.backend)
    assert len(words) == len(masks)
    for mask, word in zip(masks, words, strict=True):
        assert word.dtype == torch.int32
        assert word.device == mask.device
        assert word.shape == (-(-mask.numel() // 32),)
        if mask.numel() < 5000:
            assert word.tolist() == layout(mask)


@pytest.mark.parametrize("numel", WORD_EDGES)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_round_trip_count_and_padding(target, numel, density):
    mask = torch.rand(numel) < density
    mask = mask.to(target.device)
    (word,) = sk.pack_mask([mask], backend=target.backend)
    (back,) = sk.unpack_mask([word], [(numel,)], backend=target.backend)
    assert torch.equal(back, mask)
    shifts = torch.arange(32, device=target.device, dtype=torch.int32)
    bits = (word[:, None] >> shifts & 1).reshape(-1)
    assert int(bits.sum()) == int(mask.sum())  # so every padding bit is 0
    assert not bits[numel:].any()
    (again,) = sk.pack_mask([back], backend=target.backend)
    assert_bit_equal(again, word, "words")


@pytest.mark.parametrize("case", LIST_CASES)
def test_equals_the_reference(twin, case):
    masks = masks_of(case, twin.device)
    words = sk.pack_mask(masks, backend=twin.backend)
    expected = sk.pack_mask([m.cpu() for m in masks], backend="reference")
    assert_bit_equal(words, expected, "words")
    shapes = [m.shape for m in masks]
    back = sk.unpack_mask(words, shapes, backend=twin.backend)
    assert_bit_equal(back, masks, "masks")


def test_padding_of_foreign_words_is_ignored(target):
    ones = torch.full((2,), -1, dtype=torch.int32, device=target.device)
    (mask,) = sk.unpack_mask([ones], [(33,)], backend=target.backend)
    assert mask.shape == (33,)
    assert mask.all()
    grads = [torch.ones(33, device=target.device)]
    got = float(sk.grad_norm(grads, [ones], backend=target.backend)) ** 2
    assert got == pytest.approx(33, rel=1e-6)
    gram = sk.zo_gram(grads, 2, seed=1, distribution="rademacher", mask=[ones])
    assert float(gram[0, 0]) == 33
    live = sk.linbreg_step_(
        [torch.zeros(33, device=target.device)], grads, [torch.ones(33, device=target.device)],
        0.1, 0.2, active=[ones], backend=target.backend,
    )  # fmt: skip
    assert live.tolist() == [33]


def test_order_is_row_major_whatever_the_memory_format(target):
    mask = torch.rand(3, 4, 5, 6, device=target.device) < 0.5
    transposed = mask.transpose(1, 3).contiguous().transpose(1, 3)
    last = mask.contiguous(memory_format=torch.channels_last)
    words = sk.pack_mask([mask, transposed, last, mask[:, :, ::2]], backend=target.backend)
    assert_bit_equal(words[1:3], [words[0]] * 2, "words")
    assert_bit_equal(
        words[3], sk.pack_mask([mask[:, :, ::2].contiguous()], backend=target.backend), "words"
    )


def test_shapes_of_unpacked_masks(target):
    words = sk.pack_mask([torch.ones(6, dtype=torch.bool, device=target.device)])
    for shape in [(6,), (2, 3), torch.Size([3, 1, 2])]:
        (mask,) = sk.unpack_mask(words, [shape], backend=target.backend)
        assert mask.shape == tuple(shape)
        assert mask.is_contiguous()
        assert mask.dtype == torch.bool


def test_threads_do_not_matter(target):
    masks = masks_of("mixed", target.device)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        words = sk.pack_mask(masks, backend=target.backend)
        assert_bit_equal(words, sk.pack_mask(masks, backend="reference"), "words")
        back = sk.unpack_mask(words, [m.shape for m in masks], backend=target.backend)
        assert_bit_equal(back, masks, "masks")
