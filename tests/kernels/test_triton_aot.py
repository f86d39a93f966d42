"""The Triton kernels compiled for sm_80, sm_90 and sm_100 without a GPU, and their machine code.

The launchers run on CPU tensors with ``launch`` replaced, so that what is compiled is exactly what
they would launch: argument types, specialisation, block sizes and options included. The interpreter
must be off (Triton reads TRITON_INTERPRET when it is imported).

Contraction: the PTX of an op without explicit fma has none, and ptxas runs with --fmad=false. In
the machine code a correctly rounded division or root is itself a sequence of FFMA; their number is
compared with that of a probe kernel that divides and takes roots as often and does nothing else.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a process without TRITON_INTERPRET", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl
from triton_code import (
    CUOBJDUMP,
    B,
    Code,
    F,
    H,
    captured,
    compile_call,
    divide_and_root_kernel,
    keys,
    probe,
    tiles,
    words,
    x,
)

from sparse_kernels.triton import (
    bregman_step,
    mask_pack,
    masked_perturb,
    norm,
    restore,
)

pytestmark = pytest.mark.slow  # every kernel through ptxas twice

if not CUOBJDUMP.exists():
    pytest.skip("this Triton comes without cuobjdump", allow_module_level=True)


def run_norm(d, masks=(), weights=()):
    norm.grad_norm_triton(x(d), list(masks), list(weights), 0.1, False)


def run_perturb(
    d, masks=(), backup=(), adaptive=False, norm=1.0, rho=0.1, eta=0.1, eps=0.1, ranks=()
):
    lists = list(masks), list(backup), list(ranks)
    masked_perturb.masked_perturb_triton(
        x(d), x(d), torch.tensor(norm), rho, *lists, adaptive, eta, eps
    )


REST = (False, True, 0.0, 1.0)  # nonnegative, readout, dual_leak, fine_scale
GIVEN = (False, False, 0.1, 1.0)


def run_linbreg(
    d, duals=True, buffers=False, active=(), nesterov=False, scalars=(0.1, 0.2, 0.7), rest=REST,
    device=None,
):  # fmt: skip
    f = torch.float32
    bregman_step.linbreg_step_triton(
        x(d), x(d), x(f) if duals else [], x(f) if buffers else [], list(active), *scalars,
        0.9, "sgd", nesterov, 0.01, False, *rest, device,
    )  # fmt: skip


def run_adabreg(d, counts=False, active=(), lr=0.1, step=3, rest=REST, device=None):
    n, table = [torch.zeros(64, dtype=torch.int32)], torch.ones(9)
    bregman_step.adabreg_step_triton(
        x(d), x(d), x(), x(), x(), n if counts else [], list(active), lr, 0.2, 0.7, 0.9, 0.999,
        1e-8, 0.01, False, *rest, step, table if counts else None, table if counts else None,
        device,
    )  # fmt: skip


def run_restore(d, masks=(), ranks=()):
    restore.restore_triton(x(d), list(masks), x(d), list(ranks))


CASES = {
    "norm": lambda: run_norm(F),
    "norm bf16": lambda: run_norm(B),
    "norm masked": lambda: run_norm(F, words()),
    "norm weighted": lambda: run_norm(F, weights=x()),
    "perturb": lambda: run_perturb(F),
    "perturb backup": lambda: run_perturb(F, backup=x()),
    "perturb backup bf16": lambda: run_perturb(B, backup=x(B)),
    "perturb backup fp16": lambda: run_perturb(H, backup=x(H)),
    "perturb adaptive": lambda: run_perturb(F, backup=x(), adaptive=True),
    "perturb masked": lambda: run_perturb(F, words(), x()),
    "perturb packed": lambda: run_perturb(F, words(), x(), True, ranks=tiles()),
    "perturb packed bf16": lambda: run_perturb(B, words(), x(B), ranks=tiles()),
    "restore": lambda: run_restore(F),
    "restore bf16": lambda: run_restore(B),
    "restore masked": lambda: run_restore(F, words()),
    "restore packed": lambda: run_restore(F, words(), tiles()),
    "restore packed bf16": lambda: run_restore(B, words(), tiles()),
    "pack": lambda: mask_pack.mask_pack_triton(x(torch.bool), words()),
    "unpack": lambda: mask_pack.mask_unpack_triton(words(), x(torch.bool)),
    "linbreg": lambda: run_linbreg(F),
    "linbreg no dual": lambda: run_linbreg(F, duals=False),
    "linbreg momentum": lambda: run_linbreg(F, buffers=True),
    "linbreg momentum bf16": lambda: run_linbreg(B, buffers=True),
    "linbreg active": lambda: run_linbreg(F, buffers=True, active=words(), nesterov=True),
    "linbreg given": lambda: run_linbreg(F, rest=GIVEN),
    "linbreg given bf16": lambda: run_linbreg(B, buffers=True, rest=GIVEN),
    "linbreg on device": lambda: run_linbreg(F, buffers=True, device=torch.ones(4)),
    "adabreg": lambda: run_adabreg(F),
    "adabreg on device": lambda: run_adabreg(F, device=torch.ones(4)),
    "adabreg given": lambda: run_adabreg(F, rest=GIVEN),
    "adabreg given counts": lambda: run_adabreg(F, counts=True, rest=GIVEN),
    "adabreg bf16": lambda: run_adabreg(B),
    "adabreg active": lambda: run_adabreg(F, active=words()),
    "adabreg counts": lambda: run_adabreg(F, counts=True),
}
# more than 64 registers, where fewer would spill: an extra stream of counts, two gathered tables
REGISTERS = {
    "adabreg counts": 96,
    "adabreg given counts": 96,
}
# whole blocks of aligned float32 tensors go by 16-byte loads and stores
VECTORISED = (
    "perturb", "perturb backup", "perturb adaptive", "restore", "restore bf16",
    "perturb backup bf16", "perturb backup fp16", "linbreg", "linbreg no dual", "linbreg momentum",
    "adabreg", "adabreg counts",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_registers_and_no_spills(code_of, case):
    code = code_of(case)
    assert code.stack == 0
    assert code.count("LDL") == code.count("STL") == 0
    assert code.registers <= REGISTERS.get(case, 64)
    assert sum(code.counts.values()) > 50  # the disassembly was read


@pytest.mark.parametrize("case", VECTORISED)
def test_whole_blocks_use_16_byte_accesses(code_of, case):
    code = code_of(case)
    assert code.count("LDG.E.128") > 0
    assert code.count("STG.E.128") > 0


@pytest.mark.parametrize("case", ["norm", "norm bf16", "norm weighted"])
def test_norm_uses_16_byte_loads(code_of, case):
    assert code_of(case).count("LDG.E.128") > 0


NO_CONTRACTION = (
    "norm", "norm weighted", "linbreg", "linbreg active", "linbreg momentum bf16", "linbreg given",
)  # fmt: skip


@pytest.mark.parametrize("case", NO_CONTRACTION)
def test_no_fma_at_all(code_of, case):
    assert "fma." not in code_of(case).ptx
    assert code_of(case).count("FFMA") == 0


@triton.jit
def _divide_kernel(x_ptr, a, b):
    tl.store(x_ptr, tl.math.div_rn(a, tl.load(x_ptr) + b))


PERTURBED = ("perturb", "perturb adaptive", "perturb masked", "perturb packed")


@pytest.mark.parametrize("case", PERTURBED)
def test_the_only_fma_of_perturb_is_one_division(code_of, case, capability, tmp_path):
    """rho / (norm + eps), once per program; see the module's docstring."""
    one = probe(_divide_kernel, capability, tmp_path / "probe", torch.zeros(1), 0.1, 0.2)
    assert "fma." not in code_of(case).ptx
    assert code_of(case).count("FFMA") == one.count("FFMA") > 0


@pytest.mark.parametrize("case", ["adabreg", "adabreg bf16", "adabreg active", "adabreg given"])
def test_the_only_fma_of_adabreg_are_divisions_and_roots(code_of, case, capability, tmp_path):
    """Two divisions and a root an element; 4 elements a thread, in each of up to two loops."""
    lanes = 128 * (4 if case == "adabreg active" else 8)  # the active form has one loop
    alone = probe(
        divide_and_root_kernel, capability, tmp_path / "probe", torch.zeros(2 * lanes), 0.1, 0.2,
        N=lanes, num_warps=4,
    )  # fmt: skip
    assert "fma." not in code_of(case).ptx
    assert code_of(case).count("FFMA") == alone.count("FFMA") > 0


def test_contraction_would_be_seen(capability, tmp_path):
    """The same kernel with fusion allowed does contract, so its absence is the option's doing."""
    call = captured(CASES["linbreg"])[0]
    fused = Code(compile_call(call, capability, enable_fp_fusion=True), tmp_path / "fused")
    assert fused.count("FFMA") > 0


def test_rounding_of_roots_and_divisions(code_of):
    for case in ("adabreg", "perturb"):
        ptx = code_of(case).ptx
        assert "approx" not in ptx
        assert ".ftz" not in ptx
    assert "sqrt.rn.f32" in code_of("adabreg").ptx
    assert "div.rn.f32" in code_of("adabreg").ptx


def test_sum_of_partials_adds_and_roots_in_float64(capability, tmp_path):
    code = Code(compile_call(captured(CASES["norm"])[1], capability), tmp_path / "sum")
    assert code.ptx.count("add.rn.f64") + code.ptx.count("add.f64") >= 32
    assert "sqrt.rn.f64" in code.ptx
    assert "fma." not in code.ptx
    assert code.stack == 0
    assert code.registers <= 64


def test_one_compilation_over_changing_scalars():
    """Nothing that the JIT keys its compilations by depends on a hyper-parameter or step."""
    scalars = (0.0, 1.0, 0.1, 16.0, 1e-30, 3e38)
    perturb = [keys(lambda v=v: run_perturb(F, norm=v, rho=v, eta=v, eps=v)) for v in scalars]
    rests = [(n % 2 == 0, True, v, v) for n, v in enumerate(scalars)]
    linbreg = [
        keys(lambda v=v, r=r: run_linbreg(F, scalars=(v, v, v), rest=r))
        for v, r in zip(scalars, rests, strict=True)
    ]
    adabreg = [
        keys(lambda v=v, n=n: run_adabreg(F, lr=v, step=n + 1, rest=rests[n]))
        for n, v in enumerate(scalars)
    ]
    for family in (perturb, linbreg, adabreg):
        assert all(k == family[0] for k in family)
        assert len(family[0]) == 1


def test_alignment_of_small_tensors_does_not_recompile():
    shifted = torch.zeros(3)[1:2].reshape(())
    aligned = keys(lambda: run_perturb(F))

    def run():
        masked_perturb.masked_perturb_triton(x(), x(), shifted, 0.1, [], [], [], False, 0.1, 0.1)

    assert keys(run) == aligned
