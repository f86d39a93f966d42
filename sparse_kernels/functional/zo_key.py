"""The next step key of a random stream, made on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from .._backend import resolve
from .._check import ListArg, bump_versions
from ..reference.philox import MASK32


def zo_key_(
    key: Tensor, counter: Tensor, seed: Tensor, *, stream: int = 0, backend: str | None = None
) -> None:
    """Write the key of step t into ``key`` and add one to t; nothing comes to the host.

    ``key = derive_key(seed, counter, stream)``, then ``counter += 1``: a CUDA graph that holds this
    call draws new directions every time it is replayed.

    Args:
        key: int64 tensor with one element (mutated): the bits of the 64-bit key, as the ``seed`` of
            ``zo_combine_`` takes it.
        counter: int64 tensor with one element (mutated): the bits of t.
        seed: int64 tensor with one element: the bits of the 64-bit base seed.
        stream: 0 for the global stream, 1 + rank for local probes, from 0x80000000 on other users.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: a tensor is not int64 with one element, devices differ, two are the same memory,
            or ``stream`` is not in [0, 2^32).
        BackendUnavailableError: the backend asked for is not there.

    Example:
        >>> key, t, seed = (torch.tensor(x) for x in (0, 5, 7))
        >>> zo_key_(key, t, seed)
        >>> int(key) % 2**64 == derive_key(7, 5), int(t)
        (True, 6)
    """
    op = "zo_key_"
    tensors = {"key": key, "counter": counter, "seed": seed}
    for name, t in tensors.items():
        if not isinstance(t, Tensor) or t.dtype != torch.int64 or t.numel() != 1:
            raise ValueError(f"{op}: {name} must be an int64 tensor with one element")
        if t.device != key.device:
            raise ValueError(f"{op}: {name} is on {t.device}, key is on {key.device}")
    known = not torch.compiler.is_compiling() and not key.is_meta
    if known and len({t.data_ptr() for t in tensors.values()}) != len(tensors):
        raise ValueError(f"{op}: key, counter and seed must be three tensors")
    if not isinstance(stream, int) or not 0 <= stream <= MASK32:
        raise ValueError(f"{op}: stream must be in [0, 2^32), got {stream!r}")
    resolve(op, backend, key.device.type)(key, counter, seed, stream)
    bump_versions(
        [ListArg("key", [key], mutated=True), ListArg("counter", [counter], mutated=True)]
    )
