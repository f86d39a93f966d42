"""The budget of the CUDA kernels, without nvcc: its numbers, its comparison, its table."""

from __future__ import annotations

import dataclasses

import cuda_table
import pytest
import sass
from cuda_budget import MARGIN, MARGIN_REGISTERS, Budget, Cost, Entry, compare, key_of

ARCHS = ("80", "90", "100")
#: what issues more than its bytes leave time for, in fp32 on sm_90: groups in the worst tiling, and
#: normals from a packed backup
INSTRUCTION_BOUND = ("prox_small_kernel<", "ZoCombine<float, FromEntries, ")


@pytest.fixture
def budget() -> Budget:
    return Budget.read()


def test_every_kernel_has_a_budget_on_every_architecture(budget):
    for key, entry in budget.kernels.items():
        assert tuple(entry.costs) == ARCHS, key
        for arch, cost in entry.costs.items():
            assert cost.spills == 0, f"{key} spills on sm_{arch}"
            assert 0 < cost.registers <= 64, f"{key} on sm_{arch}: {cost.registers} registers"
            assert cost.instructions > 0


def test_fp32_kernels_issue_less_than_their_bytes_leave_time_for(budget):
    """62 instructions for 8 bytes (H200); the exceptions are bold in docs/performance.md."""
    fp32 = {k: e for k, e in budget.kernels.items() if e.bytes and "float" in k and "f16" not in k}
    assert len(fp32) > 60
    over = {k for k, e in fp32.items() if e.costs["90"].per_element > e.slots}
    unknown = [k for k in over if not any(name in k for name in INSTRUCTION_BOUND)]
    assert not unknown
    for name in INSTRUCTION_BOUND:
        assert any(name in k for k in over), f"{name} is not bound by instructions any more"


def test_the_page_has_the_table_of_the_budget(budget):
    page = cuda_table.PAGE.read_text()
    assert cuda_table.written(page, budget) == page, "run: python tests/build/cuda_table.py"


def a_budget(nvcc: str = "13.0.1", **changes: float) -> Budget:
    cost = Cost(registers=40, spills=0, loads=2, stores=2, instructions=100, elements=8)
    return Budget(nvcc, {"norm: Op": Entry(4.0, {"90": dataclasses.replace(cost, **changes)})})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"registers": 41}, "norm: Op, sm_90: registers 40 -> 41, at most 40"),
        ({"spills": 8}, "norm: Op, sm_90: spills 0 -> 8, at most 0"),
        ({"instructions": 101}, "norm: Op, sm_90: instructions per element 12.5 -> 12.62"),
        ({"elements": 4}, "norm: Op, sm_90: instructions per element 12.5 -> 25"),
        ({"loads": 0}, "norm: Op, sm_90: 16-byte loads 2 -> 0"),
        ({"stores": 3}, "norm: Op, sm_90: 16-byte stores 2 -> 3"),
    ],
)
def test_what_exceeds_the_budget_is_named_with_both_numbers(changes, said):
    over, below = compare(a_budget(), a_budget(**changes))
    assert len(over) == 1
    assert over[0].startswith(said)
    assert not below


def test_what_costs_less_is_only_said():
    over, below = compare(a_budget(), a_budget(registers=32, instructions=80))
    assert not over
    assert [line.split(": ", 2)[2] for line in below] == [
        "registers 40 -> 32", "instructions per element 12.5 -> 10",
    ]  # fmt: skip


def test_kernels_without_a_budget_and_budgets_without_a_kernel():
    new = a_budget()
    new.kernels["norm: New"] = new.kernels.pop("norm: Op")
    over, _ = compare(a_budget(), new)
    assert [line.split("; ")[0] for line in over] == [
        "norm: Op: has a budget, but is not compiled any more", "norm: New: has no budget",
    ]  # fmt: skip
    assert all("--write-budget" in line for line in over)
    new = a_budget()
    new.kernels["norm: Op"].costs["100"] = new.kernels["norm: Op"].costs["90"]
    assert compare(a_budget(), new)[0][0].startswith("norm: Op, sm_100: has no budget")


def test_another_nvcc_has_a_margin_and_no_more():
    other = "13.1.5"
    more = int(100 * (1 + MARGIN))
    within = a_budget(other, registers=40 + MARGIN_REGISTERS, instructions=more, loads=1)
    assert not compare(a_budget(), within)[0]
    for change in (
        {"registers": 41 + MARGIN_REGISTERS},
        {"instructions": more + 1},
        {"spills": 4},
        {"stores": 0},
    ):
        assert len(compare(a_budget(), a_budget(other, **change))[0]) == 1


def test_keys():
    name = "for_each_kernel<Packed<Restore<unsigned int> >, true>"
    assert key_of("restore", name) == "restore: Packed<Restore<unsigned int>> masked"
    assert key_of("norm", "for_each_kernel<SquaredNorm<f16>, false>") == "norm: SquaredNorm<f16>"
    assert key_of("zo_key", "zo_key_kernel") == "zo_key: zo_key_kernel"


# the graph of a kernel ---------------------------------------------------------------------------


def code_of(*lines: str) -> sass.Code:
    """One instruction of 16 bytes a line, "label: " in front where something jumps to it."""
    labels = {line.split(": ")[0]: 16 * i for i, line in enumerate(lines) if ": " in line}
    text = []
    for i, line in enumerate(lines):
        body = line.split(": ")[-1]
        for label, address in labels.items():
            body = body.replace(f"@{label}", hex(address))
        text.append(f"        /*{16 * i:04x}*/    {body} ;    /* 0x000 */")
    return sass.Code(sass.instructions("\n".join(text)))


def test_the_hot_loop_is_the_one_with_the_widest_accesses():
    code = code_of(
        "MOV R1, c[0x0][0x28]",
        "@!P0 BRA @tail",
        "hot: LDG.E.128 R4, desc[UR6][R2.64]",
        "FADD R4, R4, R4",
        "STG.E.128 desc[UR6][R2.64], R4",
        "@P0 BRA @hot",
        "tail: LDG.E R4, desc[UR6][R2.64]",
        "FADD R4, R4, R4",
        "FADD R4, R4, R4",
        "FADD R4, R4, R4",
        "@P1 BRA @tail",
        "EXIT",
    )
    assert len(code.loops) == 2
    assert code.hot() == sass.Path(widest=2, calls=0, deep=0, length=4, loaded=16)
    assert code.straight().length == 12
    assert code.loop() == sass.Path(widest=0, calls=0, deep=0, length=5, loaded=0)


def test_the_vector_path_takes_the_branch_with_more_of_them_and_inner_loops_once():
    code = code_of(
        "head: ISETP.NE.AND P0, PT, R0, RZ, PT",
        "@P0 BRA @wide",
        "LDG.E R4, desc[UR6][R2.64]",
        *["FADD R4, R4, R4"] * 9,
        "BRA @inner",
        "wide: LDG.E.128 R4, desc[UR6][R2.64]",
        "inner: FFMA R4, R4, R4, R4",
        "@P1 BRA @inner",
        "BRA.U UP0, @head",
        "EXIT",
    )
    assert code.hot() == sass.Path(widest=1, calls=0, deep=0, length=6, loaded=16)


def test_slow_paths_are_calls_and_some_calls_only_leave_a_loop():
    code = code_of(
        "head: LDG.E.128 R4, desc[UR6][R2.64]",
        "@!P0 BRA @fast",
        *["FADD R4, R4, R4"] * 5,
        "CALL.REL.NOINC @divide",
        "BRA @join",
        "fast: FMUL R4, R4, R4",
        "join: @P1 CALL.REL.NOINC @end",
        "BRA @head",
        "end: EXIT",
        "divide: MUFU.RCP R4, R4",
        "RET.REL.NODEC R20 0x0",
    )
    assert len(code.calls) == 1
    assert code.hot() == sass.Path(widest=1, calls=0, deep=0, length=5, loaded=16)


def test_a_loop_inside_an_inner_loop_is_avoided():
    code = code_of(
        "head: LDG.E.128 R4, desc[UR6][R2.64]",
        "@P0 BRA @whole",
        "split: FADD R4, R4, R4",
        "deep: FADD R4, R4, R4",
        *["FADD R4, R4, R4"] * 9,
        "@P1 BRA @deep",
        "@P2 BRA @split",
        "BRA @join",
        "whole: FMUL R4, R4, R4",
        "@P3 BRA @whole",
        "join: @P4 BRA @head",
        "EXIT",
    )
    assert code.hot() == sass.Path(widest=1, calls=0, deep=0, length=5, loaded=16)


def test_code_moved_behind_the_rest_is_no_loop():
    code = code_of(
        "LDG.E.128 R4, desc[UR6][R2.64]",
        "@P0 BRA @cold",
        "back: FADD R4, R4, R4",
        "EXIT",
        "cold: FADD R4, R4, R4",
        "BRA @back",
    )
    assert not code.loops
    assert code.hot() is None
    assert code.straight().length == 6


def test_jumps_to_computed_addresses_are_refused():
    with pytest.raises(ValueError, match="computed address"):
        code_of("BRX R4 -0x20", "EXIT")
