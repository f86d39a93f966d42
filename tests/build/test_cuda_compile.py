"""Machine code of the CUDA kernels, from nvcc alone: no GPU and no CUDA build of torch needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import compile_cuda
import cuda_budget
import pytest
from compile_cuda import Kernel
from cuda_budget import Budget, compare

from sparse_kernels._schemas import SCHEMAS

MAX_REGISTERS = 64
#: functors without fma, division or square root; the last two are inlined with FFMA inside
CONTRACTION_FREE = (
    "Restore<", "SquaredNorm", "LinBregStep", "MaskPack", "MaskUnpack", "MaskApply",
    "MaskNm", "ScoreKeys", "RandomKeys", "LiveMask", "MoveEntries",
)  # fmt: skip
#: kernels that read, write, or read and write whole 16-byte groups
VECTOR_READS = (
    "SquaredNorm<float", "WeightedSquaredNorm<float", "ScoreKeys<float", "ScoreKeys<bf16",
    "ScoreKeys<f16", "LiveMask<float",
)  # fmt: skip
VECTOR_WRITES = ("MaskApply<unsigned short", "MaskApply<unsigned int", "MaskApply<unsigned long")
VECTOR_BOTH = (
    "MaskedPerturb<float", "Restore<unsigned int", "Restore<unsigned long", "LinBregStep<float",
    "RestoreSgd<float", "RestoreSgd<bf16", "RestoreSgd<f16", "RestoreAdamw<float",
    "AdaBregStep<float", "ProxLists<float", "Drawn<ZoCombine<float", "MaskedPerturb<bf16",
    "MaskedPerturb<f16",
    "Restore<unsigned short", "Drawn<ZoCombine<bf16, bf16, false>, Signs",
    "Drawn<ZoCombine<f16, f16, false>, Signs", "Drawn<ZoCombine<bf16, InPlace, false",
    "Drawn<ZoCombine<f16, InPlace, false",
    "Packed<Drawn<ZoCombine<bf16, InPlace, false>, Signs",
    "Packed<Drawn<ZoCombine<f16, InPlace, false>, Signs",
)  # fmt: skip
TYPES = ("float", "bf16", "f16")
#: of these, the ones that read scattered entries
SCATTERED = (
    "Packed<Restore<",
    "MaskNm<",
    *(f"Packed<Drawn<ZoCombine<{t}, FromEntries" for t in TYPES),
)

#: with 16 bytes at a time these spill (csrc/phases/shape.h)
EIGHT_BYTES = tuple(
    f"Packed<Drawn<ZoCombine<{t}, InPlace, false>, {draws}"
    for t in ("bf16", "f16")
    for draws in ("Normals", "FastNormals")
)


def test_every_op_is_registered_under_the_cuda_key():
    registered = []
    for source in compile_cuda.SOURCES:
        text = source.read_text()
        for key, body in re.findall(
            r"_IMPL\(sparse_kernels, (\w+), m\) \{(.*?)\n?\}\n", text, re.S
        ):
            assert key == "CUDA", f"{source.name} registers under {key}"
            ops = re.findall(r'm\.impl\("(\w+)", TORCH_BOX\(&(\w+)\)\)', body)
            for op, function in ops:
                assert function == op.rstrip("_") + "_cuda"
                registered.append(op)
    assert sorted(registered) == sorted(SCHEMAS)


@dataclass
class Compiled:
    kernels: list[Kernel]
    ptx: dict[str, str]
    budget: Budget


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Compiled:
    nvcc, cuobjdump = compile_cuda.find_nvcc(), compile_cuda.find_cuobjdump()
    if nvcc is None:
        pytest.skip("nvcc is not installed: the CUDA kernels were not compiled")
    if cuobjdump is None:
        pytest.skip("cuobjdump is neither on PATH nor in a triton wheel")
    folder: Path = tmp_path_factory.mktemp("cuda")
    out = Compiled([], {}, Budget(compile_cuda.version_of(nvcc), {}))
    for stem, path in compile_cuda.compile_all(nvcc, compile_cuda.SOURCES, folder).items():
        out.kernels += compile_cuda.kernels_of(cuobjdump, stem, path)
        out.ptx |= compile_cuda.ptx_entries(cuobjdump, path)
    out.budget.kernels = compile_cuda.costs_of(out.kernels, folder)
    return out


def is_a(kernel: Kernel | str, *ops: str) -> bool:
    name = kernel if isinstance(kernel, str) else kernel.name
    return any(f"<{op}" in name for op in ops)


def fail_with(kernels: list[Kernel], what: str) -> None:
    assert not kernels, f"{what}:\n" + "\n".join(map(str, kernels))


@pytest.mark.slow
def test_no_spills_and_few_registers(compiled, capsys):
    for arch in compile_cuda.ARCHS:
        here = [k for k in compiled.kernels if k.arch == arch]
        assert {k.stem for k in here} == {s.stem for s in compile_cuda.SOURCES}
        with capsys.disabled():
            for stem in sorted({k.stem for k in here}):
                mine = [k for k in here if k.stem == stem]
                counts = ", ".join(
                    f"{sum(k.count(op) for k in mine)} {op}"
                    for op in ("LDG", "LDG.E.128", "STG", "STG.E.128")
                )
                print(
                    f"\nsm_{arch} {stem}: {len(mine)} kernels, at most "
                    f"{max(k.registers for k in mine)} registers, {counts}",
                    end="",
                )
    spilled = [k for k in compiled.kernels if k.stack or k.count("LDL") or k.count("STL")]
    fail_with(spilled, "kernels that spill")
    fail_with([k for k in compiled.kernels if k.registers > MAX_REGISTERS], "too many registers")


@pytest.mark.slow
def test_kernels_stay_within_their_budget(compiled, capsys):
    """Every kernel against tests/build/cuda_budget.json: what costs more fails, less is said."""
    over, below = compare(Budget.read(), compiled.budget)
    with capsys.disabled():
        if below:
            print(f"\nbelow the budget, which can be tightened ({cuda_budget.WRITE}):")
            print("\n".join(below))
    assert not over, "\n".join(over)


@pytest.mark.slow
def test_vector_path_uses_16_byte_accesses(compiled):
    dense = [k for k in compiled.kernels if not is_a(k, *SCATTERED, *EIGHT_BYTES)]
    halved = [k for k in compiled.kernels if is_a(k, *EIGHT_BYTES)]
    assert len(halved) >= 4 * len(compile_cuda.ARCHS)
    fail_with(
        [k for k in halved if not (k.count("LDG.E.64") and k.count("STG.E.64"))],
        "neither 16 nor 8 bytes at a time",
    )
    for op in (*VECTOR_READS, *VECTOR_WRITES, *VECTOR_BOTH):
        assert any(is_a(k, op) for k in dense), f"no kernel of {op}"
    reads = [k for k in dense if is_a(k, *VECTOR_READS, *VECTOR_BOTH)]
    fail_with([k for k in reads if not k.count("LDG.E.128")], "no 16-byte loads")
    writes = [k for k in dense if is_a(k, *VECTOR_WRITES, *VECTOR_BOTH)]
    fail_with([k for k in writes if not k.count("STG.E.128")], "no 16-byte stores")


@pytest.mark.slow
def test_machine_code_has_no_fused_multiply_add(compiled):
    free = [k for k in compiled.kernels if is_a(k, *CONTRACTION_FREE)]
    stems = {"restore", "norm", "bregman_step", "mask_pack", "mask_apply"}
    assert {k.stem for k in free} == stems | {"mask_topk", "mask_nm", "compaction"}
    fail_with([k for k in free if k.count("FFMA")], "FFMA in a kernel without fma")


@pytest.mark.slow
def test_atomics_add_integers(compiled):
    """A sum of floats has an order, which atomics do not keep."""
    atomics = {c.opcode for k in compiled.kernels for c in k.code if c.is_a("ATOM", "ATOMG", "RED",
               "REDG", "ATOMS", "REDUX", "CREDUX")}  # fmt: skip
    assert any("64" in a for a in atomics), "counts are 64-bit integers"
    assert not [a for a in atomics if re.search(r"\.B?F(16|32|64)|\.F\d", a)]


@pytest.mark.slow
def test_ptx_has_no_contraction(compiled):
    """PTX tells an fma from one inside a division: every add and mul must forbid contraction."""
    assert compiled.ptx
    for name, text in compiled.ptx.items():
        assert not re.search(r"\b(add|sub|mul)\.(ftz\.)?f32", text), f"{name} may be contracted"
        approximate = bool(re.search(r"\.ftz|\.approx|div\.full", text))
        assert approximate == ("FastNormals" in name), f"{name}: approximate is {approximate}"
        explicit = is_a(name, "Drawn", "RestoreSgd") or "gram_kernel" in name
        assert explicit or "fma.rn" not in text, f"{name} has an fma of the compiler's making"
    perturb = [text for name, text in compiled.ptx.items() if is_a(name, "MaskedPerturb")]
    assert perturb
    assert all(text.count("div.rn.f32") == 1 for text in perturb)  # rho / (norm + eps), once
