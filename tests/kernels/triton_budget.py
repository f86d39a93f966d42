"""What the Triton kernels cost on each architecture: registers, instructions, bytes per element.

    python tests/kernels/triton_budget.py    writes triton_budget.json and prints what changed

Compiled without a GPU, as in test_triton_aot.py, whose docstring says how. The file holds the
version of Triton that it was written with; another one may exceed it by MARGIN.
"""

from __future__ import annotations

import json
import pathlib
import re
import tempfile
from typing import NamedTuple

import test_triton_aot as elementwise
import test_triton_aot_groups as groups
import test_triton_aot_masks as masks
import test_triton_aot_zo as zo
import triton
from triton_code import Code, captured, compile_call

FILE = pathlib.Path(__file__).with_suffix(".json")
ARCHS = (80, 90, 100)
MARGIN = 1.15
MODULES = {"": elementwise, "masks: ": masks, "groups: ": groups, "zo: ": zo}
CASES = {p + name: run for p, module in MODULES.items() for name, run in module.CASES.items()}
# Bytes an element that vector accesses load and store in the loop over whole blocks: the streams of
# docs/performance.md. Words of masks (1/8 byte) and entries of packed tensors are not among them.
# Parameters of a packed step count twice: one that is skipped stores them at another place.
TRAFFIC = {
    "norm": (4, 0), "norm bf16": (2, 0), "norm masked": (4, 0), "norm weighted": (8, 0),
    "perturb": (8, 4), "perturb backup": (8, 8), "perturb backup bf16": (4, 4),
    "perturb backup fp16": (4, 4), "perturb adaptive": (8, 8), "perturb masked": (8, 8),
    "perturb packed": (8, 4), "perturb packed bf16": (4, 2), "restore": (4, 4),
    "restore bf16": (2, 2), "pack": (1, 0), "unpack": (0, 1),
    "linbreg": (8, 8), "linbreg no dual": (8, 4), "linbreg momentum": (12, 12),
    "linbreg momentum bf16": (10, 10), "linbreg given": (12, 4), "linbreg given bf16": (12, 8),
    "adabreg": (16, 16), "adabreg given": (20, 12), "adabreg bf16": (14, 14),
    "adabreg counts": (20, 20), "adabreg given counts": (24, 16),
    "masks: sgd": (12, 8), "masks: sgd bf16": (6, 4), "masks: sgd plain": (8, 4),
    "masks: sgd first": (8, 8), "masks: sgd masked": (16, 8), "masks: sgd packed": (12, 12),
    "masks: sgd packed bf16": (6, 6), "masks: adamw": (16, 12), "masks: adamw fp16": (8, 6),
    "masks: adamw ungated": (16, 12), "masks: adamw masked": (20, 12),
    "masks: adamw packed": (16, 16), "masks: adam packed bf16": (8, 8),
    "masks: histogram": (4, 0), "masks: histogram bf16": (2, 0), "masks: histogram among": (4, 0),
    "masks: write": (4, 0), "masks: write bf16": (2, 0), "masks: write among": (4, 0),
    "masks: ties": (4, 0), "masks: ties among": (4, 0),
    "groups: live": (4, 0), "groups: sums": (4, 0), "groups: write": (4, 4),
    "groups: write bf16": (4, 2),
    "zo: normal": (4, 4), "zo: normal bf16": (2, 2), "zo: signs": (4, 4), "zo: signs bf16": (2, 2),
    "zo: normal masked in place": (4, 4), "zo: signs masked in place": (4, 4),
    "zo: signs masked in place bf16": (2, 2),
    "zo: signs full": (8, 8), "zo: signs full bf16": (4, 4), "zo: normal full bf16": (4, 4),
    "zo: normal sumsq": (8, 8), "zo: signs sumsq": (8, 8), "zo: normal shard": (4, 4),
    "zo: normal shard bf16": (2, 2), "zo: normal shard sumsq": (8, 8), "zo: signs shard": (4, 4),
    "zo: signs shard bf16": (2, 2), "zo: signs shard sumsq": (8, 8),
    "zo: normal wide bf16": (4, 2), "zo: normal wide fp16": (4, 2), "zo: signs wide bf16": (4, 2),
    "zo: normal packed": (4, 4), "zo: signs packed": (4, 4), "zo: signs packed bf16": (2, 2),
}  # fmt: skip


class Loop(NamedTuple):
    """A loop of vector accesses: bytes a thread loads and stores, instructions of one round."""

    loaded: int
    stored: int
    opcodes: list[str]


class Cost(NamedTuple):
    """What is compared with the budget; ``per_element`` of the main loop, if any, else 0."""

    registers: int
    stack: int
    instructions: int
    per_element: float


def vector_loops(sass: str, *widths: int) -> list[Loop]:
    """The innermost loops with accesses of so many bits, by the targets of their branches."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;\n]*);", sass)
    code = [(int(at, 16), name, operands) for at, name, operands in lines]
    ends = {
        (int(found[1], 16), at)
        for at, name, operands in code
        if name.startswith("BRA") and (found := re.search(r"\b0x([0-9a-f]+)", operands))
    }
    found = []
    for start, end in sorted(loop for loop in ends if loop[0] < loop[1]):
        opcodes = [name for at, name, _ in code if start <= at <= end]
        loaded, stored = (bytes_of(opcodes, kind, widths) for kind in ("LDG", "STG"))
        if loaded + stored:
            found.append((start, end, Loop(loaded, stored, opcodes)))
    return [
        loop
        for start, end, loop in found
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e, _ in found)
    ]


def bytes_of(opcodes: list[str], kind: str, widths: tuple[int, ...]) -> int:
    """Bytes that the accesses of these widths among some instructions move."""
    fields = [name.split(".") for name in opcodes]
    return sum(w // 8 for f in fields for w in widths if f[0] == kind and str(w) in f)


def main_loop(case: str, code: Code) -> tuple[Loop, int] | None:
    """The loop that moves the streams of an op and nothing else, and a thread's elements in it.

    Of several the largest: ptxas leaves a shorter one for the rest of an unrolled one. None where
    there is no such loop. Accesses of 8 bytes are those of four 16-bit entries, or addresses.
    """
    read, written = TRAFFIC[case]
    for widths in ((128,), (64, 128)):
        found = []
        for loop in vector_loops(code.sass, *widths):
            elements = (loop.loaded + loop.stored) // (read + written)
            if elements and (loop.loaded, loop.stored) == (elements * read, elements * written):
                found.append((loop, elements))
        if found:
            return max(found, key=lambda of: of[1])
    return None


def cost_of(case: str, code: Code) -> Cost:
    instructions, per_element = sum(code.counts.values()), 0.0
    found = main_loop(case, code) if case in TRAFFIC else None
    if found is not None:
        loop, elements = found
        per_element = round(len(loop.opcodes) / elements, 2)
    return Cost(code.registers, code.stack, instructions, per_element)


def read() -> tuple[str, dict[str, dict[str, Cost]]]:
    """Version of Triton, and costs by case and architecture."""
    stored = json.loads(FILE.read_text())
    kernels = {
        case: {arch: Cost(*cost) for arch, cost in of.items()}
        for case, of in stored["kernels"].items()
    }
    return stored["triton"], kernels


def excess(cost: Cost, budget: Cost, version: str) -> list[str]:
    """What of a kernel costs more than its budget, which was written with a version of Triton."""
    margin = 1.0 if version == triton.__version__ else MARGIN
    return [
        f"{name}: {now}, budget {then}"
        for name, now, then in zip(Cost._fields, cost, budget, strict=True)
        if now > then * margin
    ]


def main() -> None:
    old = read()[1] if FILE.exists() else {}
    kernels = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, run in CASES.items():
            call = captured(run)[0]
            codes = {a: Code(compile_call(call, a), pathlib.Path(folder, "cubin")) for a in ARCHS}
            costs = {str(a): cost_of(case, code) for a, code in codes.items()}
            for arch, cost in costs.items():
                before = old.get(case, {}).get(arch)
                if cost != before:
                    print(f"sm_{arch} {case}: {before and tuple(before)} -> {tuple(cost)}")
            kernels[case] = costs
    lines = [f"  {json.dumps(case)}: {json.dumps(costs)}" for case, costs in kernels.items()]
    head = f'{{\n "triton": "{triton.__version__}",\n "kernels": {{\n'
    FILE.write_text(head + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    main()
