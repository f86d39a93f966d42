"""What a zero-order run was: keys and coefficients, from which its moves are made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import zo_combine_

from ._bitmask import BitMask
from ._shards import local_of
from ._support import same_tensors

_VERSION = 1
_TOGETHER = 1024  # records whose small tensors are joined into one


@dataclass(frozen=True)
class _Setting:
    """What steps have in common: which parameters move, which factors are whose, which mask."""

    params: tuple[int, ...]
    kinds: tuple[int, ...]  # of each parameter: which of the step's pairs (alpha, gamma)
    mask: int | None  # number of the mask


class ReplayLog:
    """Keys and coefficients of every step, and no weights.

    8 q + 12 bytes a step, and 16 for every group that decays or has a learning rate of its own.
    Masks are stored once per change.

    MeZO: ``replay_`` takes initial weights to the trained ones, bit for bit (with
    ``restore="replay"`` up to its drift). ZO-SAM: ``perturbation`` gives the e of a step.

    Records stay on the device until ``state_dict``.

    Source: the remark on storage in MeZO, arXiv 2305.17333, section 2.1.

    Example:
        >>> from sparse_optim import MeZO
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> opt = MeZO([w], lr=0.1, seed=0, replay_log=True)
        >>> for _ in range(5):
        ...     loss = opt.step(lambda: w.square().sum())
        >>> again = torch.ones(3)
        >>> opt.replay_log.replay_([again])
        >>> torch.equal(again, w)
        True
    """

    def __init__(self, distribution: str, rounds: int, math: str) -> None:
        self.distribution, self.rounds, self.math = distribution, rounds, math
        self.uids: list[int] = []
        self.firsts: list[int] = []
        self._settings: list[_Setting] = []
        self._masks: list[BitMask] = []
        self._which: list[int] = []
        self._factors: list[tuple[tuple[float, float], ...]] = []
        self._keys: list[Tensor] = []
        self._coefs: list[Tensor] = []
        self._joined = 0

    def __len__(self) -> int:
        return len(self._which)

    def record(
        self,
        key: Tensor,
        coef: Tensor,
        params: Sequence[int],
        alphas: Sequence[float] | None,
        gammas: Sequence[float] | None,
        mask: BitMask | None,
    ) -> None:
        """Add a step; ``params`` are positions among all parameters, the rest goes with them."""
        ones = [1.0] * len(params)
        pairs = list(zip(alphas or ones, gammas or ones, strict=True))
        kinds = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        own = _Setting(tuple(params), tuple(kinds[pair] for pair in pairs), self._number(mask))
        if not self._settings or self._settings[-1] != own:
            self._settings.append(own)
        self._which.append(len(self._settings) - 1)
        self._factors.append(tuple(kinds))
        self._keys.append(key.reshape(1).clone())
        self._coefs.append(coef.reshape(1, -1).clone())
        if len(self._keys) - self._joined >= _TOGETHER:
            self._join()

    def _number(self, mask: BitMask | None) -> int | None:
        """Of a mask among those seen; masks are the same if their words are the same tensors."""
        if mask is None:
            return None
        if not self._masks or not same_tensors(self._masks[-1].words, mask.words):
            self._masks.append(mask)
        return len(self._masks) - 1

    def _join(self) -> None:
        for part in (self._keys, self._coefs):
            part[self._joined :] = [torch.cat(part[self._joined :])] if part[self._joined :] else []
        self._joined = len(self._keys)

    @property
    def keys(self) -> Tensor:
        """int64 [steps]: bits of the step keys."""
        return torch.cat(self._keys) if self._keys else torch.zeros(0, dtype=torch.int64)

    @property
    def coefs(self) -> Tensor:
        """float64 [steps, q]: coefficients of the drawn directions."""
        return torch.cat(self._coefs) if self._coefs else torch.zeros(0, 0, dtype=torch.float64)

    # -- moves -------------------------------------------------------------------------------

    def _move(
        self, tensors: Sequence[Tensor], step: int, key: Tensor, coef: Tensor, backend: str | None
    ) -> None:  # fmt: skip
        setting, pairs = self._settings[self._which[step]], self._factors[step]
        at, plain = setting.params, set(pairs) == {(1.0, 1.0)}
        alphas, gammas = ([pairs[k][i] for k in setting.kinds] for i in (0, 1))
        zo_combine_(
            [local_of(tensors[i]) for i in at], coef, seed=key, uids=[self.uids[i] for i in at],
            firsts=[self.firsts[i] for i in at], distribution=self.distribution,
            rounds=self.rounds, rng_math=self.math, alpha=None if plain else alphas,
            gamma=None if plain else gammas, backend=backend,
            mask=None if setting.mask is None else list(self._masks[setting.mask].words),
        )  # fmt: skip

    def _check(self, params: Sequence[Tensor]) -> None:
        if len(params) != len(self.uids):
            raise ValueError(f"the log is of {len(self.uids)} parameters, got {len(params)}")

    @torch.no_grad()
    def replay_(
        self, params: Sequence[Tensor], steps: int | None = None, backend: str | None = None
    ) -> None:
        """Make the first ``steps`` recorded moves (default all) on ``params``.

        Args:
            params: all parameters of the optimizer in group order, with the values they had when
                the log began (mutated).
            steps: number of steps.
            backend: "auto", "cuda", "triton", "cpp" or "reference".

        Raises:
            ValueError: the number of parameters or of steps does not fit.
        """
        self._check(params)
        count = len(self) if steps is None else steps
        if not 0 <= count <= len(self):
            raise ValueError(f"steps must be in [0, {len(self)}], got {steps}")
        if count == 0:
            return
        home = params[0].device
        keys, coefs = self.keys.to(home), self.coefs.to(home)
        for i in range(count):
            self._move(params, i, keys[i], coefs[i], backend)

    @torch.no_grad()
    def perturbation(
        self, step: int, params: Sequence[Tensor], backend: str | None = None
    ) -> list[Tensor]:
        """The move of one step alone: e for ZO-SAM; nothing in ``params`` changes.

        Args:
            step: number of the record, from 0.
            params: all parameters of the optimizer in group order, for shapes, dtypes and devices.
            backend: "auto", "cuda", "triton", "cpp" or "reference".

        Returns:
            One tensor per parameter, 0 where it did not move.

        Raises:
            ValueError: the number of parameters does not fit.
            IndexError: there is no such step.
        """
        self._check(params)
        key, coef = self.keys[step], self.coefs[step]
        moves = [torch.zeros_like(p, requires_grad=False) for p in params]
        self._move(moves, step, key, coef, backend)
        return moves

    # -- files -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; ``torch.load(weights_only=True)`` reads them from a file."""
        settings = [
            {"params": list(s.params), "kinds": list(s.kinds), "mask": s.mask}
            for s in self._settings
        ]
        return {
            "version": _VERSION, "distribution": self.distribution, "rounds": self.rounds,
            "math": self.math, "uids": list(self.uids), "firsts": list(self.firsts),
            "keys": self.keys.cpu(), "coefs": self.coefs.cpu(),
            "which": torch.tensor(self._which, dtype=torch.int32), "settings": settings,
            "factors": self._factor_table(), "masks": [m.state() for m in self._masks],
        }  # fmt: skip

    def _factor_table(self) -> Tensor | None:
        """float64 [steps, most pairs, 2]; None where every factor is 1."""
        if all(pairs == ((1.0, 1.0),) for pairs in self._factors):
            return None
        most = max(map(len, self._factors))
        rows = [list(p) + [(1.0, 1.0)] * (most - len(p)) for p in self._factors]
        return torch.tensor(rows, dtype=torch.float64)

    @classmethod
    def from_state(cls, state: dict[str, Any], device: str | torch.device = "cpu") -> ReplayLog:
        """The log that ``state_dict`` wrote, for parameters on a device.

        Raises:
            ValueError: another format version.
        """
        if state.get("version") != _VERSION:
            raise ValueError(f"replay log of version {state.get('version')}, expected {_VERSION}")
        log = cls(state["distribution"], state["rounds"], state["math"])
        log.uids, log.firsts = list(state["uids"]), list(state["firsts"])
        for s in state["settings"]:
            log._settings.append(_Setting(tuple(s["params"]), tuple(s["kinds"]), s["mask"]))
        for mask in state["masks"]:
            devices = [torch.device(device)] * len(mask["words"])
            log._masks.append(BitMask.from_state(mask, devices))
        log._which = state["which"].tolist()
        factors = state["factors"]
        if factors is None:
            log._factors = [((1.0, 1.0),)] * len(log._which)
        else:
            log._factors = [tuple((a, g) for a, g in row) for row in factors.tolist()]
        if log._which:
            log._keys, log._coefs = [state["keys"]], [state["coefs"]]
            log._joined = 1
        return log
