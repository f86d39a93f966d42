"""One case: its variants, timed in turn, and the rows that come of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import _harness as harness
from ._roofs import Roofs
from ._targets import promised
from .cases import Case, Data

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDS = 11
Variants = dict[str, Callable[[], object]]


@dataclass
class Setting:
    """What all cases of a list have in common.

    Attributes:
        suite: its name.
        data: the list.
        dtype: its name.
        device: "cpu" or "cuda".
        backends: of which a case gets a row each.
        rounds: most timed rounds; None leaves them to the case.
        compiles: torch.compile is a baseline.
        reference: the reference backend is timed, too.
        roofs: None in suite host, where memory is not the question.
        flush: what empties the caches, or None.
    """

    suite: str
    data: Data
    dtype: str
    device: str
    backends: list[str]
    rounds: int | None = None
    compiles: bool = True
    reference: bool = False
    roofs: Roofs | None = None
    flush: harness.Flush | None = None


def compiled(case: Case) -> Variants:
    """torch.compile of the eager stages, or nothing where one cannot be compiled as a graph."""
    graphs = case.stages if case.graphs is None else case.graphs
    if not graphs:
        return {}
    torch._dynamo.reset()  # or functions made by one def would share the limit of recompilations
    stages = tuple(torch.compile(s, fullgraph=True, dynamic=False) for s in graphs)

    def run() -> object:
        return case.eager(stages)

    try:
        run()
    except Exception as error:  # compile errors have no common base class
        print(
            f"{case.label}: torch.compile leaves this out: {str(error).splitlines()[0]}",
            file=sys.stderr,
        )
        return {}
    return {"compile": run}


def variants_of(case: Case, one: Case | None, setting: Setting) -> Variants:
    """Closures by name; ``one`` is the same case on one tensor, for the host's time."""
    made: Variants = {} if setting.roofs is None else setting.roofs.variants(case)
    made |= {b: lambda b=b: case.fused(b) for b in setting.backends}
    if case.torch_step is not None:
        made |= case.torch_step.runs
    if one is not None:
        made |= {f"one {b}": lambda b=b: one.fused(b) for b in setting.backends}
        if one.torch_step is not None:
            made |= {f"one {form}": run for form, run in one.torch_step.runs.items()}
        return made
    if case.stages:
        made["eager"] = case.eager
    if case.dense is not None:
        made |= {f"dense {b}": lambda b=b: case.dense(b) for b in setting.backends}
    if setting.reference:
        made["reference"] = lambda: case.fused("reference")
    return made | (compiled(case) if setting.compiles else {})


@torch.no_grad()
def measure(case: Case, one: Case | None, setting: Setting) -> list[dict[str, Any]]:
    """A row per backend; without grad mode, as in an optimizer's step."""
    variants = variants_of(case, one, setting)
    limits = [r for r in (case.rounds, setting.rounds) if r is not None]
    rounds = min(limits, default=ROUNDS)
    elements = setting.data.elements
    largest = max(sum(p.read) + sum(p.update) + sum(p.write) for p in case.passes) * elements
    flush = setting.flush
    cold = flush is not None and flush.needed(largest)
    samples = harness.interleave(
        variants, setting.device, rounds, flush if cold else None, warm=one is not None
    )
    common = {
        "suite": setting.suite, "op": case.name, "device": setting.device, "dtype": setting.dtype,
        "list": setting.data.name, "tensors": len(setting.data.params), "elements": elements,
        "caches": "not flushed" if flush is None else "flushed" if cold else "exceeded",
        "bytes_per_element": case.bytes_per_element,
        "mb_per_step": case.bytes_per_element * elements / 1e6,
        "eager_calls": harness.count_calls(case.eager) if "eager" in variants else None,
        "rounds": rounds, "q": case.directions,
        "torch_step": None if case.torch_step is None else case.torch_step.name,
    }  # fmt: skip
    rows = []
    for name in setting.backends:
        row = common | times(samples[name]) | against(name, case, samples, setting)
        row |= {"backend": name, "calls": harness.count_calls(variants[name])}
        if setting.device == "cuda":
            row["launches"] = harness.count_launches(variants[name])
        if one is not None:
            row |= host(name, samples, row["tensors"])
        rows.append(row | promised(case, setting.suite, setting.data.name, row))
    return rows


def times(s: harness.Samples) -> dict[str, float]:
    made = {f"p{q}_ms": 1e3 * s.quantile(q / 100) for q in (20, 80)}
    return made | {"p50_ms": 1e3 * s.median, "host_ms": 1e3 * s.host_median}


def against(
    name: str, case: Case, samples: dict[str, harness.Samples], setting: Setting
) -> dict[str, float | None]:
    """A backend's rates and ratios to the roofs and baselines of its rounds."""
    s, elements = samples[name], setting.data.elements
    moved = case.bytes_per_element * elements
    made: dict[str, float | None] = {}
    if setting.roofs is not None:
        made["gb_per_s"] = moved / s.median / 1e9
    for roof in ("roof", "copy", "streams"):
        loops = [samples[name] for name in (roof, f"whole {roof}") if name in samples]
        if setting.roofs is not None and loops:
            best = min(loops, key=lambda loop: loop.median)
            size = setting.roofs.bytes[roof]
            made[f"{roof}_gb_per_s"] = size / best.median / 1e9
            made[f"percent_of_{roof}"] = 100 * harness.ratio(best, s) * moved / size
    bases = {b: b for b in ("eager", "reference", "compile", "foreach", "fused")}
    for column, base in (bases | {"dense": f"dense {name}"}).items():
        made[f"x_{column}"] = harness.ratio(samples[base], s) if base in samples else None
    if case.directions is not None and setting.roofs is not None:
        for variant, prefix in ((name, ""), ("eager", "eager_"), ("compile", "compile_")):
            if variant in samples:
                rate = case.directions * elements / samples[variant].median / 1e9
                made[f"{prefix}gdirections_per_s"] = rate
    return made


def host(name: str, samples: dict[str, harness.Samples], tensors: int) -> dict[str, float]:
    """Microseconds of the host: of a call, per tensor, and beyond those for one tensor.

    The latter also of the first call after other work, whose caches are not warm.
    """
    made = {
        "host_us": 1e6 * samples[name].host_median,
        "host_us_per_tensor": 1e6 * samples[name].host_median / tensors,
    }
    for variant, prefix in ((name, ""), ("foreach", "foreach_"), ("fused", "fused_")):
        if variant in samples:
            many, one = samples[variant], samples[f"one {variant}"]
            made[f"{prefix}host_us_above_memory"] = 1e6 * harness.difference(many.host, one.host)
            cold = harness.difference(many.first, one.first)
            made[f"{prefix}first_host_us_above_memory"] = 1e6 * cold
    return made
