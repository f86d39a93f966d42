"""Training FLOPs counted with the density of every single step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._bregman import BregmanOptimizer
from ._mezo import MeZO
from ._sam import SAM
from ._support import check_int, check_number
from ._zosam import ZOSAM

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def bregman_cost_ratio(
    density: float, coarse_steps: int = 0, active_density: float | None = None
) -> float:
    """Training FLOPs of LinBreg or AdaBreg relative to dense SGD, at constant density.

    ``[m (2 rho + rho_A) + 2 rho + 1] / (3 (m + 1))``; for m = 0 it is ``(1 + 2 rho) / 3``.

    Args:
        density: rho, FLOP-weighted fraction of live weights, in [0, 1].
        coarse_steps: m >= 0.
        active_density: rho_A of the active set; default rho.

    Returns:
        The ratio, in (0, 1].

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> round(bregman_cost_ratio(0.07), 3), round(bregman_cost_ratio(0.057, 99), 4)
        (0.38, 0.0601)
    """
    rho = check_number("density", density, 0.0, 1.0)
    m = check_int("coarse_steps", coarse_steps, 0)
    active = rho if active_density is None else check_number("active_density", active_density, 0, 1)
    return (m * (2 * rho + active) + 2 * rho + 1) / (3 * (m + 1))


@dataclass
class Layer:
    """One weight tensor: ``uses`` multiply-adds per entry and sample."""

    name: str
    weight: Tensor
    uses: float

    @property
    def dense(self) -> float:
        """Dense FLOPs of one forward of one sample."""
        return 2.0 * self.uses * self.weight.numel()


def _uses(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """How often each weight entry is used in this call, over the whole batch."""
    if isinstance(module, _TRANSPOSED):
        return x.numel() / x.shape[1]
    if isinstance(module, _CONV):
        return y.numel() / y.shape[1]
    return y.numel() / y.shape[-1]


def trace_layers(model: nn.Module, example_input: Any) -> list[Layer]:
    """Layers in the order of their first call, from one forward in eval mode without autograd."""
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    batch = args[0].shape[0]
    found: dict[Tensor, Layer] = {}
    names = {id(p): n for n, p in model.named_parameters()}

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        layer = found.setdefault(weight, Layer(names.get(id(weight), "weight"), weight, 0.0))
        layer.uses += _uses(module, inputs[0], output) / batch

    kinds = (nn.Linear, *_CONV, *_TRANSPOSED)
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    flags = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(*args)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in flags:
            module.training = flag
    return list(found.values())


class SparseFlops:
    """Count the training FLOPs of a run, step by step, with the live weights of each step.

    Per weight tensor l with N_l entries, n_l live, a_l active, used P_l times per sample
    (a multiply-add is 2): ``f_D = sum 2 P N``, ``f_S = sum 2 P n``, ``f_A = sum 2 P a``. A step
    costs, per sample: dense ``3 f_D``; LinBreg, AdaBreg ``2 f_S + f_D``; coarse step
    ``2 f_S + f_A``; SAM, SSAM ``6 f_D`` (an unstructured perturbation mask saves no arithmetic);
    ZO-SAM ``(3 + 2 m) f_S`` with its weight mask (f_D without); MeZO ``2 q f_D``. Weights that are
    not regularised count N. Linear and convolution layers called as modules are counted;
    normalisation, activations, attention scores and the optimizer are not; input gradients of the
    first layer are, by convention.

    Args:
        model: the model; one forward in eval mode collects the shapes.
        example_input: a batch, or a tuple of the model's arguments; dim 0 is the batch.
        optimizer: the optimizer of the run; any torch optimizer counts as dense.

    Raises:
        ValueError: no linear or convolution layer was called.

    Source: cost convention of RigL, arXiv 1911.11134; multilevel cycle arXiv 2602.03535.

    Example:
        >>> model = torch.nn.Linear(10, 5)
        >>> flops = SparseFlops(model, torch.zeros(1, 10), torch.optim.SGD(model.parameters()))
        >>> flops.step(samples=2)
        >>> flops.report()["theoretical_flops"]
        600.0
    """

    def __init__(self, model: nn.Module, example_input: Any, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.layers = trace_layers(model, example_input)
        if not self.layers:
            raise ValueError("SparseFlops: no linear or convolution layer was called")
        self.dense_forward = sum(layer.dense for layer in self.layers)
        device = self.layers[0].weight.device
        self._per_entry = torch.tensor(
            [2.0 * layer.uses for layer in self.layers], dtype=torch.float64, device=device
        )
        self._theoretical = torch.zeros((), dtype=torch.float64, device=device)
        self._density = torch.zeros((), dtype=torch.float64, device=device)
        self._live: Tensor | None = None
        self._active: Tensor | None = None
        self.steps = self.coarse = self.samples = 0
        self._issued = self._dense = 0.0
        self._seconds: float | None = None

    def _counts(self, counted: Callable[[Tensor], Tensor | int | None]) -> Tensor:
        """Entries per layer, [layers] float64 on the device; N where nothing is counted."""
        home = self._per_entry.device
        values = []
        for layer in self.layers:
            n = counted(layer.weight)
            n = layer.weight.numel() if n is None else n
            values.append(torch.as_tensor(n, device=home).to(torch.float64))
        return torch.stack(values)

    def _bregman_counts(self, opt: BregmanOptimizer) -> tuple[Tensor, Tensor]:
        groups = [(g, p) for g in opt.param_groups for p in g["params"]]
        live, active = {}, {}
        for (g, p), n, a in zip(groups, opt.live_counts(), opt.active_counts(), strict=True):
            if g["reg"] != "none":
                live[p] = p.detach().count_nonzero() if n is None else n
                if a is not None and g["multilevel"]:
                    active[p] = a
        return self._counts(live.get), self._counts(active.get)

    def _forwards(self) -> tuple[float, float]:
        """(forwards, backwards) of one step; a backward is two forwards' work."""
        opt = self.optimizer
        if isinstance(opt, SAM):
            return 2.0, 2.0
        if isinstance(opt, ZOSAM):
            return 1.0 + opt.last_step_probes, 1.0
        if isinstance(opt, MeZO):
            return 2.0 * opt.num_directions, 0.0
        return 1.0, 1.0

    @torch.no_grad()
    def step(self, samples: int = 1, seconds: float | None = None) -> None:
        """Count the optimizer step just taken; nothing comes to the host.

        Args:
            samples: samples of the step.
            seconds: what it took, if measured.
        """
        opt, dense = self.optimizer, self.dense_forward
        forwards, backwards = self._forwards()
        coarse = False
        if isinstance(opt, BregmanOptimizer):
            coarse = opt.last_was_coarse
            live, active = self._bregman_counts(opt)
            f_live = torch.dot(self._per_entry, live)
            weight_gradient = torch.dot(self._per_entry, active) if coarse else dense
            cost = 2.0 * f_live + weight_gradient
            self._live, self._active = live, active
        else:
            counts = opt.active_counts() if isinstance(opt, ZOSAM) else {}
            live = self._counts(counts.get)
            f_live = torch.dot(self._per_entry, live)
            cost = (forwards + 2.0 * backwards) * f_live
            self._live = live
        self._theoretical += cost * samples
        self._density = f_live / dense
        self.steps += 1
        self.coarse += int(coarse)
        self.samples += samples
        self._dense += 3.0 * dense * samples
        first = self.layers[0].dense  # its input gradient is never executed
        self._issued += samples * ((forwards + 2.0 * backwards) * dense - backwards * first)
        if seconds is not None:
            self._seconds = (self._seconds or 0.0) + seconds

    def report(self) -> dict[str, Any]:
        """Totals of the run; reads the device.

        Returns:
            steps, coarse_steps, samples; theoretical_flops by the formulas above; dense_flops of
            SGD on the same samples and theoretical_percent of it; issued_flops of the dense kernels
            that ran and issued_percent; measured, seconds or "not measured"; density, FLOP-weighted
            after the last step; layers, a dict per weight with numel, live, active, uses.
        """
        theoretical = float(self._theoretical)
        live = None if self._live is None else self._live.tolist()
        active = None if self._active is None else self._active.tolist()
        layers = {
            layer.name: {
                "numel": layer.weight.numel(),
                "live": layer.weight.numel() if live is None else int(live[i]),
                "active": None if active is None else int(active[i]),
                "uses": layer.uses,
            }
            for i, layer in enumerate(self.layers)
        }
        return {
            "steps": self.steps,
            "coarse_steps": self.coarse,
            "samples": self.samples,
            "theoretical_flops": theoretical,
            "dense_flops": self._dense,
            "theoretical_percent": 100.0 * theoretical / self._dense if self._dense else 0.0,
            "issued_flops": self._issued,
            "issued_percent": 100.0 * self._issued / self._dense if self._dense else 0.0,
            "measured": "not measured" if self._seconds is None else self._seconds,
            "density": float(self._density),
            "layers": layers,
        }
