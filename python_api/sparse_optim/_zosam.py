"""ZO-SAM: sharpness-aware minimisation whose ascent direction comes from finite differences."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._directions import Probe, default_smoothing
from ._policy import Scope
from ._support import Phase, check_int, check_number, trainable
from ._sweeps import Sweeps
from ._weight_mask import MaskOfParams, Masks
from ._zo_perturbing import ZeroOrderPerturbing


class ZOSAM(ZeroOrderPerturbing):
    """SAM with the ascent direction estimated from losses: one backward a step.

    ``c_i = (L(w + delta z_i) - L(w - delta z_i)) / (2 delta)``, ``e = rho g / ||g||`` for
    ``g = sum_i c_i z_i / m``, one norm over all groups; then the base optimizer updates w with the
    gradient at ``w + e``. z is regenerated from a counter-based stream, never stored.

    Args:
        params: parameters, (name, parameter) pairs, or groups; ``rho`` may differ per group (it
            scales the group's part of e; 0 leaves the group out).
        base_optimizer_cls: optimizer class, called with the groups and ``base_kwargs``.
        rho: radius of the perturbation, >= 0; 0 switches probes off.
        num_directions: m >= 1, directions per probe (2 m forwards).
        smoothing: delta > 0; None is ``rho / sqrt(d)`` for d active entries.
        distribution: "normal", "rademacher" (+1 or -1), "sphere" (normals scaled to length
            ``sqrt(d)``, one more read-only pass), or "coordinate" (unit vectors of all active
            entries, ``num_directions`` = d <= 4096, for tests; needs a smoothing).
        seed: 64-bit base seed; None takes ``torch.initial_seed()``.
        weight_mask: bool tensors (or None entries, all ones) over the trainable parameters, or a
            BitMask; see ``set_weight_mask``.
        bn_modules: module or modules whose buffers (running statistics) probes must not change.
        perturb_scope: ``f(name, parameter) -> bool``; parameters it refuses are not perturbed.
            Names are those the groups were given, else "".
        restore: how the weights come back. "exact": from a copy of the entries that move, bit for
            bit. "replay": by taking the moves back, without memory; float32 weights drift by about
            5e-8 of their length a step (growing with the root of the steps), 16-bit ones by
            4e-4 to 4e-3. "master": see ``live``.
        allow_drift: let "replay" have 16-bit weights.
        live: 16-bit weights that the forwards use, one for every trainable parameter, which are
            then float32 masters: live weights are rounded anew from them in every sweep. Their
            gradients are taken over in ``step``.
        sync: "global": losses are averaged over the ranks, and all have the same e (one collective
            per probe; a rank without data returns None from the closure). "local": every rank has
            directions and e of its own. "none". "auto" is global where a process group exists.
        replica_group: process group of the ranks that average; None: all.
        shard_group: process group over which parameters are split (FSDP2's is found by itself):
            lengths are summed over it.
        pair_rng: give every probe forward the random state of the first, and set it back, so that
            dropout masks agree in all of them and with a run without probes.
        interval: probe in every interval-th step; the others are plain base steps.
        uids: numbers of the parameters in the random stream; default from names, else their order.
        firsts: of parameters that are shards, contiguous in row-major order, the index of their
            first element in the whole; default 0 (DTensors: their own).
        rng_rounds: Philox rounds, 10 or 7 (another stream).
        rng_math: "portable", or "fast": approximate normals on the cuda backend.
        amp_hook: False: ``GradScaler`` steps as with any optimizer and ``step`` wants the weights
            restored before (``perturbed``), as Lightning's clipping needs it.
        replay_log: record key and coefficients of every probe.
        backend: "auto", "cuda", "triton", "cpp" or "reference".
        base_kwargs: for the base optimizer.

    Raises:
        ValueError: an argument is out of range.

    State:
        The base optimizer's, under its own keys. Beside it seed, counters, uids and the packed mask
        (1/8 byte per parameter); a backup (itemsize bytes per entry that moves, reused, never
        saved).

    Note:
        Nothing of a probe comes to the host unless the closure does it. In 16-bit autocast the
        default smoothing is near the noise of the forward (``sign_check`` measures it). While a
        CUDA graph is captured ``pair_rng`` must be False.

        Several processes: under DistributedDataParallel the loss closure calls the module itself
        (the wrapper's forward communicates). With ``fully_shard`` it calls the sharded module;
        weights that a forward gathered and kept, as the root does, are given up before and after
        each one of a probe.

        Gradient accumulation: probe once and hold w + e for all backwards, or probe again for each
        micro-batch, which restores first; gradients add up either way.

    Source: ZO-SAM, arXiv 2603.13115.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = ZOSAM(model.parameters(), torch.optim.SGD, rho=0.05, seed=1, lr=0.1)
        >>> x = torch.ones(4, 2)
        >>> losses = opt.probe(lambda: model(x).square().mean())
        >>> opt.zero_grad()
        >>> model(x).square().mean().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: Any,
        base_optimizer_cls: Callable[..., Optimizer],
        rho: float = 0.05,
        num_directions: int = 1,
        smoothing: float | None = None,
        distribution: str = "normal",
        seed: int | None = None,
        *,
        weight_mask: Masks | None = None,
        bn_modules: nn.Module | Iterable[nn.Module] | None = None,
        perturb_scope: Scope | None = None,
        restore: str = "exact",
        allow_drift: bool = False,
        live: Sequence[Tensor] | None = None,
        sync: str = "auto",
        replica_group: Any = None,
        shard_group: Any = None,
        pair_rng: bool = True,
        interval: int = 1,
        uids: Sequence[int] | None = None,
        firsts: Sequence[int] | None = None,
        rng_rounds: int = 10,
        rng_math: str = "portable",
        amp_hook: bool = True,
        replay_log: bool = False,
        backend: str = "auto",
        **base_kwargs: Any,
    ) -> None:
        check_number("rho", rho, 0.0)
        self.interval = check_int("interval", interval, 1)
        self.perturb_scope = perturb_scope
        self._step_supports_amp_scaling = self.amp_hook = bool(amp_hook)
        self._steps = 0
        self._probes = 0
        self.last_step_probes = 0  #: probe forwards of the last completed step
        self.last_probe: Probe | None = None
        self._warned_autocast = self._probing = False
        self._sweeps: Sweeps | None = None
        self._first_square: Tensor | None = None
        self._own = MaskOfParams()  # what may be perturbed among the weights that exist
        defaults = {"rho": rho}
        super().__init__(params, base_optimizer_cls, defaults, base_kwargs, bn_modules, backend)
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
        """Forwards and backwards of the last completed step."""
        return 1 + self.last_step_probes, 1

    # -- one step ----------------------------------------------------------------------------

    @torch.no_grad()
    def probe(self, loss_closure: Callable[[], Any]) -> Tensor:
        """Measure the losses and move the weights to w + e; then clear, forward and backward.

        Called while perturbed it restores first and draws new directions.

        Args:
            loss_closure: runs a forward and returns the loss, a scalar; called 2 m times without
                autograd. It must not call backward.

        Returns:
            Losses [m, 2] at ``w + delta z_i`` and ``w - delta z_i``, on the device; [0, 2] where
            rho is 0 or the interval skips this step: then the weights do not move.

        Raises:
            ValueError: the closure returned no scalar. Weights are restored on every exception.
        """
        self._refuse_probing("probe")
        if self._phase is Phase.PERTURBED:
            self.restore()
        rhos = self._rhos()
        if not rhos or self._steps % self.interval:
            self._phase = Phase.IDLE
            return torch.empty(0, 2, device=self._skipped.device)
        params, draw = list(rhos), self._directions
        rho = max(rhos.values())
        delta = draw.smoothing or default_smoothing(rho, draw.num_active(params))
        self._warn_autocast(params[0].device.type)
        self._sweeps = sweeps = draw.begin("ZOSAM.probe", params)
        step = draw.counter - 1
        self._first_square = None
        self._probing, self._phase = True, Phase.PERTURBED  # the closure may ask for neither change
        try:
            losses, coef = self._estimate(loss_closure, params, delta)
            ascent = draw.ascent(coef, rho, delta, sweeps, self._first_square)
            gammas = {p: r / rho for p, r in rhos.items()} if len(set(rhos.values())) > 1 else None
            sweeps.to(ascent, list(range(len(ascent))), gammas=gammas)
            self._record(sweeps.key, ascent, params, None, gammas)
            self._moved = sweeps.moved()
        except BaseException:
            self._put_back()
            self._phase = Phase.IDLE
            raise
        finally:
            self._probing = False
        self._guard.drop()  # the training forward does advance the statistics
        self.last_probe = Probe(losses, coef, delta, sweeps.key, step, ascent)
        self._probes += losses.numel()
        return losses

    def _estimate(
        self, loss_closure: Callable[[], Any], params: list[Tensor], delta: float
    ) -> tuple[Tensor, Tensor]:
        """Losses [m, 2] and slopes [m] along the directions of the key just drawn."""
        assert self._sweeps is not None
        losses, self._first_square = self._directions.losses(
            "ZOSAM.probe", loss_closure, self._sweeps, delta, self._guard,
            lambda: len(trainable(self.param_groups)), training_forward_follows=True,
        )  # fmt: skip
        return losses, self._directions.coefficients(losses, delta)

    def _check_targets(self) -> tuple[list[Tensor], float]:
        self._refuse_perturbed("sign_check")
        rhos = self._rhos()
        if not rhos:
            raise RuntimeError("ZOSAM.sign_check: nothing is perturbed")
        params, draw = list(rhos), self._directions
        rho = max(rhos.values())
        return params, draw.smoothing or default_smoothing(rho, draw.num_active(params))

    def _put_back(self) -> None:
        sweeps, self._sweeps = self._sweeps, None
        if self._probing and sweeps is not None:  # an exception: wherever the weights are now
            self._moved = []
            sweeps.restore()
        super()._put_back()

    def restore(self) -> None:
        """Give the weights their bits back and return to the idle phase without an update.

        Raises:
            RuntimeError: called by the loss closure of a probe.
        """
        self._refuse_probing("restore")
        super().restore()

    def _warn_autocast(self, device: str) -> None:
        if self._directions.smoothing is not None or self._warned_autocast:
            return
        if torch.is_autocast_enabled(device):
            self._warned_autocast = True
            warnings.warn(
                "ZOSAM: under 16-bit autocast the default smoothing is below the noise of the "
                "forward; use smoothing=1e-3 or a loss closure in float32",
                stacklevel=3,
            )

    @contextlib.contextmanager
    def perturbed(self, loss_closure: Callable[[], Any]) -> Iterator[None]:
        """Probe, hold the weights at w + e inside the block, restore on every way out.

        ``step()`` afterwards makes the update; after an exception there is none to make.

        Args:
            loss_closure: as in ``probe``.
        """
        self.probe(loss_closure)
        with self._hold():
            yield

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss_closure: Callable[[], Any] | None = None,
    ) -> Any:
        """Restore the weights and update them with the gradients in ``.grad``.

        With both closures it is a whole step: ``probe(loss_closure)``, ``closure()`` with grad mode
        on (it clears gradients, runs forward and backward and returns the loss), restore, update.
        In the idle phase without closures it is a plain base step.

        Returns:
            The closure's value, or None.

        Raises:
            RuntimeError: a closure without ``loss_closure`` in the idle phase (one that calls
                backward cannot serve as a probe), or the reverse.
        """
        self._refuse_probing("step")
        if loss_closure is not None and closure is None:
            raise RuntimeError("ZOSAM.step: loss_closure needs a closure beside it; or call probe")
        if loss_closure is not None:
            self.probe(loss_closure)
        elif closure is not None and self._phase is not Phase.PERTURBED:
            raise RuntimeError(
                "ZOSAM.step: a closure needs loss_closure beside it, or probe before"
            )
        if not self.amp_hook and closure is None and self._phase is Phase.PERTURBED:
            raise RuntimeError(
                "ZOSAM.step: amp_hook=False needs the backward inside perturbed(), which restores"
            )
        value = None
        if closure is not None:
            with self._hold(), torch.enable_grad():
                value = closure()
        self._update()
        self._steps += 1
        self.last_step_probes, self._probes = self._probes, 0
        return value
