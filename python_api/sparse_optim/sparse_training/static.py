"""Masks found once (SNIP, GraSP) or between runs (lottery tickets), then kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from sparse_kernels import mask_topk

from .._bitmask import live_count
from .._fisher import _batches
from .._support import BufferGuard, check_int, check_number, rng_state, set_rng_state
from ._lottery import LotteryTicket
from ._scheduler import SparseTraining, wide

__all__ = ["SNIP", "GraSP", "LotteryTicket", "class_balanced"]


class _PrunedAtInit(SparseTraining):
    """One global mask from gradients at the initialisation; dense until ``prune``."""

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[list[Tensor]]:
        """Gradients without traces: buffers and random states are as before afterwards."""
        guard = BufferGuard(self.model)
        state = rng_state(p.device for p in self._params)
        guard.save()
        try:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused: no double backward
                yield self._params
        finally:
            guard.put_back()
            guard.drop()
            set_rng_state(state)

    def _keep_top(self, scores: list[Tensor], kind: str) -> None:
        """Keep the k(N, s) weights of the largest scores over all layers."""
        k = live_count(sum(self._sizes), self.sparsity)
        words = mask_topk(scores, k, kind=kind, backend=self.backend)
        self._commit(words)
        self.updates += 1


def _grads(loss: Tensor, params: list[Tensor], create_graph: bool = False) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True))


class SNIP(_PrunedAtInit):
    """Single-shot pruning: keep the weights with the largest ``|w dL/dw|``, over all layers.

    Weights only, at the model's own initialisation, once; k(N, s) weights stay. Their sum does not
    normalise the scores: it changes no rank.

    Args:
        model, optimizer, sparsity, dense_layers, seed, backend: as in ``SparseTraining``.

    Source: SNIP, arXiv 1810.02340.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparse = SNIP(model, opt, sparsity=0.75)
        >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
        >>> sparse.prune(torch.nn.functional.cross_entropy, x, y)
        >>> sparse.mask.live, int(sum(p.count_nonzero() for p in sparse.weights.values()))
        (12, 12)
    """

    def prune(
        self,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        x: Any = None,
        y: Any = None,
        *,
        grads: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Find the mask from one mini-batch, or from gradients.

        ``.grad``, buffers and the global random state are as before afterwards. The model runs in
        the mode it is in.

        Args:
            loss_fn: ``loss_fn(model(x), y)`` is the loss.
            x, y: the mini-batch.
            grads: gradients in the order of ``weights`` instead. Not modified.

        Raises:
            RuntimeError: the optimizer is inside a step, or a gradient is not finite; nothing is
                modified.
            ValueError: neither or both of mini-batch and gradients are given, or they do not fit.
        """
        self._require_idle("prune")
        if (loss_fn is None) == (grads is None):
            raise ValueError("SNIP.prune: give loss_fn, x and y, or grads")
        if loss_fn is not None:
            with self._scoring() as params:
                grads = _grads(loss_fn(self.model(x), y), params)
        found = self._gradients("prune", grads)
        with torch.no_grad():
            scores = [wide(p) * wide(g) for p, g in zip(self._params, found, strict=True)]
            self._keep_top(scores, "abs")


class GraSP(_PrunedAtInit):
    """Pruning that keeps the gradient flow: remove the largest ``S = -w (H g)``.

    Over all layers, once, at the initialisation. g is summed over two half-batches, ``H g``
    accumulated per half with g detached; the loss is the cross-entropy of logits / T.

    Args:
        model, optimizer, sparsity, dense_layers, seed, backend: as in ``SparseTraining``.
        temperature: T > 0.

    Source: GraSP, arXiv 2002.07376.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(),
        ...                             torch.nn.Linear(8, 2))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparse = GraSP(model, opt, sparsity=0.5)
        >>> data = [(torch.randn(64, 4), torch.arange(64) % 2)]
        >>> sparse.prune([class_balanced(data, per_class=25, num_classes=2)])
        >>> sparse.mask.live
        24
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        *,
        temperature: float = 200.0,
        **options: Any,
    ) -> None:
        self.temperature = check_number("temperature", temperature, 0.0, strict=True)
        super().__init__(model, optimizer, sparsity, **options)

    def scores(
        self, samples: Any, logits_fn: Callable[[Any], Tensor] | None = None
    ) -> list[Tensor]:
        """S of every weight; nothing is modified. Arguments as in ``prune``."""
        forward = logits_fn or self.model
        halves = []
        for x, y in _batches(samples):
            cut = len(x) // 2
            halves += [(x[:cut], y[:cut]), (x[cut:], y[cut:])]
        halves = [(x, y) for x, y in halves if len(x)]
        if not halves:
            raise ValueError("GraSP.scores: samples gave no sample")
        totals = [torch.zeros_like(wide(p)) for p in self._params]
        products = [torch.zeros_like(t) for t in totals]
        with self._scoring() as params:
            for x, y in halves:
                self._add(totals, _grads(self._loss(forward, x, y), params))
            for x, y in halves:
                own = _grads(self._loss(forward, x, y), params, create_graph=True)
                dots = [(g * t).sum() for g, t in zip(own, totals, strict=True) if g is not None]
                slope = sum(d for d in dots if d.requires_grad)
                if isinstance(slope, Tensor):  # else the loss is linear in every weight
                    self._add(products, _grads(slope, params))
        return [-wide(p) * h for p, h in zip(params, products, strict=True)]

    def _loss(self, forward: Callable[[Any], Tensor], x: Any, y: Any) -> Tensor:
        return nn.functional.cross_entropy(forward(x) / self.temperature, y)

    @staticmethod
    def _add(totals: list[Tensor], grads: list[Tensor | None]) -> None:
        for total, g in zip(totals, grads, strict=True):
            if g is not None:
                total += g.detach()

    def prune(self, samples: Any, logits_fn: Callable[[Any], Tensor] | None = None) -> None:
        """Find the mask.

        ``.grad``, buffers and the global random state are as before afterwards. The model runs in
        the mode it is in (as published: training). It must allow a double backward.

        Args:
            samples: (x, y) or an iterable of such batches, y class numbers, best class-balanced
                (``class_balanced``; published: 25 per class and 1 batch, CIFAR-10 10 and 1,
                CIFAR-100 5 and 2, Tiny-ImageNet 1 and 10, ImageNet 1 and 150).
            logits_fn: gives the logits of x; default the model.

        Raises:
            RuntimeError: the optimizer is inside a step, or a score is not finite; nothing is
                modified.
            ValueError: there are no samples.
        """
        self._require_idle("prune")
        scores = self.scores(samples, logits_fn)
        self._require_finite("GraSP.prune", "score", scores)
        self._keep_top([-s for s in scores], "value")


def class_balanced(samples: Any, *, per_class: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Collect a batch with equally many samples of each class, the first that come.

    Args:
        samples: (x, y) or an iterable of such batches; x [n, ...], y [n] class numbers.
        per_class: samples per class, >= 1.
        num_classes: number of classes.

    Returns:
        x and y of ``per_class * num_classes`` samples, the classes in turn, so that each half of
        the batch is balanced too.

    Raises:
        ValueError: a class has too few samples.

    Example:
        >>> x, y = torch.arange(6.0), torch.tensor([0, 0, 0, 1, 0, 1])
        >>> class_balanced((x, y), per_class=2, num_classes=2)
        (tensor([0., 3., 1., 5.]), tensor([0, 1, 0, 1]))
    """
    check_int("per_class", per_class, 1)
    check_int("num_classes", num_classes, 1)
    xs: list[list[Tensor]] = [[] for _ in range(num_classes)]
    ys: list[list[Tensor]] = [[] for _ in range(num_classes)]
    for x, y in _batches(samples):
        for c in range(num_classes):
            at = (y == c).nonzero().reshape(-1)[: per_class - len(ys[c])]
            xs[c] += x[at].unbind(0)
            ys[c] += y[at].unbind(0)
        if all(len(own) == per_class for own in ys):
            order = [(c, i) for i in range(per_class) for c in range(num_classes)]
            return torch.stack([xs[c][i] for c, i in order]), torch.stack(
                [ys[c][i] for c, i in order]
            )
    short = {c: len(own) for c, own in enumerate(ys) if len(own) < per_class}
    raise ValueError(f"class_balanced: fewer than {per_class} samples of the classes {short}")
