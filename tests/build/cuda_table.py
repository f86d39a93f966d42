"""The table of CUDA instructions in docs/performance.md, from the budget.

``python tests/build/cuda_table.py`` writes it.
"""

from __future__ import annotations

import re
from pathlib import Path

from cuda_budget import Budget, Entry

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN = "<!-- from tests/build/cuda_budget.json: python tests/build/cuda_table.py -->"
END = "<!-- end of the table -->"
ARCH = "90"
TYPES = {"float": 0, "unsigned int": 0, "bf16": 1, "unsigned short": 1}  # column
OTHER = re.compile(r"\b(f16|unsigned long)\b")  # like bf16; not often
DUALS = {"(Dual)0": "kOwn", "(Dual)1": "kShrunk", "(Dual)2": "kGiven"}


def family_of(key: str) -> tuple[str, int]:
    """The kernel with T for its type, and the column of that type."""
    name = key.partition(": ")[2].removesuffix(" masked")
    for long, short in DUALS.items():
        name = name.replace(long, short)
    first = min((t for t in TYPES if re.search(rf"\b{t}\b", name)), key=name.find, default=None)
    if first is None:
        return name, 0
    return re.sub(rf"\b{first}\b", "T", name), TYPES[first]


def cell(dense: Entry | None, masked: Entry | None) -> str:
    """Instructions per element without and with a mask, of those that the bytes leave time for."""
    lead = dense or masked
    if lead is None:
        return ""
    counts = [e.costs[ARCH].per_element if e else None for e in (dense, masked)]
    known = [c for c in counts if c is not None]
    text = " / ".join("-" if c is None else f"{c:.1f}" for c in (counts if masked else known))
    over = max(known) > lead.slots
    return f"**{text} of {lead.slots:.3g}**" if over else f"{text} of {lead.slots:.3g}"


def table(budget: Budget) -> str:
    rows: dict[str, dict[tuple[int, bool], Entry]] = {}
    for key, entry in budget.kernels.items():
        if entry.bytes and "Packed<" not in key and not OTHER.search(key):
            family, column = family_of(key)
            rows.setdefault(family, {})[column, key.endswith(" masked")] = entry
    lines = ["| Kernel | Registers | 4-byte type | 2-byte type |", "|---|---|---|---|"]
    for family, cells in sorted(rows.items()):
        registers = max(c.registers for e in cells.values() for c in e.costs.values())
        columns = [cell(cells.get((i, False)), cells.get((i, True))) for i in (0, 1)]
        lines.append(f"| `{family}` | {registers} | {columns[0]} | {columns[1]} |")
    return "\n".join(lines)


def written(page: str, budget: Budget) -> str:
    """The page with the table of this budget."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    assert after, f"{PAGE} has no place for the table"
    return f"{before}{BEGIN}\n{table(budget)}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), Budget.read()))
