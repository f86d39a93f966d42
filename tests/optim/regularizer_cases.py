"""Regularisers, weights they fit, and steps, shared by the tests of the Bregman optimizers."""

import torch
from sparse_optim import AdaBreg, LinBreg
from torch import nn

ENTRIES = {"l1": {"reg": "l1"}, "l1_pos": {"reg": "l1_pos"}}
GROUPED = {
    "rows": {"reg": "l1_l2", "groups": "rows"},
    "kernels": {"reg": "l1_l2", "groups": "kernels"},
    "filters": {"reg": "l1_l2", "groups": "filters"},
    "blocks": {"reg": "l1_l2", "groups": "blocks", "block": (3, 4)},
    "sparse_rows": {"reg": "sparse_group", "groups": "rows", "l1_ratio": 0.4},
    "sparse_blocks": {"reg": "sparse_group", "groups": "blocks", "block": (2, 5)},
}
REGS = {**ENTRIES, **GROUPED}
#: lr is small enough for groups to stay alive for some steps, large enough for births
OPTIMIZERS = [
    (LinBreg, {"lr": 0.1}),
    (LinBreg, {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    (LinBreg, {"lr": 0.2, "momentum": 0.5, "momentum_form": "ema"}),
    (AdaBreg, {"lr": 0.1, "betas": (0.5, 0.9)}),
]
_SHAPES = {"kernels": (5, 4, 3, 3), "filters": (9, 2, 3, 3)}


def weight(case, dtype=torch.float32, seed=3):
    """A weight with about two thirds of its units zero."""
    generator = torch.Generator().manual_seed(seed)
    shape = _SHAPES.get(case, (10, 7))  # blocks are ragged at both edges
    w = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.8
    units = torch.rand(unit_shape(case, shape), generator=generator) < 0.35
    w = w * spread(case, units, shape)
    if case == "l1_pos":
        w = w.abs()
    if case.startswith("sparse"):
        w = w * (torch.rand(shape, generator=generator) < 0.7)
    return nn.Parameter((w + 0.0).to(dtype))  # no -0.0


def _tile(case, shape):
    """Height and width of a group of the weight as a matrix [shape[0], rest]."""
    if case in ("l1", "l1_pos", "nuclear"):
        return 1, 1
    if case == "kernels":
        return 1, shape[2] * shape[3]
    cols = 1
    for n in shape[1:]:
        cols *= n
    return REGS[case].get("block", (1, cols))


def unit_shape(case, shape):
    height, width = _tile(case, shape)
    cols = torch.empty(shape, device="meta").flatten(1).shape[1]
    return -(-shape[0] // height), -(-cols // width)


def spread(case, units, shape):
    """One value per group to one per entry."""
    height, width = _tile(case, shape)
    wide = units.repeat_interleave(height, 0)[: shape[0]].repeat_interleave(width, 1)
    return wide[:, : torch.empty(shape, device="meta").flatten(1).shape[1]].reshape(shape)


def group_sums(case, x):
    """Sum over the group of every entry, by plain loops over tiles."""
    height, width = _tile(case, x.shape)
    flat = x.flatten(1)
    out = torch.empty_like(flat)
    for top in range(0, flat.shape[0], height):
        for left in range(0, flat.shape[1], width):
            tile = (slice(top, top + height), slice(left, left + width))
            out[tile] = flat[tile].sum()
    return out.reshape(x.shape)


def threshold(case, lam):
    """Thresholds of entries and of groups."""
    share = REGS[case].get("l1_ratio", 0.5) if case.startswith("sparse") else 0.0
    return share * lam, (1.0 - share) * lam


def drive(opts, params, steps, dtype=None, seed=9, scale=1.5, off=None):
    """Same gradients for several optimizers of one parameter each; the weights after each step."""
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(steps):
        grad = torch.randn(params[0].shape, generator=generator, dtype=torch.float64) * scale
        for opt, p in zip(opts, params, strict=True):
            p.grad = grad.to(dtype or p.dtype).to(p.dtype)
            if off is not None:
                off(opt, p)
            opt.step()
        seen.append([p.detach().clone() for p in params])
    return seen
