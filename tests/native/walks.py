"""What the sanitized harness says that it ran, against the kernels that nvcc compiles."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: every kernel that nvcc compiled, by source: tests/build/test_cuda_compile.py keeps it complete
BUDGET = ROOT / "tests" / "build" / "cuda_budget.json"
TYPES = re.compile(r"\b(float|double|bf16|f16|unsigned (short|int|long))\b")
#: one block each, over no table of tensors
SINGLE = {"finish_sum_kernel", "finish_gram_kernel", "prox_value_kernel", "zo_key_kernel"}
#: never by wider accesses than an element's: keys that are drawn, entries that stand alone
SCALAR = ("RandomKeys", "MoveEntries<", "ZoNorm2<", "Gram<", "MaskIndex")


def family_of(name: str) -> str:
    """A kernel of the budget or a program of the harness, whatever its element type."""
    name = re.sub(r"\b(sk|phases)::", "", name).replace("> >", ">>").replace("> >", ">>")
    name = re.sub(r"^gram_kernel<(true|false), (.*)>$", r"gram_kernel<Gram<\2>> \1", name)
    name = name.removesuffix(" false").replace(">> true", ">> masked")
    own = re.match(r"(\w+_kernel)(?:<(.*)>)?( masked)?$", name)
    if own:
        name = " ".join(filter(None, own.groups()[:2])) + (own[3] or "")
    name = re.sub(r"Ranked<(.*)>$", r"\1", name)
    name = re.sub(r"^(index_kernel|count_kernel|finish_gram_kernel) .*", r"\1", name)
    return TYPES.sub("T", name)


def kernels() -> set[str]:
    keys = json.loads(BUDGET.read_text())["kernels"]
    return {family_of(key.partition(": ")[2]) for key in keys}


def walks_of(output: str) -> dict[str, set[str]]:
    """Family -> what its programs went through."""
    walks: dict[str, set[str]] = {}
    for name, ways in re.findall(r"^ran (.*):((?: \w+)*)$", output, re.M):
        walks.setdefault(family_of(name), set()).update(ways.split())
    return walks


def check_walks(output: str) -> None:
    """Every kernel ran, through the vector path, tails, misaligned tensors, several tables."""
    walks = walks_of(output)
    assert walks.keys() == kernels(), "kernels that no program of the harness runs, or the reverse"
    for family, ways in walks.items():
        if family in SINGLE:
            continue
        wanted = {"tail", "misaligned", "tables"}
        if not any(name in family for name in SCALAR):
            wanted.add("vector")
        assert wanted <= ways, f"{family} went through {sorted(ways)} only"
