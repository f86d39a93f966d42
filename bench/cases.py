"""What the suites share: a measured operation with its byte model and baselines, and its data.

A case holds one list of tensors and closures over it:

* ``fused``: the public operations, one closure per backend;
* ``stages``: the step as the published code writes it in eager PyTorch, in place where it is. A
  stage takes what the one before returned. ``torch.compile`` gets each stage as a graph of its own:
  in training a backward pass lies between them, and as one graph perturb and restore cancel;
* ``torch_step``: torch's own optimizer where one does comparable work.

Closures may run any number of times: the time of none depends on the values (no denormals arise).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Stage = Callable[[object], object]
LINE = 64  # bytes of a cache line
BITS = 0.125  # bytes per element of a bit mask


@dataclass(frozen=True)
class Pass:
    """Arrays that one sweep must move, each as bytes per element of the list.

    ``Touched`` ones are read or updated at scattered lines.

    Attributes:
        read: arrays that are read only.
        update: arrays that are read and written in place.
        write: arrays that are written only.
    """

    read: tuple[float, ...] = ()
    update: tuple[float, ...] = ()
    write: tuple[float, ...] = ()

    @property
    def bytes(self) -> float:
        return sum(self.read) + 2 * sum(self.update) + sum(self.write)


class Touched(float):
    """Bytes per element of the cache lines that scattered entries of that density lie in.

    Args:
        density: of the entries.
        size: bytes of an entry.
        run: entries that lie together, where these are whole lines.

    Attributes:
        share: of the array's lines.
        whole: bytes per element of the array.
        lines: cache lines that lie together.
    """

    share: float
    whole: int
    lines: int

    def __new__(cls, density: float, size: int, run: int = 1) -> Touched:
        lines = run * size // LINE
        share = density if lines else 1.0 - (1.0 - density) ** (LINE // size)
        made = super().__new__(cls, round(size * share, 3))
        made.share, made.whole, made.lines = share, size, max(lines, 1)
        return made


@dataclass(frozen=True)
class TorchStep:
    """torch's own optimizer on the same tensors.

    Attributes:
        name: which one.
        bytes_per_element: the least traffic of its step.
        runs: "foreach" and "fused", a step each.
    """

    name: str
    bytes_per_element: float
    runs: dict[str, Callable[[], object]]


@dataclass
class Case:
    """One operation on one list of tensors.

    Attributes:
        name: the row's name.
        passes: the minimal traffic, sweep by sweep (docs/performance.md).
        fused: backend name -> closure.
        stages: the published step in eager PyTorch; () where there is none.
        graphs: what ``torch.compile`` gets in place of the stages, where those cannot be graphs or
            a better one exists; () leaves it out.
        before: called before every stage with its number, and never compiled.
        target: least ratio against eager on a CPU that the project promises, or None.
        percent: least per cent of the roof of the same streams that it promises; None where
            arithmetic or the search for an order binds, not memory.
        whole_step: an optimizer's step with its bookkeeping, not one operation.
        gaussian: draws normal numbers: on a GPU it has promises of its own.
        directions: random directions that one call adds, or None where that is no measure.
        rounds: at most so many timed rounds, where the baselines take seconds each.
        dense: the fused step that the row's saves work of, one closure per backend, or None.
        torch_step: torch's own optimizer, where one is comparable.
    """

    name: str
    passes: tuple[Pass, ...]
    fused: Callable[[str], object]
    stages: tuple[Stage, ...]
    target: float | None = None
    percent: float | None = 90
    whole_step: bool = False
    gaussian: bool = False
    graphs: tuple[Stage, ...] | None = None
    before: Callable[[int], object] | None = None
    directions: int | None = None
    rounds: int | None = None
    dense: Callable[[str], object] | None = None
    torch_step: TorchStep | None = None

    @property
    def bytes_per_element(self) -> float:
        return round(sum(p.bytes for p in self.passes), 6)

    @property
    def label(self) -> str:
        """The name, and the number of directions where a table has several."""
        return self.name + (f" q={self.directions}" if self.directions is not None else "")

    def eager(self, stages: tuple[Stage, ...] | None = None) -> object:
        """Run the published step, or other stages in its place."""
        passed: object = None
        for number, stage in enumerate(self.stages if stages is None else stages):
            if self.before is not None:
                self.before(number)
            passed = stage(passed)
        return passed


Make = Callable[[], Case]


@dataclass
class Data:
    """Tensors of one shape list, made once and shared by the cases.

    ``name`` stands in the rows, ``size`` is the bytes of an element of params and grads.
    """

    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    size: int
    name: str = ""

    @classmethod
    def make(
        cls, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: str, name: str = ""
    ) -> Data:
        generator = torch.Generator(device).manual_seed(0)

        def draw(kind: torch.dtype) -> list[Tensor]:
            return [torch.randn(s, generator=generator, device=device).to(kind) for s in shapes]

        states = [draw(math_type(dtype)) for _ in range(3)]
        states[2] = [t.abs() for t in states[2]]  # a second moment
        size = torch.empty((), dtype=dtype).element_size()
        return cls(draw(dtype), draw(dtype), states, size, name)

    @property
    def elements(self) -> int:
        return sum(p.numel() for p in self.params)

    @property
    def state_size(self) -> int:
        """Bytes of an element of the states."""
        return self.states[0][0].element_size()

    def joined(self) -> Data:
        """One tensor with as many elements."""
        one = Data.make([(self.elements,)], self.params[0].dtype, self.params[0].device.type)
        one.name = f"one of {self.name}"
        return one


def math_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def parameters(data: Data) -> list[nn.Parameter]:
    """Parameters over the same memory, with gradients that stay."""
    params = [nn.Parameter(p) for p in data.params]
    for p, g in zip(params, data.grads, strict=True):
        p.grad = g
    return params


def per_backend(make: Callable[[str], Any]) -> Callable[[str], Any]:
    """One object per backend, made at its first call."""
    made: dict[str, Any] = {}

    def get(backend: str) -> Any:
        if backend not in made:
            made[backend] = make(backend)
        return made[backend]

    return get


def torch_step(data: Data, cls: type, **options: Any) -> TorchStep:
    """torch's optimizer over the case's own tensors, with the two fast forms of its step."""
    states = {"SGD": int(options.get("momentum", 0) != 0), "Adam": 2, "AdamW": 2}[cls.__name__]
    name = cls.__name__ + (" momentum" if options.get("momentum") else "")
    runs = {
        form: cls(parameters(data), **{form: True}, **options).step for form in ("foreach", "fused")
    }
    return TorchStep(name, (3 + 2 * states) * data.size, runs)  # g, w, w, and every state twice
