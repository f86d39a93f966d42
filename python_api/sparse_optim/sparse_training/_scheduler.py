"""What all sparse training methods share: the weight mask, its counts, checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._bitmask import BitMask
from .._param_groups import regularized_weights
from .._support import Phase, check_backend, check_dense_gradients, check_int, check_number
from .._weight_mask import Masks, checked_masks
from ._enforce import Enforcer
from .distributions import dense_names

STATE_VERSION = 1
GROWN_STATES = ("zero", "keep")


class SparseTraining:
    """A weight mask around an optimizer: weights with bit 0 are +0.0 in every forward.

    Maskable are the weights of linear, convolution, recurrent and attention layers; biases,
    normalisation, embeddings and ``dense_layers`` stay dense. Optimizers with ``set_weight_mask``
    (SAM and its relatives, MeZO) are told the mask and keep it in perturbed forwards too. Around
    any other one step hooks mask gradients, those of closures included, and weights. An optimizer
    that perturbs weights by itself needs ``set_weight_mask``.

    Args:
        model: the model (its weights are mutated when a mask comes into force).
        optimizer: trains the model; give it first, the scheduler after.
        sparsity: s in [0, 1], fraction of zeros among the maskable weights.
        dense_layers: names of weights ("0.weight") or modules ("0") that stay dense and are not
            counted.
        first_dense: leave the first layer dense too.
        grown_state: optimizer state of dropped and grown weights: "zero" clears it; "keep" leaves
            it alone.
        seed: of random masks and growth, in [0, 2^64); the global random state is never used.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Raises:
        ValueError: an argument is out of range, the model has no maskable layer, or the optimizer
            does not train one.

    Attributes:
        weights: the maskable weights by name.
        mask: BitMask over them.
        steps: calls of ``step`` so far.
        read_gradients, replaced_step: whether the last ``step`` read dense gradients, and whether
            it took the place of the optimizer's.
        updates: mask updates so far.

    Example:
        >>> from sparse_optim import RigL
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> sparse = RigL(model, opt, sparsity=0.9, update_every=100, stop_at=75000)
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     model(torch.randn(3, 8)).square().sum().backward()
        ...     if sparse.step():
        ...         continue
        ...     opt.step()
        >>> sparse.mask.live, sparse.layer_live
        (19, {'0.weight': 10, '1.weight': 9})
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        *,
        dense_layers: Iterable[str] = (),
        first_dense: bool = False,
        grown_state: str = "zero",
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        self.sparsity = check_number("sparsity", sparsity, 0.0, 1.0)
        self.seed = check_int("seed", seed, 0, 2**64)
        self.backend = check_backend(backend)
        if grown_state not in GROWN_STATES:
            raise ValueError(f"grown_state must be one of {GROWN_STATES}, got {grown_state!r}")
        self.grown_state = grown_state
        found = {n: p for n, p in regularized_weights(model).items() if p.numel()}
        dense = dense_names(found, dense_layers, first_dense)
        self.weights = {n: p for n, p in found.items() if n not in dense}
        if not self.weights:
            raise ValueError(f"model: no maskable layer (left dense: {sorted(dense)})")
        self.model, self.optimizer = model, optimizer
        self.steps = 0
        self.updates = 0
        self.read_gradients = self.replaced_step = False
        self._sizes = [p.numel() for p in self.weights.values()]
        self._enforcer = Enforcer(optimizer, self.weights, self.backend)
        self._live = list(self._sizes)
        self.mask = BitMask.full(self._params)

    @property
    def _params(self) -> list[Tensor]:
        return list(self.weights.values())

    @property
    def layer_live(self) -> dict[str, int]:
        """Live weights of every layer, by name; no value is read from the device."""
        return dict(zip(self.weights, self._live, strict=True))

    @property
    def update_due(self) -> bool:
        """Whether the next ``step`` changes the mask."""
        return False

    def step(self, grads: Sequence[Tensor | None] | None = None) -> bool:
        """Count one iteration and update the mask where it is due.

        Call it between the backward at w and the optimizer's step (or, for methods without
        gradients, once per epoch: then schedules count epochs).

        Args:
            grads: gradients for the update, one per weight in the order of ``weights`` (None: 0);
                default those in ``.grad``. Methods that need none ignore them. Not modified.

        Returns:
            True if this iteration went to the mask update; take no optimizer step.

        Raises:
            RuntimeError: the optimizer is inside a step, or an update needs gradients and there are
                none or one is not finite; nothing is modified.
        """
        self._require_idle("step")
        self.steps += 1
        return False

    def mask_grads_(self) -> None:
        """Clear the gradients of dead weights; the optimizer's step does it too.

        Call it before clipping, so that the clipped norm is that of the live weights.
        """
        self._enforcer.mask_grads_()

    def detach(self) -> None:
        """Take every hook off the optimizer; the weights stay as they are and train densely."""
        self._enforcer.detach()

    # -- masks -------------------------------------------------------------------------------

    def _require_idle(self, what: str) -> None:
        phase = getattr(self.optimizer, "phase", None)
        if isinstance(phase, Phase) and phase is not Phase.IDLE:
            raise RuntimeError(
                f"{type(self).__name__}.{what}: the optimizer is {phase.value}; masks change "
                "between steps only: finish the step or call restore() first"
            )

    def _commit(
        self,
        words: list[Tensor],
        live: list[int] | None = None,
        keep: list[Tensor] | None = None,
    ) -> None:
        """Put a new mask in force.

        Args:
            words: packed masks.
            live: their ones; default: counted, which reads the devices once.
            keep: packed masks of the weights that hold value and state; default ``words``.
        """
        mask = BitMask(words, self.mask.shapes)
        live = mask.popcount() if live is None else live
        clear = self.grown_state == "zero"
        self._enforcer.install(words, words if keep is None else keep, clear)
        self.mask, self._live = mask, live

    def set_masks(self, masks: Masks | Mapping[str, Tensor]) -> None:
        """Put a mask of the caller's in force.

        Args:
            masks: bool tensors (None: all ones) in the order of ``weights`` or by name, or a
                BitMask.

        Raises:
            RuntimeError: the optimizer is inside a step.
            ValueError: number, name, shape, dtype or device does not fit; nothing is modified.
        """
        self._require_idle("set_masks")
        if isinstance(masks, Mapping):
            for name in {*masks} ^ {*self.weights}:
                raise ValueError(f"masks: {name!r} is not in both the masks and the weights")
            masks = [masks[name] for name in self.weights]
        group = {"params": self._params, "param_names": list(self.weights)}
        _, mask = checked_masks("masks", [group], masks)
        self._commit(mask.words)

    def _gradients(self, what: str, given: Sequence[Tensor | None] | None) -> list[Tensor]:
        """Dense gradients of the weights: those given, else ``.grad``; checked to be finite."""
        where = f"{type(self).__name__}.{what}"
        if given is None:
            with_grad = [p for p in self._params if p.grad is not None]
            check_dense_gradients(where, self.optimizer.param_groups, with_grad)
            given = [p.grad for p in self._params]
        if len(given) != len(self.weights):
            raise ValueError(f"{where}: {len(given)} gradients for {len(self.weights)} weights")
        if all(g is None for g in given):
            raise RuntimeError(f"{where}: no gradient; call it after the backward at w")
        grads = []
        for (name, p), g in zip(self.weights.items(), given, strict=True):
            if g is not None and g.shape != p.shape:
                raise ValueError(f"{where}: the gradient of {name!r} has shape {tuple(g.shape)}")
            grads.append(torch.zeros_like(p) if g is None else g.detach())
        self._require_finite(where, "gradient", grads)
        return grads

    def _require_finite(self, where: str, what: str, values: list[Tensor]) -> None:
        home = values[0].device
        finite = torch.stack([v.isfinite().all().to(home) for v in values]).tolist()
        for name, fine in zip(self.weights, finite, strict=True):
            if not fine:
                raise RuntimeError(
                    f"{where}: the {what} of {name!r} is not finite; the mask stays as it was"
                )

    # -- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Packed mask, counters and seed; ``torch.load(weights_only=True)`` reads it."""
        return {
            "version": STATE_VERSION,
            "method": type(self).__name__,
            "names": list(self.weights),
            "mask": self.mask.state(),
            "seed": self.seed,
            "steps": self.steps,
            "updates": self.updates,
            **self._extra_state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` gave, and put its mask in force.

        Model and optimizer have checkpoints of their own; load them first.

        Raises:
            RuntimeError: the optimizer is inside a step.
            ValueError: it is of another method or version, or the layers do not fit; nothing is
                modified.
        """
        self._require_idle("load_state_dict")
        where, kind = f"{type(self).__name__}.load_state_dict", state_dict.get("method")
        if (state_dict.get("version"), kind) != (STATE_VERSION, type(self).__name__):
            raise ValueError(
                f"{where}: a checkpoint of {kind}, version {state_dict.get('version')}"
            )
        if state_dict["names"] != list(self.weights):
            raise ValueError(f"{where}: a checkpoint of the layers {state_dict['names']}")
        mask = BitMask.from_state(state_dict["mask"], [p.device for p in self._params])
        for name, ours, theirs in zip(self.weights, self.mask.shapes, mask.shapes, strict=True):
            if ours != theirs:
                raise ValueError(f"{where}: the mask of {name!r} has shape {theirs}, not {ours}")
        self._load_extra_state(state_dict)
        self._commit(mask.words)
        self.seed = state_dict["seed"]
        self.steps, self.updates = state_dict["steps"], state_dict["updates"]

    def _extra_state(self) -> dict[str, Any]:
        """What a method adds to its checkpoint."""
        return {}

    def _load_extra_state(self, state_dict: Mapping[str, Any]) -> None:
        """Take what ``_extra_state`` gave."""


def wide(values: Tensor) -> Tensor:
    """In the dtype that selections rank by: float64 as it is, else float32."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))
