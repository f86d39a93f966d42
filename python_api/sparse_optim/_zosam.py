"""ZO-SAM: sharpness-aware minimisation whose ascent direction comes from finite differences."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_kernels import zo_combine_

from ._backup import Moved
from ._base import PerturbingOptimizer
from ._bitmask import BitMask
from ._directions import DirectionReport, Directions, Probe, default_smoothing
from ._support import Phase, check_int, check_number, trainable


class ZOSAM(DirectionReport, PerturbingOptimizer):
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
        distribution: "normal" or "rademacher".
        seed: 64-bit base seed; None takes ``torch.initial_seed()``.
        weight_mask: bool tensors (or None entries, all ones) over the trainable parameters, or a
            BitMask; see ``set_weight_mask``.
        bn_modules: module or modules whose buffers (running statistics) probes must not change.
        pair_rng: give every probe forward the random state of the first, and set it back, so that
            dropout masks agree in all of them and with a run without probes.
        interval: probe in every interval-th step; the others are plain base steps.
        uids: numbers of the parameters in the random stream; default from names, else their order.
        rng_rounds: Philox rounds, 10 or 7 (another stream).
        restore: "exact": weights come back from a copy, bit for bit. The only mode.
        backend: "auto", "cuda", "triton", "cpp" or "reference".
        base_kwargs: for the base optimizer.

    Raises:
        ValueError: an argument is out of range.

    State:
        The base optimizer's, under its own keys. Beside it seed, counters, uids and the packed mask
        (1/8 byte per parameter); a backup (itemsize bytes per parameter, reused, never saved).

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
        weight_mask: Sequence[Tensor | None] | BitMask | None = None,
        bn_modules: nn.Module | Iterable[nn.Module] | None = None,
        pair_rng: bool = True,
        interval: int = 1,
        uids: Sequence[int] | None = None,
        rng_rounds: int = 10,
        restore: str = "exact",
        backend: str = "auto",
        **base_kwargs: Any,
    ) -> None:
        if restore != "exact":
            raise ValueError(f"restore must be 'exact', got {restore!r}")
        check_number("rho", rho, 0.0)
        self.interval = check_int("interval", interval, 1)
        self._steps = 0
        self._probes = 0
        self.last_step_probes = 0  #: probe forwards of the last completed step
        self.last_probe: Probe | None = None
        self._warned_autocast = False
        self._directions = Directions(
            num_directions, smoothing, distribution, seed, rng_rounds, pair_rng, backend
        )
        defaults = {"rho": rho}
        super().__init__(params, base_optimizer_cls, defaults, base_kwargs, bn_modules, backend)
        self._weights = self._directions.weights  # one mask: of the weights and of the directions
        self._directions.assign_uids(self.param_groups, uids)
        if weight_mask is not None:
            self.set_weight_mask(weight_mask)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_number("rho", group["rho"], 0.0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters get the next numbers of the stream and no mask.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: an option is out of range.
        """
        super().add_param_group(param_group)
        if "base_optimizer" in self.__dict__:
            self._directions.assign_uids(self.param_groups, None)

    # -- what is perturbed -------------------------------------------------------------------

    def _rhos(self) -> dict[Tensor, float]:
        """Radius of every parameter that is perturbed."""
        rho_of = {
            p: check_number("rho", g["rho"], 0.0) for g in self.param_groups for p in g["params"]
        }
        return {p: rho_of[p] for p in trainable(self.param_groups) if rho_of[p] > 0.0}

    @property
    def num_active(self) -> int:
        """d, entries that are perturbed."""
        return self._directions.num_active(list(self._rhos()))

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
        backups = self._copies.of(params)
        self._moved = [Moved(params, backups, draw.words(params))]
        try:
            losses, key, sumsq = draw.losses(
                "ZOSAM.probe", loss_closure, params, backups, delta, self._guard, True
            )
            coef = draw.coefficients(losses, delta)
            ascent = draw.ascent(coef, rho, delta, params, key, sumsq)
            factors = None
            if len(set(rhos.values())) > 1:
                factors = [r / rho for r in rhos.values()]
            zo_combine_(params, ascent, src=backups, gamma=factors, **draw.stream(params, key))
        except BaseException:
            self.restore()
            raise
        self._guard.drop()  # the training forward does advance the statistics
        self.last_probe = Probe(losses, coef, delta, key, draw.probe_count - 1, ascent)
        self._phase = Phase.PERTURBED
        self._probes += losses.numel()
        return losses

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
        if loss_closure is not None and closure is None:
            raise RuntimeError("ZOSAM.step: loss_closure needs a closure beside it; or call probe")
        if loss_closure is not None:
            self.probe(loss_closure)
        elif closure is not None and self._phase is not Phase.PERTURBED:
            raise RuntimeError(
                "ZOSAM.step: a closure needs loss_closure beside it, or probe before"
            )
        value = None
        if closure is not None:
            with self._hold(), torch.enable_grad():
                value = closure()
        self._update()
        self._steps += 1
        self.last_step_probes, self._probes = self._probes, 0
        return value

    # -- checkpoints -------------------------------------------------------------------------

    def _extra_state(self) -> dict[str, Any]:
        own = {"steps": self._steps, "directions": self._directions.state(self.param_groups)}
        return {**super()._extra_state(), **own}

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        where = "ZOSAM.load_state_dict"
        self._directions.load(where, self.param_groups, extra["directions"])
        super()._load_extra_state(extra)
        self._steps = extra["steps"]
