"""MeZO (ZO-SGD): training from losses alone, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import restore_, zo_combine_

from ._backup import WholeBackup
from ._bitmask import BitMask
from ._directions import DirectionReport, Directions, Probe
from ._support import BufferGuard, check_backend, check_number, trainable
from ._wrapper import STATE_KEY, STATE_VERSION


class MeZO(DirectionReport, Optimizer):
    """Gradient descent along random directions, without a backward.

    ``c_i = (L(w + delta z_i) - L(w - delta z_i)) / (2 delta)``,
    ``w = (1 - lr * weight_decay) w - (lr / q) sum_i c_i z_i``, in 2 q + 1 sweeps over the weights.

    Args:
        params: parameters, (name, parameter) pairs, or groups; ``lr`` and ``weight_decay`` may
            differ per group.
        lr: step size, >= 0.
        num_directions: q >= 1 (2 q forwards a step).
        smoothing: delta > 0.
        distribution: "normal" or "rademacher".
        weight_decay: decoupled decay, >= 0.
        seed: 64-bit base seed; None takes ``torch.initial_seed()``.
        weight_mask: bool tensors (or None entries, all ones) over the trainable parameters, or a
            BitMask: entries with bit 0 are never written (Sparse-MeZO).
        bn_modules: module or modules whose buffers (running statistics) advance in a step's first
            forward only.
        pair_rng: give every forward of a step the random state of its first, so that dropout masks
            agree; the state advances by one forward per step.
        uids: numbers of the parameters in the random stream; default from names, else their order.
        rng_rounds: Philox rounds, 10 or 7 (another stream).
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: an argument is out of range.

    State:
        None per parameter. A backup of the weights (itemsize bytes per parameter, reused, never
        saved) makes the step exact: it doubles the memory of the weights. Seed, counters, uids and
        the packed mask go to the checkpoint.

    Source: MeZO, arXiv 2305.17333, algorithm 1.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> opt = MeZO([w], lr=0.1, seed=0)
        >>> float(opt.step(lambda: w.square().sum())) > 0
        True
        >>> float(w.square().sum().detach()) < 3.0
        True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        num_directions: int = 1,
        smoothing: float = 1e-3,
        distribution: str = "normal",
        weight_decay: float = 0.0,
        seed: int | None = None,
        *,
        weight_mask: Sequence[Tensor | None] | BitMask | None = None,
        bn_modules: nn.Module | Iterable[nn.Module] | None = None,
        pair_rng: bool = True,
        uids: Sequence[int] | None = None,
        rng_rounds: int = 10,
        backend: str = "auto",
    ) -> None:
        check_number("smoothing", smoothing, 0.0, strict=True)
        self.backend = check_backend(backend)
        self._guard = BufferGuard(bn_modules)
        self._copies = WholeBackup()
        self.last_probe: Probe | None = None
        self._directions = Directions(
            num_directions, smoothing, distribution, seed, rng_rounds, pair_rng, backend
        )
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self._directions.assign_uids(self.param_groups, uids)
        if weight_mask is not None:
            self.set_weight_mask(weight_mask)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters get the next numbers of the stream and no mask."""
        filled = {**self.defaults, **param_group}
        check_number("lr", filled["lr"], 0.0)
        check_number("weight_decay", filled["weight_decay"], 0.0)
        super().add_param_group(filled)
        if self._directions.uids:
            self._directions.assign_uids(self.param_groups, None)

    @property
    def num_active(self) -> int:
        """d, entries that take part."""
        return self._directions.num_active(trainable(self.param_groups))

    def set_weight_mask(self, masks: Sequence[Tensor | None] | BitMask | None) -> None:
        """Say which entries take part; the others keep their bits.

        Raises:
            ValueError: number, shape, dtype or device does not fit; the old mask stays.
        """
        self._directions.set_mask(self.param_groups, masks)

    @torch.no_grad()
    def step(self, loss_closure: Callable[[], Any]) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            loss_closure: runs a forward and returns the loss, a scalar; called 2 q times without
                autograd, on the same samples. To use several micro-batches, return their mean.

        Returns:
            Mean of the losses, 0-dim, on the device.

        Raises:
            ValueError: the closure returned no scalar. Weights are restored on every exception.
        """
        params, draw = trainable(self.param_groups), self._directions
        if not params:
            raise RuntimeError("MeZO.step: no parameter requires grad")
        assert draw.smoothing is not None
        backups = self._copies.of(params)
        try:
            losses, key, _ = draw.losses(
                "MeZO.step", loss_closure, params, backups, draw.smoothing, self._guard, False
            )
            coef = draw.coefficients(losses, draw.smoothing)
        except BaseException:
            restore_(params, backups, draw.words(params), backend=self.backend)
            self._guard.put_back()
            raise
        finally:
            self._guard.drop()
        self._update(params, backups, coef, key)
        self.last_probe = Probe(losses, coef, draw.smoothing, key, draw.probe_count - 1)
        return losses.mean()

    def _update(self, params: list[Tensor], backups: list[Tensor], coef: Tensor, key: int) -> None:
        """Restore and update in one sweep; groups with lr 0 get their bits back instead."""
        draw = self._directions
        lr_of = {p: float(g["lr"]) for g in self.param_groups for p in g["params"]}
        decay_of = {p: float(g["weight_decay"]) for g in self.param_groups for p in g["params"]}
        saved = dict(zip(params, backups, strict=True))
        still = [p for p in params if lr_of[p] == 0.0]
        moved = [p for p in params if lr_of[p] != 0.0]
        if still:
            restore_(still, [saved[p] for p in still], draw.words(still), backend=self.backend)
        if not moved:
            return
        lr = max(lr_of[p] for p in moved)
        alphas = [1.0 - lr_of[p] * decay_of[p] for p in moved]
        gammas = [lr_of[p] / lr for p in moved]
        scaled = coef * (-lr / draw.num_directions)
        scaled = torch.where(scaled.float().isfinite(), scaled, 0.0)  # the sum runs in float32
        zo_combine_(
            moved, scaled, src=[saved[p] for p in moved],
            alpha=None if set(alphas) == {1.0} else alphas,
            gamma=None if set(gammas) == {1.0} else gammas, **draw.stream(moved, key),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Groups, seed, counters, uids and mask; never weights or directions."""
        own = {"version": STATE_VERSION, "directions": self._directions.state(self.param_groups)}
        return {**super().state_dict(), STATE_KEY: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave; the next step is the one it would have taken.

        Raises:
            ValueError: the groups do not fit, or it is no checkpoint of this class.
        """
        extra = state_dict.get(STATE_KEY)
        if extra is None or extra.get("version") != STATE_VERSION:
            raise ValueError("MeZO.load_state_dict: not a checkpoint of this version of MeZO")
        self._directions.load("MeZO.load_state_dict", self.param_groups, extra["directions"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != STATE_KEY})

    def __getstate__(self) -> dict[str, Any]:
        own = ("backend", "_guard", "_directions", "last_probe")
        return {**super().__getstate__(), **{k: self.__dict__[k] for k in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_copies", WholeBackup())
