"""zo_key_: the step key made on the device is that of derive_key."""

from __future__ import annotations

import pytest
import torch

import sparse_kernels as sk


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


@pytest.mark.parametrize("t", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("stream", [0, 1, 5, 2**31, 2**32 - 1])
@pytest.mark.parametrize("seed", [0, 0x0123456789ABCDEF, 2**64 - 1])
def test_equals_derive_key(target, t, stream, seed):
    key, counter, base = (
        torch.tensor(x, device=target.device) for x in (-1, signed(t), signed(seed))
    )
    sk.zo_key_(key, counter, base, stream=stream, backend=target.backend)
    assert int(key) % 2**64 == sk.derive_key(seed, t, stream)
    assert int(counter) == signed(t + 1)
    assert int(base) == signed(seed)


def test_counts_on(target):
    """Call after call draws the next key; shape [1] and 0-dim tensors are the same."""
    key, counter, seed = (torch.tensor([x], device=target.device) for x in (0, 2**32 - 2, 7))
    for t in range(2**32 - 2, 2**32 + 2):
        sk.zo_key_(key, counter, seed, backend=target.backend)
        assert int(key) % 2**64 == sk.derive_key(7, t)
    out = [torch.zeros(9, device=target.device) for _ in range(2)]
    sk.zo_combine_(out[:1], [1.0], seed=key, backend=target.backend)
    sk.zo_combine_(out[1:], [1.0], seed=sk.derive_key(7, 2**32 + 1), backend=target.backend)
    assert torch.equal(out[0], out[1])


def test_refuses_what_is_not_three_numbers(target):
    def number(x=0, dtype=torch.int64):
        return torch.tensor(x, dtype=dtype, device=target.device)

    key, counter, seed = number(), number(), number()
    for arguments, message in (
        ((key, counter, number(dtype=torch.int32)), "seed must be"),
        ((torch.zeros(2, dtype=torch.int64), counter, seed), "key must be"),
        ((key, key, seed), "three tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            sk.zo_key_(*arguments, backend=target.backend)
    for stream in (-1, 2**32, 0.5):
        with pytest.raises(ValueError, match="stream must be"):
            sk.zo_key_(key, counter, seed, stream=stream, backend=target.backend)
    assert int(counter) == 0
