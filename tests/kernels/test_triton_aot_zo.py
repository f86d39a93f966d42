"""The Triton kernels of random directions compiled without a GPU.

As in test_triton_aot.py, whose docstring says how.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a process without TRITON_INTERPRET", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import zo_combine, zo_key
from triton_code import CUOBJDUMP, B, F, H, keys, tiles, words, x

pytestmark = pytest.mark.slow  # every kernel through ptxas twice

if not CUOBJDUMP.exists():
    pytest.skip("this Triton comes without cuobjdump", allow_module_level=True)

KEY, COEF = torch.tensor(1), torch.tensor([0.5])


def stream(kind, first=0, key=KEY, uid=0, firsts=()):
    return key, None, first, [uid], list(firsts), kind, 10, "portable"


def run_combine(
    d, kind, full=False, masks=(), sumsq=False, q=1, src=(), backup=(), ranks=(), **where
):
    """``full``: with source, backup and factors."""
    factor = torch.ones(1) if full else None
    total = torch.zeros((), dtype=torch.float64) if sumsq else None
    src, backup = list(src) or (x(d) if full else []), list(backup) or (x(d) if full else [])
    zo_combine.zo_combine_triton(
        x(d), src, torch.ones(q), *stream(kind, **where), list(masks), backup, list(ranks),
        factor, factor, total,
    )  # fmt: skip


def run_norm2(kind, **where):
    zo_combine.zo_norm2_triton(x(), COEF, *stream(kind, **where), words())


def run_gram(kind, **where):
    zo_combine.zo_gram_triton(x(), 2, *stream(kind, **where), words())


def run_key(step=0, stream=0):
    zo_key.zo_key_triton(torch.tensor(0), torch.tensor(step), KEY, stream)


SHARD = {"firsts": [5]}
CASES = {
    "normal": lambda: run_combine(F, "normal"),
    "normal bf16": lambda: run_combine(B, "normal"),
    "normal masked": lambda: run_combine(F, "normal", full=True, masks=words()),
    "normal sumsq": lambda: run_combine(F, "normal", full=True, sumsq=True),
    "signs": lambda: run_combine(F, "rademacher"),
    "signs bf16": lambda: run_combine(B, "rademacher"),
    "signs full": lambda: run_combine(F, "rademacher", full=True),
    "signs full bf16": lambda: run_combine(B, "rademacher", full=True),
    "normal full bf16": lambda: run_combine(B, "normal", full=True),
    "normal masked bf16": lambda: run_combine(B, "normal", full=True, masks=words()),
    "signs masked bf16": lambda: run_combine(B, "rademacher", full=True, masks=words()),
    "signs masked": lambda: run_combine(F, "rademacher", full=True, masks=words()),
    "signs sumsq": lambda: run_combine(F, "rademacher", full=True, sumsq=True),
    "normal masked in place": lambda: run_combine(F, "normal", masks=words()),
    "signs masked in place": lambda: run_combine(F, "rademacher", masks=words()),
    "signs masked in place bf16": lambda: run_combine(B, "rademacher", masks=words()),
    "normal shard": lambda: run_combine(F, "normal", **SHARD),
    "normal shard bf16": lambda: run_combine(B, "normal", **SHARD),
    "normal shard masked": lambda: run_combine(F, "normal", full=True, masks=words(), **SHARD),
    "normal shard sumsq": lambda: run_combine(F, "normal", full=True, sumsq=True, **SHARD),
    "signs shard": lambda: run_combine(F, "rademacher", **SHARD),
    "signs shard bf16": lambda: run_combine(B, "rademacher", **SHARD),
    "signs shard masked": lambda: run_combine(F, "rademacher", full=True, masks=words(), **SHARD),
    "signs shard sumsq": lambda: run_combine(F, "rademacher", full=True, sumsq=True, **SHARD),
    "normal wide bf16": lambda: run_combine(B, "normal", src=x(F)),
    "normal wide fp16": lambda: run_combine(H, "normal", src=x(F)),
    "signs wide bf16": lambda: run_combine(B, "rademacher", src=x(F)),
    "signs wide masked bf16": lambda: run_combine(B, "rademacher", masks=words(), src=x(F)),
    "normal packed": lambda: run_combine(F, "normal", masks=words(), backup=x(F), ranks=tiles()),
    "signs packed": lambda: run_combine(F, "rademacher", masks=words(), backup=x(), ranks=tiles()),
    "signs packed bf16": lambda: run_combine(
        B, "rademacher", masks=words(), backup=x(B), ranks=tiles()
    ),
    "normal from packed": lambda: run_combine(F, "normal", masks=words(), src=x(), ranks=tiles()),
    "normal from packed bf16": lambda: run_combine(
        B, "normal", masks=words(), src=x(B), ranks=tiles()
    ),
    "signs from packed sumsq": lambda: run_combine(
        F, "rademacher", masks=words(), src=x(), ranks=tiles(), sumsq=True
    ),
    "shard from packed sumsq": lambda: run_combine(
        F, "normal", masks=words(), src=x(), ranks=tiles(), sumsq=True, **SHARD
    ),
    "packed sumsq": lambda: run_combine(
        B, "normal", full=True, masks=words(), ranks=tiles(), sumsq=True
    ),
    "norm2 normal": lambda: run_norm2("normal"),
    "norm2 signs": lambda: run_norm2("rademacher"),
    "norm2 normal shard": lambda: run_norm2("normal", **SHARD),
    "norm2 signs shard": lambda: run_norm2("rademacher", **SHARD),
    "gram normal": lambda: run_gram("normal"),
    "gram signs": lambda: run_gram("rademacher"),
    "gram normal shard": lambda: run_gram("normal", **SHARD),
    "gram signs shard": lambda: run_gram("rademacher", **SHARD),
    "key": run_key,
}
# more than 64 registers, where fewer would spill: the lanes of a sum beside places in a packed
# tensor or normals of two calls
REGISTERS = dict.fromkeys(
    ("signs from packed sumsq", "shard from packed sumsq", "packed sumsq", "normal shard sumsq",
     "norm2 normal shard"), 80,
)  # fmt: skip
# whole blocks of aligned float32 tensors go by 16-byte loads and stores
VECTORISED = (
    "normal", "normal sumsq", "signs", "signs full", "signs bf16", "signs sumsq", "normal shard",
    "normal shard sumsq", "signs shard", "signs shard sumsq", "normal wide bf16", "signs wide bf16",
    "normal masked in place", "signs masked in place", "normal packed", "signs packed",
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


@pytest.mark.parametrize("case", ["normal", "signs"])
def test_philox_multiplies_wide(code_of, case):
    # two products a round, one instruction each (the first round of the uid is uniform)
    assert code_of(case).count("IMAD.WIDE.U32") >= 18


def test_roots_are_correctly_rounded_and_nothing_is_flushed(code_of):
    for case in ("normal", "normal shard", "normal wide bf16"):
        ptx = code_of(case).ptx
        assert "approx" not in ptx
        assert ".ftz" not in ptx
        assert "sqrt.rn.f32" in ptx


def test_one_compilation_over_changing_numbers():
    """Nothing that the JIT keys its compilations by depends on a seed, step, direction or place."""
    numbers = (0, 1, 16, 17, 2**31, 2**32 - 2)
    draws, shards, norms, grams = [], [], [], []
    for n in numbers:
        place = {"first": n, "uid": n, "key": torch.tensor(n)}
        shard = {**place, "firsts": [n << 30]}
        draws.append(keys(lambda n=n, p=place: run_combine(F, "normal", q=1 + n % 18, **p)))
        shards.append(keys(lambda n=n, p=shard: run_combine(F, "normal", q=1 + n % 18, **p)))
        norms.append(keys(lambda p=shard: run_norm2("normal", **p)))
        grams.append(keys(lambda p=shard: run_gram("normal", **p)))
    steps = [keys(lambda n=n: run_key(n, n)) for n in (*numbers, 2**32 - 1)]
    # a sum over chunks is a second kernel
    for family, kernels in ((draws, 1), (shards, 1), (norms, 2), (grams, 2), (steps, 1)):
        assert all(k == family[0] for k in family)
        assert len(family[0]) == kernels
    assert draws[0] != shards[0]  # what starts at 0 has kernels of its own


def test_alignment_and_size_do_not_recompile():
    cell = torch.zeros(3, dtype=torch.int64)

    def key(i):
        zo_key.zo_key_triton(cell[i : i + 1], cell[1:2], cell[2:3], 0)

    def packed(n):
        backup = [torch.zeros(n)]
        run_combine(F, "normal", masks=words(), backup=backup, ranks=tiles())

    for families in (
        [keys(lambda i=i: key(i)) for i in (0, 1)],
        [keys(lambda n=n: packed(n)) for n in (1, 16, 17, 2**20)],
    ):
        assert all(k == families[0] for k in families)
