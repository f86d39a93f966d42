"""``--suite host``: what a call costs the host when the tensors are many and small.

Every step operation, and three whole optimizer steps, on three lists: the 161 tensors of ResNet-50
with every dimension cut to 2, 512 tensors of 1,024 elements, 10,000 of 64. Beside each runs the
same operation on one tensor with as many elements: the difference is what the number of tensors
costs, whatever the memory does. Caches are warm: a timed call follows five of the same, as in a
tight loop; the first of the five, which follows other work, has a column of its own. There is no
eager side but torch's own foreach and fused optimizers.
"""

from __future__ import annotations

from dataclasses import replace

from sparse_optim import AdaBreg, LinBreg

from . import model_shapes as shapes
from .bregman_cases import adabreg, linbreg, linbreg_momentum, readout, whole_step
from .cases import Data, Make
from .sam_cases import sam_step
from .step_cases import norm, perturb, restore, restore_step
from .zo_cases import sums

ROUNDS, FEW = 51, 15  # calls of some microseconds; of milliseconds
MANY = 1000  # tensors
RESNET = "ResNet-50, tiny"


def lists() -> dict[str, list[tuple[int, ...]]]:
    """Shape lists by name."""
    return {
        RESNET: shapes.clipped(shapes.load("resnet50"), 2),
        "512 x 1024": [(1024,)] * 512,
        "10000 x 64": [(64,)] * 10_000,
    }


def all_cases(data: Data) -> list[Make]:
    """The same cases for a list and for the one tensor beside it."""
    makes: list[Make] = [
        lambda: linbreg(data),
        lambda: linbreg_momentum(data),
        lambda: adabreg(data),
        lambda: readout(data, "rows of 2", 2),
        lambda: norm(data),
        lambda: perturb(data),
        lambda: restore(data),
        lambda: restore_step(data, "sgd"),
        lambda: restore_step(data, "adamw"),
        lambda: sums(data, "normal", 1),
        lambda: sums(data, "rademacher", 1),
        lambda: whole_step(data, LinBreg, linbreg(data)),
        lambda: whole_step(data, AdaBreg, adabreg(data)),
        lambda: sam_step(data, "sgd"),
    ]
    rounds = ROUNDS if len(data.params) < MANY else FEW
    return [lambda make=make: replace(make(), rounds=rounds) for make in makes]  # type: ignore[misc]
