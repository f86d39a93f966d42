"""MeZO (ZO-SGD): training from losses alone, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._bitmask import BitMask
from ._capturable import check_rate, keep_on_device, longest
from ._directions import Probe
from ._support import (
    BufferGuard,
    check_backend,
    check_number,
    trainable,
)
from ._sweeps import MasterSweeps, Sweeps
from ._weight_mask import MaskOfParams, Masks, checked_masks
from ._wrapper import STATE_KEY, STATE_VERSION
from ._zo_options import ZeroOrder


class MeZO(ZeroOrder, Optimizer):
    """Gradient descent along random directions, without a backward.

    ``c_i = (L(w + delta z_i) - L(w - delta z_i)) / (2 delta)``,
    ``w = (1 - lr * weight_decay) w - (lr / q) sum_i c_i z_i``, in 2 q + 1 sweeps over the weights.

    Args:
        params: parameters, (name, parameter) pairs, or groups; ``lr`` and ``weight_decay`` may
            differ per group.
        lr: step size, >= 0.
        num_directions: q >= 1 (2 q forwards a step).
        smoothing: delta > 0.
        distribution: "normal", "rademacher", "sphere" or "coordinate", as in ``ZOSAM``; with
            coordinates the update is the sum over all entries, not divided by q.
        weight_decay: decoupled decay, >= 0.
        seed: 64-bit base seed; None takes ``torch.initial_seed()``.
        forward_difference: ``c_i = (L(w + delta z_i) - L(w)) / delta``, q + 1 forwards; biased by
            ``delta z' H z / 2``.
        weight_mask: bool tensors (or None entries, all ones) over the trainable parameters, or a
            BitMask: entries with bit 0 are never written (Sparse-MeZO).
        bn_modules: module or modules whose buffers (running statistics) advance in a step's first
            forward only.
        pair_rng: give every forward of a step the random state of its first, so that dropout masks
            agree; the state advances by one forward per step.
        restore, allow_drift, live, sync, replica_group, shard_group, uids, firsts, rng_rounds,
            rng_math: as in ``ZOSAM``. The exact mode doubles the memory of the weights that move.
        replay_log: record key and coefficients of every step, see ``ReplayLog``.
        capturable: keep lr in a float64 tensor on the device, where the update reads it: replays of
            a CUDA graph that holds ``step`` (with ``pair_rng=False`` and a closure that returns its
            loss in a tensor) see what schedulers and ``group["lr"].fill_`` write. Not with
            ``replay_log``, which keeps numbers of the host. An lr of 0 then makes +0.0 of -0.0.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: an argument is out of range.

    State:
        None per parameter. A backup of what moves (itemsize bytes per entry, reused, never saved)
        makes the step exact. Seed, counters, uids and the packed mask go to the checkpoint.

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
        forward_difference: bool = False,
        weight_mask: Masks | None = None,
        bn_modules: nn.Module | Iterable[nn.Module] | None = None,
        pair_rng: bool = True,
        restore: str = "exact",
        allow_drift: bool = False,
        live: Sequence[Tensor] | None = None,
        sync: str = "auto",
        replica_group: Any = None,
        shard_group: Any = None,
        uids: Sequence[int] | None = None,
        firsts: Sequence[int] | None = None,
        rng_rounds: int = 10,
        rng_math: str = "portable",
        replay_log: bool = False,
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        check_number("smoothing", smoothing, 0.0, strict=True)
        if sync == "local":
            raise ValueError("sync='local' lets the ranks' weights diverge: nothing averages them")
        self.backend = check_backend(backend)
        self._guard = BufferGuard(bn_modules)
        self.forward_difference = bool(forward_difference)
        if capturable and replay_log:
            raise ValueError("capturable=True keeps lr on the device, replay_log records it")
        self.last_probe: Probe | None = None
        self._probing = False
        defaults = {"lr": lr, "weight_decay": weight_decay, "capturable": bool(capturable)}
        super().__init__(params, defaults)
        self._make_directions(
            self.param_groups, num_directions=num_directions, smoothing=smoothing,
            distribution=distribution, seed=seed, rng_rounds=rng_rounds, rng_math=rng_math,
            pair_rng=pair_rng, restore=restore, allow_drift=allow_drift, sync=sync,
            replica_group=replica_group, shard_group=shard_group, uids=uids, firsts=firsts,
            live=live, replay_log=replay_log,
        )  # fmt: skip
        if weight_mask is not None:
            self.set_weight_mask(weight_mask)

    @property
    def last_step_passes(self) -> tuple[int, int]:
        """Forwards and backwards of a step."""
        q = self._directions.num_directions
        return (q + 1 if self.forward_difference else 2 * q), 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters get the next numbers of the stream and no mask.

        Raises:
            RuntimeError: called by the loss closure, or the weights have float32 masters.
            ValueError: an option is out of range.
        """
        filled = {**self.defaults, **param_group}
        check_number("lr", filled["lr"], 0.0)
        check_number("weight_decay", filled["weight_decay"], 0.0)
        if filled["capturable"] != self.defaults["capturable"]:
            raise ValueError("capturable must be the same in every group")
        self._refuse_probing("add_param_group")
        made = "_directions" in self.__dict__
        if made and self._directions.live:
            raise RuntimeError("MeZO.add_param_group: not with live 16-bit weights")
        super().add_param_group(filled)
        if made:
            self._number_added()
        keep_on_device(self.param_groups[-1], ("lr",))

    @property
    def num_active(self) -> int:
        """d, entries that take part."""
        return self._directions.num_active(trainable(self.param_groups))

    @property
    def weight_mask(self) -> BitMask | None:
        """The weight mask in force, over the trainable parameters in group order."""
        return self._directions.masked.mask

    def set_weight_mask(self, masks: Masks | None) -> None:
        """Say which entries take part; the others keep their bits.

        Args:
            masks: bool tensors (or None entries, all ones) over the trainable parameters in group
                order, a BitMask such as a policy's ``compute`` gives, or None for no mask.

        Raises:
            ValueError: number, shape, dtype or device does not fit; the old mask stays.
            RuntimeError: called by the loss closure.
        """
        self._refuse_probing("set_weight_mask")
        taken: tuple[list[Tensor], BitMask | None] = ([], None)
        if masks is not None:
            self._refuse_shards_under_masks()
            taken = checked_masks("weight_mask", self.param_groups, masks)
        self._directions.masked.take(*taken)
        self._round_masters()

    @torch.no_grad()
    def step(self, loss_closure: Callable[[], Any]) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            loss_closure: runs a forward and returns the loss, a scalar; called 2 q times (q + 1
                with ``forward_difference``) without autograd, on the same samples. To use several
                micro-batches, return their mean.

        Returns:
            Mean of the losses, 0-dim, on the device.

        Raises:
            ValueError: the closure returned no scalar, or the directions do not fit the weights.
                Weights are restored on every exception.
            RuntimeError: nothing to train, or the closure changed the number of parameters or
                called ``step``.
        """
        params, draw = trainable(self.param_groups), self._directions
        if not params:
            raise RuntimeError("MeZO.step: no parameter requires grad")
        self._refuse_probing("step")
        assert draw.smoothing is not None
        sweeps = draw.begin("MeZO.step", params)
        step, one_sided = draw.counter - 1, self.forward_difference
        self._probing = True
        try:
            losses, _ = draw.losses(
                "MeZO.step", loss_closure, sweeps, draw.smoothing, self._guard,
                lambda: len(trainable(self.param_groups)), training_forward_follows=False,
                one_sided=one_sided,
            )  # fmt: skip
            coef = draw.coefficients(losses, draw.smoothing, one_sided)
            self._update(sweeps, coef)
        except BaseException:
            sweeps.restore()
            self._guard.put_back()
            raise
        finally:
            self._probing = False
            self._guard.drop()
        self.last_probe = Probe(losses, coef, draw.smoothing, sweeps.key, step)
        if one_sided:  # the loss at w stands in every row
            return (losses[:, 0].sum() + losses[0, 1]) / (len(losses) + 1)
        return losses.mean()

    def _update(self, sweeps: Sweeps, coef: Tensor) -> None:
        """Restore and update in one sweep; groups with lr 0 get their bits back instead."""
        draw, params = self._directions, sweeps.params
        lr_of: dict[Tensor, Any] = {}
        alphas: dict[Tensor, float | Tensor] = {}
        for g in self.param_groups:
            check_rate(g, "lr")
            keep_on_device(g, ("lr",))
            rate = g["lr"] if g["capturable"] else float(g["lr"])
            decay = check_number("weight_decay", g["weight_decay"], 0.0)
            lr_of |= dict.fromkeys(g["params"], rate)
            alphas |= dict.fromkeys(g["params"], 1.0 - rate * decay if decay != 0.0 else 1.0)
        still = [p for p in params if not isinstance(lr_of[p], Tensor) and lr_of[p] == 0.0]
        moved = [p for p in params if isinstance(lr_of[p], Tensor) or lr_of[p] != 0.0]
        if still:
            sweeps.restore(still)
        if not moved:
            return
        lr, gammas = longest({p: lr_of[p] for p in moved})
        share = 1 if draw.distribution == "coordinate" else draw.num_directions
        numbers = list(range(draw.num_directions))
        scaled = draw.on_drawn(coef * (-lr / share), numbers)
        scaled = torch.where(scaled.float().isfinite(), scaled, 0.0)  # the sum runs in float32
        if isinstance(sweeps, MasterSweeps):
            sweeps.update(scaled, numbers, alphas, gammas, moved)
            sweeps.restore(moved)
        else:
            sweeps.to(scaled, numbers, alphas=alphas, gammas=gammas, only=moved)
        self._record(sweeps.key, scaled, moved, alphas, gammas)

    def _check_targets(self) -> tuple[list[Tensor], float]:
        assert self._directions.smoothing is not None
        return trainable(self.param_groups), self._directions.smoothing

    def state_dict(self) -> dict[str, Any]:
        """Groups, seed, counters, uids and mask; never weights or directions.

        Raises:
            RuntimeError: called by the loss closure.
        """
        self._refuse_probing("state_dict")
        draw = self._directions
        own = {
            "version": STATE_VERSION,
            "directions": draw.state(self.param_groups),
            "weights": draw.masked.state(self.param_groups),
        }
        return {**super().state_dict(), STATE_KEY: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave; the next step is the one it would have taken.

        Raises:
            ValueError: the groups do not fit, or it is no checkpoint of this class.
        """
        self._refuse_probing("load_state_dict")
        where, extra = "MeZO.load_state_dict", state_dict.get(STATE_KEY)
        if extra is None or extra.get("version") != STATE_VERSION:
            raise ValueError(f"{where}: not a checkpoint of this version of MeZO")
        sizes = [len(g["params"]) for g in state_dict["param_groups"]]
        if sizes != [len(g["params"]) for g in self.param_groups]:
            raise ValueError(f"{where}: the checkpoint has groups of {sizes}")
        taken = MaskOfParams.read(where, self.param_groups, extra.get("weights", {}))
        self._load_directions(where, extra["directions"])
        self._directions.masked.take(*taken)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != STATE_KEY})
        for group in self.param_groups:  # where numbers are is no part of a checkpoint
            group["capturable"], group["lr"] = self.defaults["capturable"], float(group["lr"])
            keep_on_device(group, ("lr",))
        self._round_masters()

    def __getstate__(self) -> dict[str, Any]:
        own = ["backend", "forward_difference", "_guard", "_directions", "_log", "_probing"]
        own.append("last_probe")
        return {**super().__getstate__(), **{k: self.__dict__[k] for k in own}}
