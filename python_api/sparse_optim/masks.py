"""Mask policies of Sparse SAM: which entries are perturbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_kernels import derive_key
from sparse_kernels.reference import philox

from ._bitmask import COUNT_RULES, BitMask, live_count, select_top
from ._fisher import Loss, squared_gradients
from ._support import check_int

__all__ = [
    "BitMask",
    "FisherMask",
    "MagnitudeMask",
    "MaskPolicy",
    "RandomMask",
    "live_count",
    "select_top",
]

_MASK_STREAM = 0x80000000  # stream word of random masks in the key derivation
_HASH_BLOCKS = 1 << 18  # counter blocks hashed at once


class MaskPolicy:
    """Scores every entry; the k(N, s) largest scores of the whole model are perturbed.

    Args:
        count_rule: "round", or "trunc"/"ceil" for parity runs (``live_count``).

    Raises:
        ValueError: no such rule.
    """

    needs_data = False  #: True if ``compute`` needs arguments, so the mask must be asked for

    def __init__(self, count_rule: str = "round") -> None:
        if count_rule not in COUNT_RULES:
            raise ValueError(f"count_rule must be one of {COUNT_RULES}, got {count_rule!r}")
        self.count_rule = count_rule

    def scores(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> list[Tensor]:
        """One score tensor per parameter; the largest are perturbed."""
        raise NotImplementedError

    @torch.no_grad()
    def compute(
        self, params: Sequence[Tensor], sparsity: float, *data: Any, seed: int = 0, update: int = 0
    ) -> BitMask:
        """Return the mask of the k(N, s) largest scores over all parameters together.

        Args:
            params: the maskable parameters, in the order of the global index.
            sparsity: s in [0, 1], fraction of zeros.
            data: what the policy needs beyond the parameters.
            seed: base seed of policies that draw numbers.
            update: number of this mask update.

        Returns:
            A new mask; nothing is modified.

        Raises:
            ValueError: the sparsity is out of range or data are missing.
        """
        k = live_count(sum(p.numel() for p in params), sparsity, self.count_rule)
        scores = self.scores(list(params), *data, seed=seed, update=update)
        if len({s.dtype for s in scores}) > 1:
            scores = [s.to(torch.float64) for s in scores]
        home = scores[0].device if scores else None
        chosen = select_top([s.to(home) for s in scores], k)
        return BitMask.from_bool([m.to(p.device) for m, p in zip(chosen, params, strict=True)])


class FisherMask(MaskPolicy):
    """Perturb the entries with the largest empirical Fisher information (SSAM-F).

    ``F_i = sum over samples of (d loss(sample) / d w_i)^2`` with the true labels, summed in float32
    (float64 for float64 parameters). The model runs in eval mode. Nothing is left changed:
    parameters, gradients, buffers, training flags and the global random states (torch, numpy,
    Python) are bit-identical afterwards; samples are drawn under a seed of the policy's own.

    Args:
        num_samples: samples used per update, >= 1; fewer if the data end before.
        count_rule: as in ``MaskPolicy``.
        chunk_size: samples differentiated at once; default by memory.
        use_vmap: try ``torch.func.vmap`` first; a loop over samples takes over where it fails.

    Source: Sparse SAM, arXiv 2210.05177 (SSAM-F), as its released code computes it.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
        >>> loss = torch.nn.functional.cross_entropy
        >>> params = list(model.parameters())
        >>> mask = FisherMask(num_samples=8).compute(params, 0.5, model, (x, y), loss)
        >>> mask.live, mask.numel
        (5, 10)
    """

    needs_data = True

    def __init__(
        self,
        num_samples: int = 128,
        count_rule: str = "round",
        *,
        chunk_size: int | None = None,
        use_vmap: bool = True,
    ) -> None:
        super().__init__(count_rule)
        self.num_samples = check_int("num_samples", num_samples, 1)
        self.chunk_size = None if chunk_size is None else check_int("chunk_size", chunk_size, 1)
        self.use_vmap = use_vmap

    def scores(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> list[Tensor]:
        """Squared per-sample gradients; ``data`` is (model, samples, loss_fn).

        ``samples`` is a pair of tensors (inputs, targets) or an iterable of such batches;
        ``loss_fn(outputs, targets)`` must give a scalar for a batch of one.
        """
        if len(data) != 3 or not isinstance(data[0], nn.Module):
            raise ValueError("FisherMask needs (model, samples, loss_fn)")
        model, samples, loss_fn = data
        fisher_loss: Loss = loss_fn
        return squared_gradients(
            list(params), model, samples, fisher_loss, num_samples=self.num_samples,
            chunk_size=self.chunk_size, use_vmap=self.use_vmap,
            seed=derive_key(seed, update, _MASK_STREAM),
        )  # fmt: skip


class MagnitudeMask(MaskPolicy):
    """Perturb the entries with the largest ``|w|`` at the time of the update.

    Example:
        >>> w = torch.tensor([0.1, -3.0, 2.0, 0.0])
        >>> MagnitudeMask().compute([w], 0.5).to_bool()
        [tensor([False,  True,  True, False])]
    """

    def scores(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> list[Tensor]:
        """``|w|``; no data."""
        if data:
            raise ValueError("MagnitudeMask takes no data")
        return [p.detach().abs() for p in params]


class RandomMask(MaskPolicy):
    """Perturb entries drawn uniformly, exactly k(N, s) of them.

    The scores are 32-bit integers of the counter-based stream keyed by (seed, update number), one
    per global index: the same bits on every device and rank, whatever the global random state.

    Example:
        >>> a, b = (RandomMask().compute([torch.zeros(100)], 0.9, seed=3, update=u) for u in (0, 1))
        >>> a.live, b.live, a == b
        (10, 10, False)
    """

    def scores(self, params: Sequence[Tensor], *data: Any, seed: int, update: int) -> list[Tensor]:
        """Random integers in [0, 2^32) as int64; no data."""
        if data:
            raise ValueError("RandomMask takes no data")
        key = derive_key(seed, update, _MASK_STREAM)
        signed = key - 2**64 if key >= 2**63 else key
        out, first = [], 0
        for p in params:
            out.append(_hash(signed, first, p.numel(), p.device).reshape(p.shape))
            first += p.numel()
        return out


def _hash(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """Words of the global indices first ... first + count - 1: word i mod 4 of block i // 4."""
    key_tensor = torch.tensor(key, dtype=torch.int64, device=device)
    start, stop = first // 4, -(-(first + count) // 4)
    parts = [
        philox.words(
            key_tensor, 0, 0, torch.arange(b, min(b + _HASH_BLOCKS, stop), device=device), 10
        ).reshape(-1)
        for b in range(start, stop, _HASH_BLOCKS)
    ]
    words = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=device)
    return words[first - 4 * start :][:count]
