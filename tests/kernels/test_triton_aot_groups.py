"""The Triton kernels of supports and groups compiled without a GPU.

As in test_triton_aot.py, whose docstring says how.
"""

from __future__ import annotations

import os
import re

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a process without TRITON_INTERPRET", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import compaction, prox_group
from triton_code import (
    CUOBJDUMP,
    B,
    F,
    captured,
    keys,
    tiles,
    words,
    x,
)

pytestmark = pytest.mark.slow  # every kernel through ptxas twice

if not CUOBJDUMP.exists():
    pytest.skip("this Triton comes without cuobjdump", allow_module_level=True)


def run_live(lam=0.5, nonnegative=False):
    compaction.live_mask_triton(x(), words(), lam, nonnegative)


def run_index(numel=7):
    compaction.mask_index_triton(words(), tiles(), [torch.zeros(numel, dtype=torch.int32)])


def run_move(d, run=1, scatter=False, count=8):
    move = compaction.scatter_entries_triton if scatter else compaction.gather_entries_triton
    index = torch.zeros(count, dtype=torch.int32)
    move(x(d), [index], [run], [torch.zeros(run * count, dtype=d)])


def run_prox(
    d=F, tile=(1, 64), cols=None, alive=True, rows=4, scalars=(0.1, 0.7), nonnegative=False
):
    (height, width), cols = tile, cols or tile[1]
    p, v = ([torch.empty(rows * cols, dtype=kind)] for kind in (d, F))
    flags = [torch.zeros(1, dtype=torch.uint8)] if alive else []
    prox_group.prox_group_triton(
        p, v, flags, [cols], [height], [width], torch.zeros(1, 4), *scalars, nonnegative
    )


def launch_of(run, name):
    """Only one of the launches of ``run()``."""
    found = [call for call in captured(run) if call[0].fn.__name__ == f"_prox_{name}_kernel"]
    assert len(found) == 1
    kernel, args, meta = found[0]
    prox_group.launch(kernel, (1,), None, *args, **meta)


def prox(name, *args, **options):
    return lambda: launch_of(lambda: run_prox(*args, **options), name)


TILES = {"cols": 601, "rows": 600}
LARGE = {"tile": (300, 300), **TILES}
CASES = {
    **{f"groups of {n}": prox("block", tile=(1, n)) for n in (1, 2, 9, 25, 64, 300, 768, 2048)},
    "groups of 9 bf16": prox("block", B, (1, 9), alive=False),
    "groups of 768 bf16": prox("block", B, (1, 768)),
    **{f"tiles of {n}": prox("block", tile=(n, n), **TILES) for n in (2, 4, 8, 16, 32, 45)},
    "tiles of 4 bf16": prox("block", B, (4, 4), alive=False, **TILES),
    "filters": prox("group", tile=(1, 4608)),
    "filters bf16": prox("group", B, (1, 4608), alive=False),
    "large tiles": prox("group", tile=(64, 64), **TILES),
    "sums": prox("sums", tile=(1, 70000)),
    "sums of tiles": prox("sums", **LARGE),
    "factors": prox("factors", tile=(1, 70000)),
    "factors of tiles": prox("factors", **LARGE),
    "write": prox("write", tile=(1, 70000)),
    "write bf16": prox("write", B, (1, 70000)),
    "write tiles": prox("write", **LARGE),
    "value": prox("value"),
    "live": run_live,
    "index": run_index,
    "gather": lambda: run_move(F),
    "gather bf16": lambda: run_move(B),
    "gather int64": lambda: run_move(torch.int64),
    "gather runs": lambda: run_move(F, 9),
    "scatter": lambda: run_move(F, scatter=True),
    "scatter runs": lambda: run_move(F, 9, True),
    "scatter runs int64": lambda: run_move(torch.int64, 9, True),
}
# a warp to a group, with batches of partial sums in flight: fewer would spill
REGISTERS = {"factors": 96, "factors of tiles": 96}
PIECES = [c for c in CASES if c.startswith(("groups", "filters", "write")) and "tiles" not in c]
SHORT = ("groups of 1", "groups of 2")  # no four entries side by side
PIECES = [c for c in PIECES if c not in SHORT]


@pytest.mark.parametrize("case", CASES)
def test_registers_and_no_spills(code_of, case):
    code = code_of(case)
    assert code.stack == 0
    assert code.count("LDL") == code.count("STL") == 0
    assert code.registers <= REGISTERS.get(case, 64)
    assert sum(code.counts.values()) > 50  # the disassembly was read


@pytest.mark.parametrize("case", ["live", "sums", *PIECES])
def test_duals_are_read_by_16_byte_loads(code_of, case):
    assert code_of(case).count("LDG.E.128") > 0


@pytest.mark.parametrize("case", PIECES)
def test_parameters_are_written_four_at_a_time(code_of, case):
    code = code_of(case)
    # the value is another 8-byte store
    stores = code.count("STG.E.64") - (case.startswith(("groups", "filters")))
    assert stores > 0 if "bf16" in case else code.count("STG.E.128") > 0


GROUPS = [c for c in CASES if c.startswith(("groups", "tiles", "filters", "large", "factors"))]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_approximate_flushed_or_contracted(code_of, case):
    ptx = code_of(case).ptx
    assert "approx" not in ptx
    assert ".ftz" not in ptx
    assert "fma." not in ptx
    if case in GROUPS:
        assert "div.rn.f32" in ptx
        assert ("sqrt.rn.f64" if "factors" in case else "sqrt.rn.f32") in ptx


@pytest.mark.parametrize("case", CASES)
def test_float_sums_are_not_atomic(code_of, case):
    atomics = re.findall(r"\b(?:atom|red)\.\S+", code_of(case).ptx)
    assert all(name.endswith(".u64") for name in atomics)
    assert bool(atomics) == (case in GROUPS or case.startswith("write"))


def test_one_compilation_over_changing_scalars_and_sizes():
    """Nothing that the JIT keys its compilations by depends on a threshold or a size."""
    live = [keys(lambda v=v: run_live(v)) for v in (0.0, 1.0, 0.1, 16.0, 1e-30)]
    live.append(keys(lambda: run_live(0.1, True)))
    index = [keys(lambda n=n: run_index(n)) for n in (1, 16, 17)]
    gather = [keys(lambda n=n: run_move(F, 16, count=n)) for n in (1, 16, 17)]
    gather += [keys(lambda n=n: run_move(F, n)) for n in (2, 16, 17)]
    for family in (live, index, gather):
        assert all(k == family[0] for k in family)
        assert len(family[0]) == 1


@pytest.mark.parametrize(
    "widths", [(9, 10, 15, 16), (2049, 4096, 4608, 65536), (65537, 65552, 2**17, 2**17 + 1)]
)
def test_one_compilation_of_group_shrinkage(widths):
    """Sizes count by their power of two only, as the largest lane count does."""
    scalars = (0.0, 1.0, 0.1, 16.0, 1e-30)
    family = [keys(lambda v=v: run_prox(tile=(1, widths[0]), scalars=(v, v))) for v in scalars]
    family += [keys(lambda n=n: run_prox(tile=(1, n), rows=3)) for n in widths]
    family.append(keys(lambda: run_prox(tile=(1, widths[0]), rows=200, nonnegative=True)))
    assert all(k == family[0] for k in family)
