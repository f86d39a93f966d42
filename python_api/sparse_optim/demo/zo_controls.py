"""Controls for ZO-SAM: the same direction and length, another sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import zo_key_

from .. import ZOSAM
from .._policy import MASK_STREAM

SIGN_STREAM = MASK_STREAM + 0x100  # the optimizers' own uses count up from MASK_STREAM
_BITS = 64  # of a key


class RandomSignZOSAM(ZOSAM):
    """ZO-SAM that does not look: ``e = ±rho z / ||z||`` with a sign drawn at random, no probes.

    Of one direction ZO-SAM keeps the sign of a difference of losses and nothing else, so what this
    optimizer lacks is all that its two forwards can have bought. Arguments as of ``ZOSAM``; several
    directions are added up with a sign each.
    """

    def _estimate(
        self, loss_closure: Callable[[], Any], params: list[Tensor], delta: float
    ) -> tuple[Tensor, Tensor]:
        """No losses [0, 2], and signs [m]: the bits of keys of a stream of their own."""
        draw, home = self._directions, params[0].device
        places = torch.arange(_BITS, device=home)
        bits = []
        for word in range(-(-self.num_directions // _BITS)):
            step = draw.counter - 1  # of the directions' key; a copy, for drawing counts it up
            key = torch.empty_like(step)
            zo_key_(key, step, draw.seed_word, stream=SIGN_STREAM + word, backend=draw.backend)
            bits.append(key >> places & 1)
        signs = 1.0 - 2.0 * torch.cat(bits)[: self.num_directions].double()
        return torch.empty(0, 2, device=home), signs


class DownhillZOSAM(ZOSAM):
    """ZO-SAM that steps to the side where the loss is lower; arguments as of ``ZOSAM``."""

    def _estimate(
        self, loss_closure: Callable[[], Any], params: list[Tensor], delta: float
    ) -> tuple[Tensor, Tensor]:
        """The losses of ZO-SAM and its coefficients, negated."""
        losses, coef = super()._estimate(loss_closure, params, delta)
        return losses, -coef


#: by name of the option ``sign``
SIGNS: dict[str, type[ZOSAM]] = {
    "uphill": ZOSAM,
    "random": RandomSignZOSAM,
    "downhill": DownhillZOSAM,
}
