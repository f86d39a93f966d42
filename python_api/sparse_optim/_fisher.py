"""Per-sample squared gradients (empirical Fisher diagonal) without side effects."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_kernels import derive_key

from ._policy import MASK_STREAM, MaskPolicy
from ._support import check_int, rng_state, set_rng_state

_CHUNK_ELEMENTS = 1 << 26  # per-sample gradients held at once, in elements

Loss = Callable[[Any, Any], Tensor]


@contextlib.contextmanager
def _private_randomness(seed: int) -> Iterator[None]:
    """Seed torch, numpy and Python inside the block; put their global states back after it."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    count = torch.cuda.device_count() if cuda else 0
    state = rng_state(torch.device("cuda", i) for i in range(count))
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")  # only if the program uses it: it is no dependency
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        # not torch.manual_seed: it would queue a seed for CUDA devices not yet in use
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        yield
    finally:
        set_rng_state(state)
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def _eval_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """The model in eval mode (or training mode) inside the block; every flag put back after it."""
    flags = [(m, m.training) for m in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _batches(samples: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(samples, (tuple, list)) and len(samples) == 2 and isinstance(samples[0], Tensor):
        return [(samples[0], samples[1])]
    return samples


class _Scorer:
    """Sums of squared per-sample gradients for one model and loss."""

    def __init__(self, model: nn.Module, loss_fn: Loss, params: list[Tensor]) -> None:
        self.model, self.loss_fn = model, loss_fn
        own = dict(model.named_parameters())
        wanted = {id(p) for p in params}
        self.scored = {n: p.detach() for n, p in own.items() if id(p) in wanted}
        self.fixed: dict[str, Tensor] = {
            n: p.detach() for n, p in own.items() if n not in self.scored
        }
        # clones: a module that writes its buffers even in eval mode writes these
        self.fixed.update((n, b.detach().clone()) for n, b in model.named_buffers())
        self.names = {id(own[n]): n for n in self.scored}
        self.sums = {
            n: torch.zeros(
                p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device
            )
            for n, p in self.scored.items()
        }
        self.vmap = True

    def _loss(self, values: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        one_x, one_y = x.unsqueeze(0), y.unsqueeze(0)
        out = torch.func.functional_call(self.model, {**self.fixed, **values}, (one_x,))
        loss = self.loss_fn(out, one_y)
        if loss.numel() != 1:
            raise ValueError(f"the loss must be a scalar, got shape {tuple(loss.shape)}")
        return loss.reshape(())

    def _chunk_vmap(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        grads = torch.func.vmap(
            torch.func.grad(self._loss), in_dims=(None, 0, 0), randomness="different"
        )(self.scored, x, y)
        return {n: g.to(self.sums[n].dtype).square().sum(0) for n, g in grads.items()}

    def _chunk_loop(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(s) for n, s in self.sums.items()}
        for one_x, one_y in zip(x, y, strict=True):
            leaves = {n: p.clone().requires_grad_() for n, p in self.scored.items()}
            loss = self._loss(leaves, one_x, one_y)
            if not loss.requires_grad:
                continue  # none of the parameters is used
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for n, g in zip(leaves, grads, strict=True):
                if g is not None:
                    total[n] += g.to(total[n].dtype).square()
        return total

    def add(self, x: Tensor, y: Tensor) -> None:
        part = None
        if self.vmap:
            try:
                part = self._chunk_vmap(x, y)
            except (
                Exception
            ):  # the model does something vmap cannot: the loop decides if it is wrong
                self.vmap = False
        for n, value in (part or self._chunk_loop(x, y)).items():
            self.sums[n] += value


def squared_gradients(
    params: list[Tensor],
    model: nn.Module,
    samples: Any,
    loss_fn: Loss,
    *,
    num_samples: int,
    chunk_size: int | None,
    use_vmap: bool,
    seed: int,
    training: bool = False,
) -> list[Tensor]:
    """Sum over samples of the squared gradient of each sample's loss, one tensor per parameter.

    Parameters, gradients, buffers, training flags and the global random states are as before when
    it returns. Parameters that the model does not have or use score 0.
    """
    with _private_randomness(seed), _eval_mode(model, training), torch.enable_grad():
        scorer = _Scorer(model, loss_fn, params)
        scorer.vmap = use_vmap
        elements = max(1, sum(s.numel() for s in scorer.sums.values()))
        chunk = chunk_size or min(32, max(1, _CHUNK_ELEMENTS // elements))
        left = num_samples
        for x, y in _batches(samples):
            x, y = x[:left], y[:left]
            for start in range(0, len(x), chunk):
                scorer.add(x[start : start + chunk], y[start : start + chunk])
            left -= len(x)
            if left == 0:
                break
    if left == num_samples:
        raise ValueError("FisherMask: samples gave no sample")
    return [
        scorer.sums[scorer.names[id(p)]]
        if id(p) in scorer.names
        else torch.zeros(p.shape, dtype=torch.float32, device=p.device)
        for p in params
    ]


class FisherMask(MaskPolicy):
    """Perturb the entries with the largest empirical Fisher information (SSAM-F).

    ``F_i = sum over samples of (d loss(sample) / d w_i)^2`` with the true labels, summed in float32
    (float64 for float64 parameters). Nothing is left changed:
    parameters, gradients, buffers, training flags and the global random states (torch, numpy,
    Python) are bit-identical afterwards; samples are drawn under a seed of the policy's own.

    Args:
        num_samples: samples used per update, >= 1; fewer if the data end before.
        count_rule: as in ``MaskPolicy``.
        chunk_size: samples differentiated at once; default by memory.
        use_vmap: try ``torch.func.vmap`` first; a loop over samples takes over where it fails.
        init: as in ``MaskPolicy``; "score": the first step raises until a mask was asked for.
        mode: the model runs in "eval" mode, or for parity in "train" mode, sample by sample, as the
            released code does; its statistics are left alone either way.
        group: process group over which the samples are split; sums are added over it.

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
        init: str = "score",
        mode: str = "eval",
        group: Any = None,
    ) -> None:
        super().__init__(count_rule, init)
        if mode not in ("eval", "train"):
            raise ValueError(f"mode must be 'eval' or 'train', got {mode!r}")
        self.mode = mode
        self.group = group
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
        sums = squared_gradients(
            list(params), model, samples, fisher_loss, num_samples=self.num_samples,
            chunk_size=self.chunk_size, use_vmap=self.use_vmap,
            seed=derive_key(seed, update, MASK_STREAM), training=self.mode == "train",
        )  # fmt: skip
        if self.group is not None:
            for total in sums:
                torch.distributed.all_reduce(total, group=self.group)
        return sums
