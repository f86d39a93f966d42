"""What ZO-SAM and MeZO share: their common options, reports and the check of signs."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import derive_key, zo_combine_

from ._directions import Directions
from ._loss_sync import LossSync
from ._policy import MASK_STREAM
from ._replay_log import ReplayLog
from ._shards import is_sharded, shard_group_of
from ._stream import signed
from ._support import BufferGuard, as_loss, check_int, label, rng_state, set_rng_state, trainable
from ._sweeps import Factors

CHECK_STREAM = MASK_STREAM + 6  # directions of sign_check


class ZeroOrder(abc.ABC):
    """Mixin of optimizers that move their parameters along random directions."""

    param_groups: list[dict[str, Any]]
    backend: str
    _directions: Directions
    _guard: BufferGuard
    _log: ReplayLog | None
    _probing: bool  # a loss closure is running: the weights are on their way

    def _make_directions(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        num_directions: int,
        smoothing: float | None,
        distribution: str,
        seed: int | None,
        rng_rounds: int,
        rng_math: str,
        pair_rng: bool,
        restore: str,
        allow_drift: bool,
        sync: str,
        replica_group: Any,
        shard_group: Any,
        uids: Sequence[int] | None,
        firsts: Sequence[int] | None,
        live: Sequence[Tensor] | None,
        replay_log: bool,
    ) -> None:
        """Make ``_directions`` and ``_log`` of options as the classes document them."""
        params = [p for g in groups for p in g["params"]]
        found = shard_group_of(params)  # also where a group was given: it refuses a mixture
        shard_group = found if shard_group is None else shard_group
        if live is not None or restore == "master":
            restore = _checked_live(groups, live, restore)
        self._directions = draw = Directions(
            num_directions, smoothing, distribution, seed, rng_rounds, rng_math, self.backend,
            pair_rng=pair_rng, restore=restore, allow_drift=allow_drift,
            sync=LossSync(sync, replica_group, shard_group),
        )  # fmt: skip
        draw.assign_uids(groups, uids, firsts)
        if live is not None:
            draw.live = dict(zip(trainable(groups), live, strict=True))
            self._round_masters()
        if replay_log and distribution == "coordinate":
            raise ValueError("replay_log does not record distribution='coordinate'")
        self._log = self._new_log() if replay_log else None

    def _new_log(self) -> ReplayLog:
        draw = self._directions
        kind = "rademacher" if draw.distribution == "rademacher" else "normal"
        return ReplayLog(kind, draw.rounds, draw.math)

    def _refuse_probing(self, what: str) -> None:
        if self._probing:
            raise RuntimeError(f"{type(self).__name__}.{what}: called by its own loss closure")

    def _number_added(self) -> None:
        """Number the parameters of the group just added, or take the group off again."""
        try:
            self._directions.assign_uids(self.param_groups, None)
        except ValueError:
            self.param_groups.pop()
            raise

    def _load_directions(self, where: str, state: dict[str, Any]) -> None:
        """Take a checkpoint's directions.

        Raises:
            ValueError: they do not fit, or a log has been begun on others.
        """
        draw, log = self._directions, self._log
        named = (state["distribution"], state["rounds"])
        if log is not None and len(log) and named != (draw.distribution, draw.rounds):
            raise ValueError(f"{where}: the replay log has been begun with other directions")
        draw.load(where, self.param_groups, state)
        if log is not None and not len(log):
            self._log = self._new_log()

    @torch.no_grad()
    def _round_masters(self) -> None:
        """Give live 16-bit weights the values of their masters."""
        live = self._directions.live
        if live:
            torch._foreach_copy_(list(live.values()), list(live))

    def _refuse_shards_under_masks(self) -> None:
        for p in trainable(self.param_groups):
            if is_sharded(p):
                raise ValueError(
                    f"{label(self.param_groups, p)} is a DTensor: masks need the local shards as "
                    "plain parameters, with firsts= and shard_group="
                )

    def _record(
        self, key: Tensor, coef: Tensor, params: list[Tensor], alphas: Factors, gammas: Factors
    ) -> None:
        log, draw = self._log, self._directions
        if log is None:
            return
        every = [p for g in self.param_groups for p in g["params"]]
        at = {p: i for i, p in enumerate(every)}
        log.uids, log.firsts = ([table[p] for p in every] for table in (draw.uids, draw.firsts))
        log.record(
            key, coef, [at[p] for p in params], _by_param(alphas, params),
            _by_param(gammas, params), draw.masked.over(params),
        )  # fmt: skip

    # -- reports -----------------------------------------------------------------------------

    @property
    def num_directions(self) -> int:
        """Directions per probe."""
        return self._directions.num_directions

    @property
    def probe_count(self) -> int:
        """t, probes drawn so far; read from the device."""
        return self._directions.probe_count

    @property
    def seed(self) -> int:
        """The 64-bit base seed; rank 0's, once ranks have shared it."""
        return self._directions.seed

    @property
    def ties(self) -> Tensor | None:
        """Directions dropped because both losses were equal; int64 on the device."""
        return self._directions.ties

    @property
    def nonfinite(self) -> Tensor | None:
        """Directions dropped because a loss was not finite; int64 on the device."""
        return self._directions.nonfinite

    @property
    def replay_log(self) -> ReplayLog | None:
        """Keys and coefficients of every probe, with ``replay_log=True``."""
        return self._log

    # -- the check of signs ------------------------------------------------------------------

    @abc.abstractmethod
    def _check_targets(self) -> tuple[list[Tensor], float]:
        """What moves, and the smoothing."""

    def sign_check(self, loss_closure: Callable[[], Any], directions: int = 100) -> float:
        """Share of directions along which the measured losses rise and fall as the gradient says.

        At 0.5 the differences are noise: the smoothing is too small for the precision of the
        forward, or so large that curvature decides. Costs one backward, 2 forwards per direction
        and memory for two copies of the parameters. Weights, gradients, buffers of ``bn_modules``,
        random states (with ``pair_rng``) and the directions of later steps stay as they are.
        Where ranks average their losses, so are their gradients, and all return the same share.

        Args:
            loss_closure: runs a forward and returns the loss, a scalar tensor; it must not call
                backward and must see the same samples in every call. It calls the module itself,
                not the wrapper of ``DistributedDataParallel``.
            directions: how many to try, >= 1.

        Returns:
            The share in [0, 1]; equal losses count as disagreement.

        Raises:
            RuntimeError: the weights are perturbed, live 16-bit weights have float32 masters, or
                parameters are DTensors, of which ``fully_shard`` gives autograd no gradients.
            ValueError: the closure returned no scalar tensor that depends on the parameters.
        """
        self._refuse_probing("sign_check")
        where = f"{type(self).__name__}.sign_check"
        count, draw = check_int("directions", directions, 1), self._directions
        if draw.live or draw.distribution == "coordinate":
            raise RuntimeError(f"{where}: needs random directions and weights without masters")
        params, delta = self._check_targets()
        if any(map(is_sharded, params)):
            raise RuntimeError(f"{where}: needs whole parameters or plain shards, got DTensors")
        draw.agree(params[0].device)
        word = signed(derive_key(draw.seed, 0, CHECK_STREAM))
        key = params[0].new_full((), word, dtype=torch.int64)
        random = rng_state({p.device for p in params}) if draw.pair_rng else None
        self._guard.save()
        try:
            found, blank = self._gradient(where, loss_closure, params)
        finally:
            self._guard.put_back()
            self._guard.drop()
            if random is not None:
                set_rng_state(random)
        with torch.no_grad():
            rises = self._rises(where, loss_closure, params, delta, key, count)
            words, own = draw.words(params), []
            grads = [torch.zeros_like(p) if g is None else g
                     for p, g in zip(params, found, strict=True)]  # fmt: skip
            for i in range(count):
                z = [torch.zeros_like(p) for p in params]
                zo_combine_(z, [1.0], directions=[i], mask=words, **draw.named(params, key))
                products = [(a.double() * b.double()).sum() for a, b in zip(z, grads, strict=True)]
                own.append(torch.stack([x.to(key.device) for x in products]).sum())
            whole = draw.sync.over_shards(torch.stack(own)).unbind()
            own_slopes: list[Tensor | None] = [None] * count if blank else list(whole)
            slopes = draw.sync.average(own_slopes, key.device)
        return float((slopes * rises > 0.0).double().mean())

    def _gradient(
        self, where: str, closure: Callable[[], Any], params: list[Tensor]
    ) -> tuple[Sequence[Tensor | None], bool]:
        """The gradient at w, and whether this rank has no data."""
        with torch.enable_grad():
            loss = closure()
            if loss is None and self._directions.sync.mode == "global":
                return [None] * len(params), True
            as_loss(where, loss)
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise ValueError(f"{where}: the loss does not depend on the parameters by autograd")
            return torch.autograd.grad(loss.reshape(()), params, allow_unused=True), False

    def _rises(
        self, where: str, closure: Callable[[], Any], params: list[Tensor], delta: float,
        key: Tensor, count: int,
    ) -> Tensor:  # fmt: skip
        """[count] loss at w + delta z_i less that at w - delta z_i; weights are restored."""
        draw = self._directions
        sweeps = draw.sweeps_for(params, key, exact=True)
        try:
            losses, _ = draw.losses(
                where, closure, sweeps, delta, self._guard,
                lambda: len(trainable(self.param_groups)), training_forward_follows=True,
                directions=range(count),
            )  # fmt: skip
        finally:
            sweeps.restore()
            self._guard.put_back()
            self._guard.drop()
        return losses[:, 0].double() - losses[:, 1].double()


def _by_param(factors: Factors, params: Sequence[Tensor]) -> list[float] | None:
    return None if factors is None else [float(factors[p]) for p in params]


def _checked_live(groups: Sequence[dict[str, Any]], live: Any, restore: str) -> str:
    """ "master", if 16-bit weights were given that go with the float32 parameters.

    Raises:
        ValueError: there are none, or number, dtype, shape or device does not fit.
    """
    if live is None:
        raise ValueError("restore='master' needs live=, the 16-bit weights of the forwards")
    if restore == "replay":
        raise ValueError("restore='replay' and live= exclude one another: masters restore exactly")
    params = trainable(groups)
    if len(live) != len(params):
        raise ValueError(f"live has {len(live)} tensors for {len(params)} trainable parameters")
    for p, t in zip(params, live, strict=True):
        if is_sharded(p) or is_sharded(t):
            raise ValueError(f"live: {label(groups, p)} or its 16-bit weights are a DTensor")
        fits = p.dtype == torch.float32 and t.dtype in (torch.bfloat16, torch.float16)
        if not fits or t.shape != p.shape or t.device != p.device:
            raise ValueError(
                f"live: {label(groups, p)}, {p.dtype} on {p.device}, does not go with "
                f"{t.dtype} of shape {tuple(t.shape)} on {t.device}"
            )
    return "master"
