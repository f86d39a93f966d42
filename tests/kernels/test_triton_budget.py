"""The Triton kernels against their budget, triton_budget.json; see triton_budget.py."""

from __future__ import annotations

import os
import re

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a process without TRITON_INTERPRET", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import triton
from triton_budget import (
    CASES,
    TRAFFIC,
    Cost,
    cost_of,
    excess,
    main_loop,
    read,
    vector_loops,
)
from triton_code import captured

from sparse_kernels.triton import _autotune

pytestmark = pytest.mark.slow  # every kernel through ptxas for each architecture

VERSION, BUDGET = read()


@pytest.mark.parametrize("case", CASES)
def test_costs_are_within_the_budget(code_of, case, capability):
    assert excess(cost_of(case, code_of(case)), BUDGET[case][str(capability)], VERSION) == []


@pytest.mark.parametrize("case", TRAFFIC)
def test_vector_accesses_move_the_streams_of_the_op_and_no_more(code_of, case):
    found = main_loop(case, code_of(case))
    assert found is not None
    assert found[1] % 4 == 0


def test_the_budget_is_that_of_these_cases():
    assert set(BUDGET) == set(CASES) >= set(TRAFFIC)
    assert all(set(of) == {"80", "90", "100"} for of in BUDGET.values())


def test_excess_is_seen():
    budget = Cost(40, 0, 500, 10.0)
    assert excess(budget, budget, triton.__version__) == []
    for more in (Cost(41, 0, 500, 10.0), Cost(40, 8, 500, 10.0), Cost(40, 0, 500, 10.1)):
        assert len(excess(more, budget, triton.__version__)) == 1
    other = "0.0"
    assert excess(Cost(46, 0, 575, 11.5), budget, other) == []
    assert len(excess(Cost(47, 8, 576, 11.6), budget, other)) == 4


def test_loops_are_found_by_their_branches():
    sass = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
        /*0020*/              @!P0 LDG.E.64.CONSTANT R8, [R2.64] ;
        /*0030*/                   LDS R3, [R5] ;
        /*0040*/              @P1  BRA 0x30 ;
        /*0050*/                   STG.E.128 [R2.64], R4 ;
        /*0060*/              @P0  BRA 0x10 ;
        /*0070*/                   BRA 0x70;
    """
    (loop,) = vector_loops(sass, 64, 128)
    assert (loop.loaded, loop.stored, len(loop.opcodes)) == (24, 16, 6)
    (loop,) = vector_loops(sass, 128)
    assert (loop.loaded, loop.stored) == (16, 16)


# ---- what the number of warps may not change --------------------------------------------------

TUNED = [case for case, run in CASES.items() if captured(run)[0][0].fn.__name__ in _autotune.TUNED]


def unordered_sums(ttgir):
    """Lengths of sums of floats over more than two: in an order that the layout suggests."""
    shape = r"\(\{.*?\}\) : \(tensor<([\dx]+)x(\w+)"
    reductions = re.findall(rf'"tt.reduce"\(.*?axis = (\d+).*?{shape}', ttgir, re.DOTALL)
    scans = re.findall(rf'"tt.scan"\(.*?axis = (\d+).*?{shape}', ttgir, re.DOTALL)
    assert len(reductions) == ttgir.count('"tt.reduce"(')
    assert len(scans) == ttgir.count('"tt.scan"(')
    lengths = [
        int(sizes.split("x")[int(axis)])
        for axis, sizes, element in reductions + scans
        if element.startswith(("f", "bf"))
    ]
    return [n for n in lengths if n > 2]


@pytest.mark.parametrize("case", TUNED)
def test_float_sums_of_tuned_kernels_have_one_order(code_of, case):
    assert unordered_sums(code_of(case).ttgir) == []


def test_an_unordered_sum_would_be_seen(code_of):
    """The value of group shrinkage is one, so its kernels are not tuned."""
    assert unordered_sums(code_of("groups: groups of 64").ttgir) != []
    assert "groups: groups of 64" not in TUNED
