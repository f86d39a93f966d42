"""Scores that break careless selections, and the order they are ranked in, by a stable sort."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from sparse_kernels import unpack_mask
from sparse_kernels.reference._keys import ordered_keys
from sparse_kernels.testing import bits_of, make_list, special_values

KEY = 0xE998CDE3B83FA088

#: name -> scores of one tensor, in float32
VALUES = {
    "normal": lambda g: torch.randn(70_001, generator=g),
    "constant": lambda g: torch.full((70_001,), -1.5),
    "zeros": lambda g: torch.zeros(70_001) * (torch.rand(70_001, generator=g) - 0.5).sign(),
    "few": lambda g: torch.randint(-3, 4, (70_001,), generator=g).float(),
    "denormal": lambda g: torch.randn(70_001, generator=g) * 1e-40,
    "neighbours": lambda g: 1 + torch.randint(0, 7, (70_001,), generator=g) * 2.0**-23,
    "infinite": lambda g: torch.randn(70_001, generator=g) / torch.randint(0, 2, (70_001,)),
    "nan": lambda g: torch.full((70_001,), float("nan")),
}


def values(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return VALUES[name](torch.Generator().manual_seed(len(name))).to(device, dtype)


def with_specials(dtype: torch.dtype, numel: int, seed: int = 0) -> Tensor:
    """Normal numbers, every third entry a special value, in an order of no meaning."""
    generator = torch.Generator().manual_seed(seed)
    special = special_values(dtype)
    drawn = torch.randn(numel, generator=generator).to(dtype)
    bits = bits_of(drawn).clone()
    at = torch.arange(0, numel, 3)
    which = torch.randint(0, special.numel(), at.shape, generator=generator)
    bits[at] = bits_of(special)[which]
    return bits.view(dtype)


def scores_of(case: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """``make_list`` with ties: values are rounded to quarters."""
    scores = make_list(case, dtype, device, seed=3)
    for s in scores:
        s.copy_((s.float() * 4).round() / 4)
    return scores


def keys_of(scores: list[Tensor], kind: str = "value", key: int | None = None) -> list[Tensor]:
    """Signed int64 keys in the order of the selection, one flat tensor each, on the CPU.

    The scores' own comparisons, not the bits that the kernels compare: -0.0 equals 0.0, NaN is
    below everything.
    """
    if kind == "random":
        assert key is not None
        signed = torch.tensor(key - 2**64 if key >= 2**63 else key)
        first, out = 0, []
        for s in scores:
            out.append(ordered_keys(s.cpu(), "random", signed, first))
            first += s.numel()
        return out
    flat = [s.detach().cpu().double().reshape(-1) for s in scores]
    if kind == "abs":
        flat = [f.abs() for f in flat]
    whole = torch.cat(flat) if flat else torch.empty(0)
    number = whole[~whole.isnan()].unique()  # sorted
    ranks = torch.searchsorted(number, whole.nan_to_num(0.0, float("inf"), -float("inf")))
    ranks = torch.where(whole.isnan(), -1, ranks)
    return list(ranks.split([f.numel() for f in flat]))


def first_k(keys: Tensor, k: int, here: Tensor | None = None) -> Tensor:
    """Bool tensor of the k largest keys among ``here``, equal ones by index: a stable sort."""
    order = keys.argsort(descending=True, stable=True)
    if here is not None:
        order = order[here[order]]
    chosen = torch.zeros_like(keys, dtype=torch.bool)
    chosen[order[:k]] = True
    return chosen


def bools(words: list[Tensor], scores: list[Tensor]) -> list[Tensor]:
    """Flat bool tensors on the CPU; asserts that padding bits are 0."""
    for w, s in zip(words, scores, strict=True):
        assert w.dtype == torch.int32
        assert w.shape == (-(-s.numel() // 32),)
        if s.numel() % 32:
            assert int(w[-1]) & 0xFFFFFFFF < 1 << s.numel() % 32
    flat = unpack_mask([w.cpu() for w in words], [(s.numel(),) for s in scores])
    return [f.reshape(-1) for f in flat]


def exactly(message: str) -> str:
    """A pattern for ``pytest.raises`` that matches this message and no longer one."""
    return f"^{re.escape(message)}$"
