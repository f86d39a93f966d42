"""Variance-preserving sparse initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparse_kernels import Tiling

from ._param_groups import regularized_weights, usual_groups
from ._regularizers import check_options, check_tensor, spread_tiles, tiling
from ._support import check_number


def _fan_in_and_outputs(module: nn.Module, weight: Tensor) -> tuple[int, int]:
    """Inputs of one output, and number of outputs."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        # stored as [inputs, outputs per group, ...]
        inputs = weight.shape[0] // module.groups
        return inputs * weight[0, 0].numel(), module.out_channels
    return weight[0].numel(), weight.shape[0]


def _chosen(
    weight: Tensor, keep: int, tiles: Tiling | None, generator: torch.Generator | None
) -> Tensor:
    """Numbers of the entries that stay."""
    if tiles is None:
        order = torch.randperm(weight.numel(), generator=generator, device=weight.device)
        return order[:keep]
    count = tiles.groups(weight.numel())
    wanted = max(math.floor(keep * count / weight.numel() + 0.5), 1)
    alive = torch.zeros(count, dtype=torch.bool, device=weight.device)
    alive[torch.randperm(count, generator=generator, device=weight.device)[:wanted]] = True
    return spread_tiles(alive, tiles, weight).reshape(-1).nonzero().reshape(-1)


@torch.no_grad()
def sparse_init_(
    model: nn.Module,
    density: float,
    groups: str | None = None,
    min_density: float = 0.0,
    unit_floor: bool = True,
    gain: float = 1.0,
    *,
    block: tuple[int, int] | None = None,
    nonnegative: bool = False,
    biases: bool = True,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Start linear and convolution weights sparse, with the variance of a dense Kaiming start.

    Each weight is drawn from ``N(0, 2 / fan_in)``; exactly
    ``K = max(round(density N), ceil(min_density N), n_out)`` entries, drawn without replacement,
    stay and are multiplied by ``gain / sqrt(K / N)``; the rest is +0.0. With ``groups``
    whole groups stay, as many as come nearest to K entries, at least one.

    Args:
        model: the model (mutated); its layers are those ``bregman_param_groups`` regularises.
        density: fraction of entries that stay, in (0, 1].
        groups: "rows", "kernels", "filters" or "blocks" as in ``LinBreg``, or "auto": as
            ``bregman_param_groups`` groups; None: single entries.
        min_density: least fraction per layer, in [0, 1].
        unit_floor: keep at least as many entries as the layer has outputs (a layer of zeros stops
            all gradients in a plain stack).
        gain: factor on the rescaling, > 0.
        block: (rows, columns) of one block.
        nonnegative: keep the magnitudes of what is drawn, for reg "l1_pos".
        biases: draw the biases of these layers from ``U(0, 1 / sqrt(fan_in))``; False leaves them.
        generator: of the random numbers, on the parameters' device.

    Returns:
        Realised density K / N of each weight, by name.

    Raises:
        ValueError: an argument is out of range or a weight has no such groups; nothing is modified.

    Source: arXiv 2105.04319, section on sparse initialisation.

    Example:
        >>> model = torch.nn.Linear(100, 10)
        >>> sparse_init_(model, 0.05)
        {'weight': 0.05}
        >>> int(model.weight.count_nonzero())
        50
    """
    check_number("density", density, 0.0, 1.0, strict=True)
    check_number("min_density", min_density, 0.0, 1.0)
    check_number("gain", gain, 0.0, strict=True)
    weights = {n: w for n, w in regularized_weights(model).items() if w.numel()}
    tilings = {}
    if groups is not None:
        for name, weight in weights.items():
            kind = usual_groups(weight) if groups == "auto" else groups
            options = {"reg": "l1_l2", "groups": kind, "block": block, "l1_ratio": 0.0}
            check_options({**options, "lam": 0.0, "lam_scale": 1.0})
            check_tensor(options, weight, name)
            tilings[name] = tiling(options, weight)
    modules = dict(model.named_modules())
    realised = {}
    for name, weight in weights.items():
        numel = weight.numel()
        module = modules[name.rpartition(".")[0]]
        fan_in, n_out = _fan_in_and_outputs(module, weight)
        keep = max(math.floor(density * numel + 0.5), math.ceil(min_density * numel), 1)
        keep = min(max(keep, n_out) if unit_floor else keep, numel)
        chosen = _chosen(weight, keep, tilings.get(name), generator)
        factor = gain / math.sqrt(chosen.numel() / numel) * math.sqrt(2.0 / fan_in)
        flat = torch.zeros(numel, device=weight.device)
        drawn = torch.randn(chosen.numel(), generator=generator, device=weight.device) * factor
        flat[chosen] = drawn.abs() if nonnegative else drawn
        weight.copy_(flat.reshape(weight.shape))
        bias = getattr(module, "bias", None)
        if biases and isinstance(bias, torch.Tensor):
            uniform = torch.rand(bias.shape, generator=generator, device=bias.device)
            bias.copy_(uniform / math.sqrt(fan_in))
        realised[name] = chosen.numel() / numel
    return realised
