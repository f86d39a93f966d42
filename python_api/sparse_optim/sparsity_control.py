"""Control of sparsity: lam from a target, by feedback or by ranking; ramps of a target."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparse_kernels import kth_largest

from ._bregman import BregmanOptimizer
from ._capturable import set_number
from ._lam_transfer import check_transfer
from ._proxsgd import ProxSGD
from ._regularizers import ENTRYWISE, GROUPED, group_norms, group_sizes, tiling
from ._support import check_int, check_number

__all__ = ["CubicRamp", "FeedbackLambda", "QuantileLambda"]

# lam must kill what it was taken from: quotients by lam_scale are rounded in float64, and kernels
# add the squares of a group in float32
_ABOVE, _ABOVE_GROUPS = 1.0 + 2.0**-51, 1.0 + 2.0**-19


def check_target(name: str, value: Any) -> float:
    """Return a sparsity; ValueError unless it is in [0, 1)."""
    number = check_number(name, value, 0.0)
    if number >= 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return number


class CubicRamp:
    """A number that moves fast at first and slowly at the end.

    ``s(t) = end + (start - end)(1 - x)^3``, ``x = clamp((t - t0) / (t1 - t0), 0, 1)``.

    Args:
        start, end: values before t0 and after t1.
        t0, t1: times, t0 < t1; in the unit of what is asked for, here optimizer steps.

    Raises:
        ValueError: a number is not finite, or t0 >= t1.

    Source: Zhu and Gupta, arXiv 1710.01878, equation of the sparsity schedule.

    Example:
        >>> ramp = CubicRamp(0.0, 0.8, 0, 10)
        >>> [round(ramp(t), 3) for t in (0, 5, 10)]
        [0.0, 0.7, 0.8]
    """

    def __init__(self, start: float, end: float, t0: float, t1: float) -> None:
        self.start = check_number("start", start, -math.inf)
        self.end = check_number("end", end, -math.inf)
        self.t0, self.t1 = check_number("t0", t0, -math.inf), check_number("t1", t1, -math.inf)
        if not self.t0 < self.t1:
            raise ValueError(f"t0 must be below t1, got {t0} and {t1}")

    def __call__(self, t: float) -> float:
        """Value at time t."""
        x = min(max((t - self.t0) / (self.t1 - self.t0), 0.0), 1.0)
        return self.end + (self.start - self.end) * (1.0 - x) ** 3


def _controlled(opt: BregmanOptimizer) -> list[dict[str, Any]]:
    groups = [g for g in opt.param_groups if g["reg"] != "none"]
    if not groups:
        raise ValueError("there is nothing to control: no group has a regulariser")
    return groups


class FeedbackLambda:
    """Raise lam while the network is too dense, lower it while it is too sparse.

    Call ``step`` after every optimizer step. Every ``every`` full steps, with
    ``gap = target - sparsity``, lam is multiplied (gap > 0) or divided by
    ``1 + gain gain_decay^max(C - 1, 0) |gap|``, C being how often the gap has changed its sign.

    Args:
        opt: ``LinBreg``, ``AdaBreg`` or ``ProxSGD``; the lam of all its regularised groups is set
            to one value, which each group's ``lam_scale`` multiplies.
        target: fraction of the regularised entries that shall be zero, in [0, 1).
        every: full steps between two changes; 1 with coarse steps, where full steps are rare.
        gain, gain_decay: > 0, in (0, 1].
        min_lam, max_lam: bounds of lam, > 0.
        target_ramp: called with the number of steps taken, in place of a constant target.
        transfer: what becomes of the duals: "keep" (lam then acts on live weights at once) or
            "auto". "rescale" gives lam no hold on live weights: the loop winds up; it warns.

    Raises:
        ValueError: an argument is out of range.

    Source: arXiv 2605.07892, adaptive lam.

    Example:
        >>> import torch
        >>> from sparse_optim import LinBreg
        >>> w = torch.nn.Parameter(torch.zeros(4))
        >>> opt = LinBreg([w], lr=1.0, reg="l1", lam=0.1)
        >>> control = FeedbackLambda(opt, 0.5, every=1)
        >>> w.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> opt.step(); control.step(); round(control.lam, 3)
        0.15
    """

    def __init__(
        self,
        opt: BregmanOptimizer,
        target: float,
        every: int = 50,
        gain: float = 1.0,
        gain_decay: float = 0.95,
        min_lam: float = 1e-6,
        max_lam: float = 1e3,
        target_ramp: Callable[[float], float] | None = None,
        transfer: str = "keep",
    ) -> None:
        self.opt, self.target = opt, check_target("target", target)
        self.every = check_int("every", every, 1)
        self.gain = check_number("gain", gain, 0.0, strict=True)
        self.gain_decay = check_number("gain_decay", gain_decay, 0.0, 1.0, strict=True)
        self.min_lam = check_number("min_lam", min_lam, 0.0, strict=True)
        self.max_lam = check_number("max_lam", max_lam, self.min_lam)
        self.target_ramp, self.transfer = target_ramp, transfer
        check_transfer(transfer)
        if transfer == "rescale":
            warnings.warn(
                "FeedbackLambda: with transfer='rescale' lam does not act on live weights, and the "
                "loop winds up", stacklevel=2,
            )  # fmt: skip
        lams = {float(g["lam"]) for g in _controlled(opt)}
        if len(lams) != 1:
            raise ValueError(f"the groups start with several lam, {sorted(lams)}: use lam_scale")
        self.lam = min(max(lams.pop(), self.min_lam), self.max_lam)
        self.full_steps = self.crossings = 0
        self.steps_seen = opt.steps_taken
        self.last_gap = 0.0

    def step(self) -> None:
        """Count the optimizer's last step and change lam where it is due; reads the device then."""
        opt = self.opt
        executed = opt.steps_taken != self.steps_seen  # a loss scaler may have skipped the step
        self.steps_seen = opt.steps_taken
        if not executed or opt.last_was_coarse:
            return
        self.full_steps += 1
        if self.full_steps % self.every:
            return
        target = self.target
        if self.target_ramp is not None:
            target = check_target("target_ramp", self.target_ramp(opt.steps_taken))
        gap = target - opt.sparsity()
        if gap * self.last_gap < 0.0:
            self.crossings += 1
        if gap != 0.0:
            self.last_gap = gap
        factor = 1.0 + self.gain * self.gain_decay ** max(self.crossings - 1, 0) * abs(gap)
        lam = self.lam * factor if gap > 0.0 else self.lam / factor
        self.lam = min(max(lam, self.min_lam), self.max_lam)
        transfer = "keep" if isinstance(opt, ProxSGD) else self.transfer
        opt.set_lam(self.lam, transfer=transfer)

    _SAVED = (
        "target", "every", "gain", "gain_decay", "min_lam", "max_lam", "transfer", "lam",
        "full_steps", "crossings", "last_gap", "steps_seen",
    )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and names; the ramp is not among them."""
        return {name: getattr(self, name) for name in self._SAVED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved controller stood.

        Raises:
            ValueError: a field is missing.
        """
        missing = [name for name in self._SAVED if name not in state]
        if missing:
            raise ValueError(f"FeedbackLambda.load_state_dict: {missing[0]} is missing")
        for name in self._SAVED:
            setattr(self, name, state[name])


class QuantileLambda:
    """Set lam so that exactly the wanted number of entries is live, between dual step and readout.

    ``K = round((1 - target) N)`` entries stay: lam becomes the (K + 1)-th largest
    ``|dual| / lam_scale`` of all N regularised entries (ties at lam die). With group regularisers
    units are ranked by ``|v_g| / sqrt(n_g)`` and their entries counted, so that up to one unit
    fewer than K entries stay. Live weights follow lam at once, as with ``transfer="keep"``.

    Args:
        opt: ``LinBreg`` or ``AdaBreg``; this object hooks itself into its full steps.
        target: fraction of the regularised entries that is zero after a full step, in [0, 1).
        every: full steps between two changes of lam.
        target_ramp: called with the number of steps taken, in place of a constant target.

    Raises:
        ValueError: an argument is out of range, the optimizer has such a controller already, has no
            duals or a regulariser that does not threshold entries or groups.

    Note:
        One number comes to the host per change: lam is an argument of the kernels.

    Example:
        >>> import torch
        >>> from sparse_optim import LinBreg
        >>> w = torch.nn.Parameter(torch.zeros(4))
        >>> opt = LinBreg([w], lr=1.0, reg="l1", lam=0.1)
        >>> control = QuantileLambda(opt, 0.5)
        >>> w.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> opt.step(); w.data
        tensor([ 0.,  0., -1., -2.])
    """

    def __init__(
        self,
        opt: BregmanOptimizer,
        target: float,
        every: int = 1,
        target_ramp: Callable[[float], float] | None = None,
    ) -> None:
        self.opt, self.target = opt, check_target("target", target)
        self.every, self.target_ramp = check_int("every", every, 1), target_ramp
        if isinstance(opt, ProxSGD):
            raise ValueError("QuantileLambda ranks duals, which ProxSGD does not have")
        for g in _controlled(opt):
            if g["reg"] not in (*ENTRYWISE, *GROUPED) or g["reg"] == "sparse_group":
                raise ValueError(f"QuantileLambda has no ranking for reg {g['reg']!r}")
            if g["fine_scale"] != 1.0:
                raise ValueError(
                    "QuantileLambda sets lam after the step, fine_scale caps it at lam"
                )
        if opt._readout_hook is not None:
            raise ValueError("the optimizer has a QuantileLambda already")
        opt._readout_hook = self._choose
        self.full_steps = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.opt._readout_hook = self._choose  # copies of an optimizer have none

    def remove(self) -> None:
        """Leave lam as it is from now on."""
        self.opt._readout_hook = None

    @property
    def lam(self) -> float:
        """The lam in force."""
        return float(_controlled(self.opt)[0]["lam"])

    def _choose(self) -> None:
        """Between the dual updates of a full step and its readouts."""
        due, self.full_steps = self.full_steps % self.every == 0, self.full_steps + 1
        if not due:
            return
        target = self.target
        if self.target_ramp is not None:
            target = check_target("target_ramp", self.target_ramp(self.opt.steps_taken + 1))
        lam = self._threshold(target)
        for g in _controlled(self.opt):
            set_number(g, "lam", lam)

    def _threshold(self, target: float) -> float:
        state = self.opt._own
        own = [
            (g, state[p]["dual"])
            for g in _controlled(self.opt)
            for p in g["params"]
            if "dual" in state.get(p, {}) and p.numel()
        ]
        total = sum(dual.numel() for _, dual in own)
        keep = math.floor((1.0 - target) * total + 0.5)
        if keep >= total:
            return 0.0
        if all(g["reg"] == "l1" and g["lam_scale"] == 1.0 for g, _ in own):
            scores = [dual for _, dual in own]
            return float(kth_largest(scores, keep + 1, kind="abs", backend=self.opt.backend))
        home = own[0][1].device
        scores = [_spread_scores(g, dual).to(home) for g, dual in own]
        above = _ABOVE_GROUPS if any(g["reg"] in GROUPED for g, _ in own) else _ABOVE
        return max(float(kth_largest(scores, keep + 1, backend=self.opt.backend)), 0.0) * above

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; the ramp is not among them."""
        return {"target": self.target, "every": self.every, "full_steps": self.full_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved controller stood.

        Raises:
            ValueError: a field is missing.
        """
        for name in ("target", "every", "full_steps"):
            if name not in state:
                raise ValueError(f"QuantileLambda.load_state_dict: {name} is missing")
            setattr(self, name, state[name])


def _spread_scores(group: dict[str, Any], dual: Tensor) -> Tensor:
    """The lam at which every entry dies, float64: groups die together."""
    dual = dual.double()
    if group["reg"] in ENTRYWISE:
        return (dual if group["reg"] == "l1_pos" else dual.abs()) / group["lam_scale"]
    tiles = tiling(group, dual)
    roots = group_sizes(dual, tiles).sqrt()
    return group_norms(dual, tiles) / roots / group["lam_scale"]
