"""The Triton kernels of base steps and masks compiled without a GPU.

As in test_triton_aot.py, whose docstring says how.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a process without TRITON_INTERPRET", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import mask_apply, mask_count, mask_nm, mask_topk, restore_adamw, restore_sgd
from triton_code import CUOBJDUMP, B, F, H, divide_and_root_kernel, keys, probe, tiles, words, x

pytestmark = pytest.mark.slow  # every kernel through ptxas twice

if not CUOBJDUMP.exists():
    pytest.skip("this Triton comes without cuobjdump", allow_module_level=True)


def run_sgd(
    d, masks=(), ranks=(), buffers=True, first=False, gates=True, scalars=(0.1, 0.9, 0.2, 0.3)
):
    gate = torch.zeros(()) if gates else None
    lr, momentum, dampening, decay = scalars
    restore_sgd.restore_sgd_triton(
        x(d), x(d), x(d) if buffers else [], list(masks), x(d), list(ranks), lr, momentum,
        dampening, buffers, decay, False, first, gate, gate,
    )  # fmt: skip


def run_adamw(d, masks=(), ranks=(), decoupled=True, gates=True, scalars=(0.1, 0.9, 0.99, 1e-8)):
    gate, row = torch.zeros(()) if gates else None, torch.ones(1)
    lists = [x(d) for _ in range(4)]
    restore_adamw.restore_adamw_triton(
        *lists, list(masks), x(d), list(ranks), row, row, *scalars, scalars[0], decoupled, False,
        gate, gate,
    )  # fmt: skip


def ranked(d, kind, among):
    key = torch.tensor(1) if kind == "random" else None
    return x(d), kind, key, [0], words() if among else [], among


def run_histogram(d, kind="value", among=False, shift=10, bits=11):
    mask_topk.topk_histogram_triton(*ranked(d, kind, among), torch.tensor([0]), shift, bits)


def run_write(d, kind="value", among=False):
    args = ranked(d, kind, among)
    mask_topk.topk_write_triton(*args, torch.tensor([0]), words(), among)


def run_ties(d, kind="value", among=False):
    one = torch.tensor([0])
    mask_topk.topk_ties_triton(*ranked(d, kind, among), one, one, one, one, words())


def run_nm(d, kind="value", along_rows=True, n=2, m=4):
    args = ranked(d, kind, False)[:4]
    mask_nm.mask_nm_triton(*args, [8], [8], n, m, along_rows, words())


CASES = {
    "sgd": lambda: run_sgd(F),
    "sgd bf16": lambda: run_sgd(B),
    "sgd plain": lambda: run_sgd(F, buffers=False),
    "sgd first": lambda: run_sgd(F, first=True, gates=False),
    "sgd masked": lambda: run_sgd(F, words()),
    "sgd packed": lambda: run_sgd(F, words(), tiles()),
    "sgd packed bf16": lambda: run_sgd(B, words(), tiles()),
    "adamw": lambda: run_adamw(F),
    "adamw fp16": lambda: run_adamw(H),
    "adamw ungated": lambda: run_adamw(F, gates=False),
    "adamw masked": lambda: run_adamw(F, words()),
    "adamw packed": lambda: run_adamw(F, words(), tiles()),
    "adam packed bf16": lambda: run_adamw(B, words(), tiles(), decoupled=False),
    "count": lambda: mask_count.mask_count_triton(words(), tiles()),
    "apply": lambda: mask_apply.mask_apply_triton(x(), words()),
    "apply bf16": lambda: mask_apply.mask_apply_triton(x(B), words()),
    "histogram": lambda: run_histogram(F),
    "histogram bf16": lambda: run_histogram(B, "abs", shift=21),
    "histogram among": lambda: run_histogram(F, "abs", True, shift=0, bits=10),
    "histogram random": lambda: run_histogram(F, "random"),
    "histogram random among": lambda: run_histogram(F, "random", True),
    "write": lambda: run_write(F),
    "write bf16": lambda: run_write(B, "abs"),
    "write among": lambda: run_write(F, "abs", True),
    "write random among": lambda: run_write(F, "random", True),
    "ties": lambda: run_ties(F),
    "ties among": lambda: run_ties(F, "abs", True),
    "ties random among": lambda: run_ties(F, "random", True),
    "nm": lambda: run_nm(F),
    "nm out bf16": lambda: run_nm(B, "abs", False),
    "nm random": lambda: run_nm(F, "random"),
}
# more than 64, where fewer would spill: two forms of the random keys and a scan across the block;
# a parameter that comes from two places
REGISTERS = {"ties random among": 80, "adamw masked": 72}
# whole blocks of aligned float32 tensors go by 16-byte loads and stores, masked steps' too
STEPS = ("sgd", "sgd plain", "sgd first", "sgd masked", "sgd packed")
STEPS += ("adamw", "adamw ungated", "adamw masked", "adamw packed")
SCORES = ("histogram", "histogram bf16", "write", "write bf16", "ties")


@pytest.mark.parametrize("case", CASES)
def test_registers_and_no_spills(code_of, case):
    code = code_of(case)
    assert code.stack == 0
    assert code.count("LDL") == code.count("STL") == 0
    assert code.registers <= REGISTERS.get(case, 64)
    assert sum(code.counts.values()) > 50  # the disassembly was read


@pytest.mark.parametrize("case", STEPS)
def test_whole_blocks_of_steps_use_16_byte_accesses(code_of, case):
    code = code_of(case)
    assert code.count("LDG.E.128") > 0
    assert code.count("STG.E.128") > 0


@pytest.mark.parametrize("case", SCORES)
def test_scores_are_read_by_16_byte_loads(code_of, case):
    assert code_of(case).count("LDG.E.128") > 0


@pytest.mark.parametrize(("case", "sums"), [("sgd", 4), ("sgd plain", 2), ("sgd packed", 4)])
def test_every_sum_of_sgd_is_an_fma(code_of, case, sums):
    """Decay, momentum, Nesterov's direction and the step; 4 elements a thread in each loop."""
    ptx = code_of(case).ptx
    pairs = ptx.count("fma.rn.f32x2")  # sm_100 has instructions for two at a time
    assert ptx.count("fma.rn.f32") == ptx.count("fma.")
    assert ptx.count("fma.") + pairs == 8 * sums
    assert "add.rn.f32" not in ptx
    assert "sub.rn.f32" not in ptx


@pytest.mark.parametrize("case", ["adamw", "adamw fp16", "adamw ungated", "adamw packed"])
def test_the_only_fma_of_adamw_are_divisions_and_roots(code_of, case, capability, tmp_path):
    """Two divisions and a root an element; 4 elements a thread in each of two loops."""
    lanes = 8 * 128
    alone = probe(
        divide_and_root_kernel, capability, tmp_path / "probe", torch.zeros(2 * lanes), 0.1, 0.2,
        N=lanes, num_warps=4,
    )  # fmt: skip
    code = code_of(case)
    assert "fma." not in code.ptx
    assert code.count("FFMA") == alone.count("FFMA") > 0
    assert "sqrt.rn.f32" in code.ptx
    assert "div.rn.f32" in code.ptx


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_approximate_or_flushed(code_of, case):
    ptx = code_of(case).ptx
    assert "approx" not in ptx
    assert ".ftz" not in ptx


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("histogram")])
def test_histograms_count_in_shared_memory(code_of, case):
    """One atomic an entry in shared memory; in global memory one a bin, not one an entry."""
    code = code_of(case)
    assert code.count("ATOMS") > 0
    bins = 1024 if case == "histogram among" else 2048
    assert code.count("RED.E.") + code.count("REDG.E.") == bins // 512  # bins of a thread
    assert code.count("ATOM.") == code.count("ATOMG.") == 0


def test_one_compilation_over_changing_scalars():
    """Nothing that the JIT keys its compilations by depends on a hyper-parameter or a digit."""
    scalars = (0.0, 1.0, 0.1, 16.0, 1e-30, 3e38)
    sgd = [keys(lambda v=v: run_sgd(F, scalars=(v, v, v, v))) for v in scalars]
    adamw = [keys(lambda v=v: run_adamw(F, scalars=(v, 0.9, 0.1, v))) for v in scalars]
    histogram = [keys(lambda n=n: run_histogram(F, shift=n, bits=10)) for n in (0, 1, 7, 16)]
    nm = [keys(lambda n=n: run_nm(F, n=n, m=2 * n)) for n in (1, 2, 8, 16)]
    for family in (sgd, adamw, histogram, nm):
        assert all(k == family[0] for k in family)
        assert len(family[0]) == 1


def test_the_size_of_a_packed_backup_does_not_recompile():
    sizes = (1, 16, 17, 2**20)
    families = [
        keys(
            lambda n=n: restore_sgd.restore_sgd_triton(
                x(), x(), [], words(), [torch.zeros(n)], tiles(),
                0.1, 0.0, 0.0, False, 0.0, False, False, None, None,
            )
        )
        for n in sizes
    ]  # fmt: skip
    assert all(k == families[0] for k in families)
