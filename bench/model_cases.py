"""``--suite models``: one step of each optimizer over the parameter lists of whole models.

The lists are those of shapes/*.json. Every weight takes part, biases and norms included; masks
cover half of them. Forward and backward are left out: gradients stay as they are.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import torch
from sparse_optim import AdaBreg, LinBreg, ProxSGD

from .bregman_cases import adabreg, linbreg, linbreg_momentum, proximal, whole_step
from .cases import Data, Make
from .model_shapes import MODELS, total
from .sam_cases import MASKS, sam_step, ssam_step
from .zo_cases import mezo_step, zosam_step

#: what a row needs at most, in lists of the model's size: data, ours, eager, compiled
COPIES = 18
DEFAULT = {"cpu": ("resnet50", "vit_b_16"), "cuda": MODELS}


def all_cases(data: Data) -> list[Make]:
    """Cases to be made one at a time: each holds several copies of the parameters."""
    momentum = {"momentum": 0.9}
    made: list[Make] = [
        lambda: replace(sam_step(data, "sgd"), target=None),
        lambda: sam_step(data, "adamw"),
        lambda: ssam_step(data, MASKS[0]),
        lambda: whole_step(data, LinBreg, linbreg(data)),
        lambda: whole_step(data, LinBreg, linbreg_momentum(data), **momentum),
        lambda: whole_step(data, AdaBreg, adabreg(data)),
        lambda: whole_step(data, ProxSGD, proximal(data), **momentum),
    ]
    if data.size < 4:
        return made
    return [*made, lambda: mezo_step(data, "exact"), lambda: zosam_step(data)]


def free_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fits(name: str, shapes: list[tuple[int, ...]], device: str) -> bool:
    """Whether there is memory for a model; if not, that is said on stderr."""
    need = 4 * COPIES * total(shapes)
    if need <= free_memory(device):
        return True
    print(f"{name}: left out, needs about {need / 1e9:.0f} GB of free memory", file=sys.stderr)
    return False
