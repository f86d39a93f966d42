"""One compilation of every Triton kernel serves all seeds, rates, sizes and alignments.

The launchers run on CPU tensors with ``launch`` replaced, and what the JIT keys its compilations by
is compared. Nothing is compiled, and no memory stands behind the largest tensors. The interpreter
must be off (Triton reads TRITON_INTERPRET when it is imported).
"""

from __future__ import annotations

import ast
import os
import pathlib
import types
from typing import NamedTuple

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a process without TRITON_INTERPRET", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import triton
from triton_cases import (
    MODULES,
    _launch,
    bregman_step,
    compaction,
    mask_apply,
    mask_count,
    mask_nm,
    mask_pack,
    mask_topk,
    masked_perturb,
    norm,
    prox_group,
    restore,
    restore_adamw,
    restore_sgd,
    zo_combine,
    zo_key,
)
from triton_code import captured, keys


class Call(NamedTuple):
    """What may differ between two calls of an op.

    Attributes:
        tensors: in a list.
        numel: of each tensor.
        shift: elements between a 16-byte boundary and the first of any tensor.
        scalar: every hyper-parameter.
        number: seeds, directions, indices and steps.
    """

    tensors: int = 1
    numel: int = 64
    shift: int = 0
    scalar: float = 0.1
    number: int = 1

    def one(self, dtype=torch.float32):
        return torch.ones(8, dtype=dtype)[self.shift : self.shift + 1]

    def cell(self, dtype=torch.float32):
        return self.one(dtype).reshape(())

    def list(self, dtype=torch.float32, numel=None):
        numel = self.numel if numel is None else numel
        return [self.one(dtype).expand(numel) for _ in range(self.tensors)]

    def words(self):
        return self.list(torch.int32, -(-self.numel // 32))

    def ranks(self):
        return self.list(torch.int64, -(-self.numel // _launch.TILE) + 1)

    def packed(self):
        """A packed backup: one tensor for the list, smaller than it."""
        return [self.one().expand(max(1, self.numel - 1))]

    def stream(self, kind, shard, explicit=False):
        """Key, directions, first direction, uids, firsts, kind, rounds and math."""
        start = self.number << 10
        directions = self.one(torch.int64) if explicit else None
        uids, firsts = [self.number] * self.tensors, [start] * self.tensors if shard else []
        return self.one(torch.int64), directions, self.number, uids, firsts, kind, 10, "portable"

    def ranked(self, kind, among=False):
        """Scores, kind, key, firsts, among and inverted."""
        key = self.one(torch.int64) if kind == "random" else None
        firsts = [self.number] * self.tensors
        return self.list(), kind, key, firsts, self.words() if among else [], among


CALLS = [Call()]
CALLS += [Call(tensors=n) for n in (2, 17, 300)]
CALLS += [Call(numel=n) for n in (1, 16, 17, 2**20 + 1, 2**31 + 32)]
CALLS += [Call(shift=n) for n in (1, 2)]
CALLS += [Call(scalar=x) for x in (0.0, 1.0, 16.0, 1e-30, 3e38)]
CALLS += [Call(number=n) for n in (0, 2, 16, 17, 2**31, 2**32 - 2)]
CALLS += [Call(3, 2**31 + 17, 1, 1.0, 16)]


def perturb(c, masks=(), backup=(), ranks=(), adaptive=False):
    masked_perturb.masked_perturb_triton(
        c.list(), c.list(), c.cell(), c.scalar, masks, backup, ranks, adaptive, c.scalar, c.scalar
    )


def sgd(c, masks=(), backup=None, ranks=(), first=False):
    restore_sgd.restore_sgd_triton(
        c.list(), c.list(), c.list(), masks, backup or c.list(), ranks, *[c.scalar] * 3, False,
        c.scalar, False, first, c.cell(), c.cell(),
    )  # fmt: skip


def adamw(c, masks=(), backup=None, ranks=()):
    restore_adamw.restore_adamw_triton(
        c.list(), c.list(), c.list(), c.list(), masks, backup or c.list(), ranks, c.one(), c.one(),
        *[c.scalar] * 5, True, False, c.cell(), c.cell(),
    )  # fmt: skip


def linbreg(c, active=()):
    bregman_step.linbreg_step_triton(
        c.list(), c.list(), c.list(), c.list(), active, *[c.scalar] * 4, "sgd", False, c.scalar,
        False, False, True, c.scalar, c.scalar,
    )  # fmt: skip


def adabreg(c, counts=False):
    step, lists = c.number % 1000 + 1, [c.list() for _ in range(5)]
    table = c.one().expand(step) if counts else None
    bregman_step.adabreg_step_triton(
        *lists, c.list(torch.int32) if counts else [], [], *[c.scalar] * 3, 0.9, 0.999,
        *[c.scalar] * 2, False, False, True, c.scalar, c.scalar, step, table, table,
    )  # fmt: skip


def combine(c, kind, shard, masks=(), backup=(), ranks=(), sumsq=False):
    total = c.cell(torch.float64) if sumsq else None
    coef = c.one().expand(1 + c.number % 7)
    zo_combine.zo_combine_triton(
        c.list(), [], coef, *c.stream(kind, shard, explicit=shard), masks, backup, ranks,
        c.one(), c.one(), total,
    )  # fmt: skip


def prox(c, wide, tall=1, cols=None):
    """Tiles of ``tall`` rows and ``wide`` columns, in matrices of ``cols`` columns."""
    cols, rows = cols or wide, max(tall, min(c.numel, 2**26) // wide)
    p, v = c.list(numel=rows * cols), c.list(numel=rows * cols)
    prox_group.prox_group_triton(
        p, v, c.list(torch.uint8, 8), [cols] * c.tensors, [tall] * c.tensors, [wide] * c.tensors,
        torch.ones(8 + 4 * c.tensors)[c.shift : c.shift + 4 * c.tensors].view(-1, 4),
        c.scalar, c.scalar, False,
    )  # fmt: skip


def moved(c, run, scatter):
    move = compaction.scatter_entries_triton if scatter else compaction.gather_entries_triton
    move(c.list(), c.list(torch.int32), [run] * c.tensors, c.list(numel=run * c.numel))


def nm(c, kind):
    n = 1 + c.number % 17
    sides = [8] * c.tensors
    mask_nm.mask_nm_triton(*c.ranked(kind)[:4], sides, sides, n, 2 * n, True, c.words())


def histogram(c, kind, among):
    shift = 1 + c.number % 17
    mask_topk.topk_histogram_triton(*c.ranked(kind, among), c.one(torch.int64), shift, 10)


def topk(c, kind, among):
    mask_topk.topk_write_triton(*c.ranked(kind, among), c.one(torch.int64), c.words(), among)


def ties(c, kind, among):
    cells = [c.one(torch.int64) for _ in range(4)]
    mask_topk.topk_ties_triton(*c.ranked(kind, among), *cells, c.words())


def index(c):
    compaction.mask_index_triton(c.words(), c.ranks(), c.list(torch.int32))


def norms(c, kind, shard):
    coef = c.one().expand(1 + c.number % 7)
    zo_combine.zo_norm2_triton(c.list(), coef, *c.stream(kind, shard), c.words())


def gram(c, kind, shard):
    # the matrix of a list beyond int32 has as many partial sums as the list has chunks
    zo_combine.zo_gram_triton(c.list(), 1 + c.number % 5, *c.stream(kind, shard), c.words())


def key(c):
    cells = c.cell(torch.int64), c.cell(torch.int64), c.cell(torch.int64)
    zo_key.zo_key_triton(*cells, c.number)


RUNS = {
    "norm": lambda c: norm.grad_norm_triton(c.list(), c.words(), c.list(), c.scalar, False),
    "perturb": perturb,
    "perturb masked": lambda c: perturb(c, c.words(), c.list(), adaptive=True),
    "perturb packed": lambda c: perturb(c, c.words(), c.packed(), c.ranks()),
    "restore": lambda c: restore.restore_triton(c.list(), [], c.list(), []),
    "restore packed": lambda c: restore.restore_triton(c.list(), c.words(), c.packed(), c.ranks()),
    "sgd": sgd,
    "sgd first": lambda c: sgd(c, first=True),
    "sgd packed": lambda c: sgd(c, c.words(), c.packed(), c.ranks()),
    "adamw": adamw,
    "adamw packed": lambda c: adamw(c, c.words(), c.packed(), c.ranks()),
    "linbreg": linbreg,
    "linbreg active": lambda c: linbreg(c, c.words()),
    "adabreg": adabreg,
    "adabreg counts": lambda c: adabreg(c, True),
    "pack": lambda c: mask_pack.mask_pack_triton(c.list(torch.bool), c.words()),
    "unpack": lambda c: mask_pack.mask_unpack_triton(c.words(), c.list(torch.bool)),
    "count": lambda c: mask_count.mask_count_triton(c.words(), c.ranks()),
    "apply": lambda c: mask_apply.mask_apply_triton(c.list(), c.words()),
    "nm": lambda c: nm(c, "abs"),
    "nm random": lambda c: nm(c, "random"),
    "histogram": lambda c: histogram(c, "value", False),
    "histogram random": lambda c: histogram(c, "random", True),
    "topk": lambda c: topk(c, "value", True),
    "topk random": lambda c: topk(c, "random", False),
    "ties": lambda c: ties(c, "value", False),
    "ties random": lambda c: ties(c, "random", True),
    "live": lambda c: compaction.live_mask_triton(c.list(), c.words(), c.scalar, False),
    "index": index,
    "gather": lambda c: moved(c, 1, False),
    "scatter runs": lambda c: moved(c, 2 + c.number % 7, True),
    "small groups": lambda c: prox(c, 64),
    "tiles": lambda c: prox(c, 16, 16, 601),
    "groups": lambda c: prox(c, 4608),
    "large groups": lambda c: prox(c, 70000),
    "normal": lambda c: combine(c, "normal", False),
    "signs": lambda c: combine(c, "rademacher", False),
    "normal shard": lambda c: combine(c, "normal", True, c.words(), c.list()),
    "signs packed": lambda c: combine(c, "rademacher", False, c.words(), c.packed(), c.ranks()),
    "normal sumsq": lambda c: combine(c, "normal", False, sumsq=True),
    "norm2": lambda c: norms(c, "normal", False),
    "norm2 shard": lambda c: norms(c, "rademacher", True),
    "gram": lambda c: gram(c, "normal", False),
    "gram shard": lambda c: gram(c, "rademacher", True),
    "key": key,
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_one_compilation_for_all_values_sizes_and_alignments(name):
    first = keys(lambda: RUNS[name](CALLS[0]))
    assert first
    for call in CALLS[1:]:
        assert keys(lambda c=call: RUNS[name](c)) == first, call


def test_a_key_would_be_seen_to_change():
    """dtypes and options are compiled for, so the comparison above can fail."""
    assert keys(lambda: perturb(Call())) != keys(lambda: perturb(Call(), adaptive=True))
    halves = [torch.zeros(64, dtype=torch.bfloat16)]
    plain = keys(lambda: restore.restore_triton(Call().list(), [], Call().list(), []))
    assert keys(lambda: restore.restore_triton(halves, [], halves, [])) != plain


def test_every_kernel_is_among_them():
    kernels = {
        value.fn.__name__
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, triton.JITFunction) and value.fn.__name__.endswith("_kernel")
    }
    launched = {
        call[0].fn.__name__ for run in RUNS.values() for call in captured(lambda r=run: r(Call()))
    }
    assert launched == kernels
    assert len(kernels) > 20


# ---- nothing waits for the device -------------------------------------------------------------

# what copies to the host, or needs a number from the device to go on
WAITS = {
    "all_equal", "any", "cpu", "item", "masked_select", "nonzero", "numpy", "synchronize", "tolist",
    "unique",
}  # fmt: skip


def waiting_calls(source):
    """Calls outside of kernels that wait for a device, or copy from pageable memory."""
    tree = ast.parse(source)
    jitted = [
        range(f.lineno, f.end_lineno + 1)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in f.decorator_list)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if any(node.lineno in lines for lines in jitted):
            continue
        name, options = node.func.attr, {k.arg for k in node.keywords}
        upload = ast.unparse(node.func) in ("torch.tensor", "torch.as_tensor", "torch.from_numpy")
        if (
            name in WAITS
            or (name in ("to", "cuda", "copy_") and "non_blocking" not in options)
            or (upload and "device" in options)
        ):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_no_launcher_waits_for_the_device():
    files = sorted(pathlib.Path(_launch.__file__).parent.glob("*.py"))
    assert len(files) > 20
    found = {f.name: list(waiting_calls(f.read_text())) for f in files}
    measuring = found.pop("_autotune.py")  # where that is asked for
    assert any("synchronize" in call for call in measuring)
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_waiting_would_be_seen():
    source = "x.item()\ny.to(device)\ntorch.tensor(n, device=d)\nz.to(device, non_blocking=True)\n"
    assert len(list(waiting_calls(source))) == 3


def test_tables_go_up_once_from_pinned_memory_without_waiting(monkeypatch):
    """The part of the cache that needs a device, with one that only records."""
    copies, capturing = [], [False]

    class Host:
        pinned = False

        def pin_memory(self):
            self.pinned = True
            return self

        def to(self, device, non_blocking=False):
            copies.append((self.pinned, non_blocking))
            return object()

    stream = types.SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    cache, device = _launch._TableCache(capacity=4), torch.device("cuda", 0)
    first = cache.get(("addresses",), device, Host)
    assert cache.get(("addresses",), device, Host) is first
    assert copies == [(True, True)]
    stream.cuda_stream = 8  # what is uploaded on one stream is not there on another
    assert cache.get(("addresses",), device, Host) is not first
    capturing[0] = True
    assert cache.get(("addresses",), device, Host) in cache._captured
    cache.get(("others",), device, Host)
    assert copies == [(True, True)] * 3
    assert len(cache._entries) == 2
