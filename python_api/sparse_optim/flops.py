"""Training FLOPs counted with the density of every single step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._bregman import BregmanOptimizer
from ._flops_trace import trace_layers, update_bytes
from ._support import check_int, check_number
from .sparse_training import SparseTraining

PARTS = ("forward", "backward", "fine_step", "conversion", "optimizer")
_NOT_MEASURED = "not measured"


def training_flops_ratio(
    density: float, coarse_steps: int = 0, active_density: float | None = None
) -> float:
    """Training FLOPs of a Bregman optimizer relative to dense SGD, at constant density.

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
        >>> round(training_flops_ratio(0.07), 3), round(training_flops_ratio(0.057, 99), 4)
        (0.38, 0.0601)
    """
    rho = check_number("density", density, 0.0, 1.0)
    m = check_int("coarse_steps", coarse_steps, 0)
    active = rho if active_density is None else check_number("active_density", active_density, 0, 1)
    return (m * (2 * rho + active) + 2 * rho + 1) / (3 * (m + 1))


class SparseFlops:
    """Count the training FLOPs of a run, step by step, with the live weights of each step.

    Per weight tensor l with N_l entries, n_l live, a_l active, used P_l times per sample
    (a multiply-add is 2): ``f_D = sum 2 P N``, ``f_S = sum 2 P n``, ``f_A = sum 2 P a``. A step
    costs, per sample: dense ``3 f_D``; with the weight mask of a sparse training method ``3 f_S``,
    and ``2 f_S + f_D`` where that reads dense gradients (RigL's updates); LinBreg, AdaBreg,
    ProxSGD ``2 f_S + f_D``; coarse step ``2 f_S + f_A``; SAM, SSAM ``6 f_S`` (an unstructured
    perturbation mask saves no arithmetic); ZO-SAM ``(3 + 2 m) f_S``; MeZO ``2 q f_S``. Without a
    weight mask f_S is f_D; weights that are not regularised or not maskable count N. Linear,
    convolution, recurrent and ``nn.MultiheadAttention`` layers called as modules are counted;
    normalisation, activations, embeddings and the optimizer are not; input gradients of the first
    layer are, by convention. Matrix products without such a weight (attention scores) are dense and
    reported apart.

    Args:
        model: the model; one forward in eval mode collects the shapes.
        example_input: a batch, or a tuple of the model's arguments; dim 0 is the batch.
        optimizer: the optimizer of the run; one that has ``last_step_passes`` is asked for its
            forwards and backwards, any other takes one of each.
        masked: the sparse training method around the optimizer, which knows the live weights.
        track_support: count births and deaths too: compares ``p != 0`` before and after every step,
            one byte per weight.

    Raises:
        ValueError: no linear or convolution layer was called, or ``masked`` is around another
            optimizer.

    Source: cost convention of RigL, arXiv 1911.11134; multilevel cycle arXiv 2602.03535.

    Example:
        >>> model = torch.nn.Linear(10, 5)
        >>> flops = SparseFlops(model, torch.zeros(1, 10), torch.optim.SGD(model.parameters()))
        >>> flops.step(samples=2)
        >>> flops.report()["theoretical_flops"]
        600.0
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        optimizer: Optimizer,
        masked: SparseTraining | None = None,
        track_support: bool = False,
    ) -> None:
        if masked is not None and masked.optimizer is not optimizer:
            raise ValueError("SparseFlops: masked is around another optimizer")
        self.optimizer, self.masked = optimizer, masked
        self.layers, self.unweighted_forward = trace_layers(model, example_input)
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
        self._support = self._supports() if track_support else None
        self._births = torch.zeros(len(self.layers), dtype=torch.int64, device=device)
        self._deaths = torch.zeros_like(self._births)
        self.steps = self.coarse = self.samples = 0
        self._issued = self._dense = self._unweighted = 0.0
        self._seconds: float | None = None
        self._parts: dict[str, float] = {}

    # -- live weights ------------------------------------------------------------------------

    def _counts(self, counted: Callable[[Tensor], Tensor | int | None]) -> Tensor:
        """Entries per layer, [layers] float64 on the device; N where nothing is counted."""
        home = self._per_entry.device
        values = []
        for layer in self.layers:
            n = counted(layer.weight)
            n = layer.weight.numel() if n is None else n
            values.append(torch.as_tensor(n, device=home).to(torch.float64))
        return torch.stack(values)

    def _mask_counts(self) -> dict[Tensor, Any]:
        """Live entries under the weight mask."""
        if self.masked is not None:
            names = self.masked.weights
            return {names[name]: n for name, n in self.masked.layer_live.items()}
        of_optimizer = getattr(self.optimizer, "weight_counts", None)
        return {} if of_optimizer is None else of_optimizer()

    def _step_counts(self) -> tuple[Tensor, Tensor]:
        """Live entries of every layer, and those that a backward computes gradients of."""
        live = self._mask_counts()
        wanted, opt = dict(live), self.optimizer
        if isinstance(opt, BregmanOptimizer):
            groups = [(g, p) for g in opt.param_groups for p in g["params"]]
            active = {}
            for (g, p), n, a in zip(groups, opt.live_counts(), opt.active_counts(), strict=True):
                if g["reg"] == "none":
                    continue
                live[p] = p.detach().count_nonzero() if n is None else n
                wanted.pop(p, None)  # the gradient of all entries
                if a is not None and g["multilevel"]:
                    active[p] = a
            self._active = self._counts(active.get)
            wanted |= active if opt.last_was_coarse else {}
        return self._counts(live.get), self._counts(wanted.get)

    def _supports(self) -> list[Tensor]:
        return [layer.weight.detach() != 0 for layer in self.layers]

    def _count_changes(self) -> None:
        if self._support is None:
            return
        old, self._support = self._support, self._supports()
        pairs = list(zip(old, self._support, strict=True))
        home = self._births.device
        self._births += torch.stack([(new & ~was).sum().to(home) for was, new in pairs])
        self._deaths += torch.stack([(was & ~new).sum().to(home) for was, new in pairs])

    # -- counting ----------------------------------------------------------------------------

    def _passes(self) -> tuple[float, float]:
        """(forwards, backwards) of the step just taken; a backward is two forwards' work."""
        if self.masked is not None and self.masked.replaced_step:
            return 1.0, 1.0
        return getattr(self.optimizer, "last_step_passes", (1.0, 1.0))

    def _add(self, samples: int, forwards: float, backwards: float, theoretical: Any) -> None:
        """Add passes to the totals; what is theoretical is per sample."""
        issued = sum(layer.issued_backward for layer in self.layers)
        self._theoretical += theoretical * samples
        self._issued += samples * (forwards * self.dense_forward + backwards * issued)
        self._unweighted += samples * (forwards + 2.0 * backwards) * self.unweighted_forward

    @torch.no_grad()
    def step(
        self,
        samples: int = 1,
        seconds: float | None = None,
        parts: Mapping[str, float] | None = None,
    ) -> None:
        """Count the optimizer step just taken; nothing comes to the host.

        Args:
            samples: samples of the step.
            seconds: what all of it took, if measured; default the sum of ``parts``.
            parts: seconds of some of "forward", "backward", "fine_step", "conversion" and
                "optimizer".

        Raises:
            ValueError: there is no such part; nothing is counted.
        """
        parts = {} if parts is None else parts
        for name in parts:
            if name not in PARTS:
                raise ValueError(f"SparseFlops.step: parts are {PARTS}, got {name!r}")
        dense, (forwards, backwards) = self.dense_forward, self._passes()
        self._live, wanted = self._step_counts()
        f_live, f_wanted = (
            torch.dot(self._per_entry, self._live),
            torch.dot(self._per_entry, wanted),
        )
        cost = (forwards + backwards) * f_live + backwards * f_wanted
        if self.masked is not None and self.masked.read_gradients:
            cost = cost + (dense - f_wanted)
        self._density = f_live / dense
        self._add(samples, forwards, backwards, cost)
        self._count_changes()
        self.steps += 1
        self.coarse += int(getattr(self.optimizer, "last_was_coarse", False))
        self.samples += samples
        self._dense += 3.0 * dense * samples
        if seconds is not None or parts:
            self._seconds = (self._seconds or 0.0) + (
                sum(parts.values()) if seconds is None else seconds
            )
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + value

    @torch.no_grad()
    def count_passes(
        self, samples: int, forwards: float, backwards: float, dense: bool = False
    ) -> None:
        """Count passes that belong to no step, such as those that find a mask.

        Args:
            samples: samples of each pass.
            forwards, backwards: how many; a backward is two forwards' work.
            dense: with all weights; else with those that are live now under a weight mask.
        """
        counts = {} if dense else self._mask_counts()
        live = torch.dot(self._per_entry, self._counts(counts.get))
        self._add(samples, forwards, backwards, (forwards + 2.0 * backwards) * live)

    def report(self) -> dict[str, Any]:
        """Totals of the run in three columns; reads the device.

        Returns:
            steps, coarse_steps, samples; theoretical_flops by the formulas above, dense_flops of
            SGD on the same samples and theoretical_percent of it; issued_flops of the dense kernels
            that ran (without gradients that nothing asks for) and issued_percent; measured, seconds
            or "not measured", and seconds, the same for every part; unweighted_flops of products
            without a weight, in none of the other figures; optimizer_bytes_per_step, computed from
            the states, of a full update by the (base) optimizer, None for MeZO; density,
            FLOP-weighted after the last step; layers, a dict per weight with numel, live, active,
            uses, and births and deaths, "not counted" without ``track_support``.
        """
        theoretical = float(self._theoretical)
        live = None if self._live is None else self._live.tolist()
        active = None if self._active is None else self._active.tolist()
        births, deaths = self._births.tolist(), self._deaths.tolist()
        tracked = self._support is not None
        layers = {
            layer.name: {
                "numel": layer.weight.numel(),
                "live": layer.weight.numel() if live is None else int(live[i]),
                "active": None if active is None else int(active[i]),
                "uses": layer.uses,
                "births": births[i] if tracked else "not counted",
                "deaths": deaths[i] if tracked else "not counted",
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
            "measured": _NOT_MEASURED if self._seconds is None else self._seconds,
            "seconds": {name: self._parts.get(name, _NOT_MEASURED) for name in PARTS},
            "unweighted_flops": self._unweighted,
            "optimizer_bytes_per_step": update_bytes(self.optimizer) if self._passes()[1] else None,
            "density": float(self._density),
            "layers": layers,
        }
