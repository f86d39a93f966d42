"""The Triton kernels of supports and groups compiled for sm_80 and sm_90 without a GPU.

As in test_triton_aot.py, whose docstring says how.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a process without TRITON_INTERPRET", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import compaction
from triton_code import CUOBJDUMP, B, F, keys, tiles, words, x

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


CASES = {
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


@pytest.mark.parametrize("case", CASES)
def test_registers_and_no_spills(code_of, case):
    code = code_of(case)
    assert code.stack == 0
    assert code.count("LDL") == code.count("STL") == 0
    assert code.registers <= 64
    assert sum(code.counts.values()) > 50  # the disassembly was read


@pytest.mark.parametrize("case", ["live"])
def test_duals_are_read_by_16_byte_loads(code_of, case):
    assert code_of(case).count("LDG.E.128") > 0


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
