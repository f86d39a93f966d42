"""Block sizes by measurement, under Triton's interpreter: what is found changes no bit, and what is
tried touches no tensor of the caller.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton*.py

Triton reads the variable when it is imported, so these modules need a pytest process of their own.
The interpreter has no warps: that their number does not matter either, see test_triton_budget.py.
"""

from __future__ import annotations

import gc
import json
import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import TILE, bits, compare, copies, make, make_masks, ones_of

import sparse_kernels as sk
from sparse_kernels.triton import _autotune, _launch, autotune, masked_perturb

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")
SIZES = [33, 4100]
MASKS = make_masks(SIZES)
DEVICE = torch.device("cpu")


def tensors(seed):
    return make(SIZES, torch.float32, seed)


def norm(b):
    x, w = tensors(1), tensors(2)
    return {"norm": sk.grad_norm(x, MASKS, weights=w, eta=0.1, backend=b)}


def perturb(b, masks=None, packed=False):
    p, g, ranks = tensors(1), tensors(2), None
    backup = [torch.zeros_like(t) for t in p]
    if packed:
        backup = torch.zeros(ones_of(MASKS))
        ranks = sk.mask_ranks(MASKS, backend="reference")
    sk.masked_perturb_(
        p, g, torch.tensor(3.0), 0.1, masks, backup, adaptive=True, ranks=ranks, backend=b
    )
    moved = copies(p)
    sk.restore_(p, backup, masks, ranks=ranks, backend=b)
    return {"moved": moved, "back": p, "backup": list(backup)}


def sgd(b):
    p, g, m, saved = (tensors(n) for n in range(4))
    sk.restore_sgd_(p, g, saved, m, MASKS, lr=0.1, momentum=0.9, backend=b)
    return {"params": p, "momentum": m}


def adamw(b):
    p, g, a, saved = (tensors(n) for n in range(4))
    u = [t.abs() for t in tensors(4)]
    rows = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.9])
    sk.restore_adamw_(p, g, saved, a, u, *rows, MASKS, lr=0.1, backend=b)
    return {"params": p, "averages": a, "squares": u}


def linbreg(b):
    p, g, v = (tensors(n) for n in range(3))
    return {"live": sk.linbreg_step_(p, g, v, 0.1, 0.4, backend=b), "params": p, "duals": v}


def adabreg(b):
    p, g, v, a = (tensors(n) for n in range(4))
    u = [t.abs() for t in tensors(4)]
    live = sk.adabreg_step_(p, g, v, a, u, 0.1, 0.4, step=3, backend=b)
    return {"live": live, "params": p, "duals": v, "averages": a, "squares": u}


def packing(b):
    flags = [t > 0 for t in tensors(5)]
    words = sk.pack_mask(flags, backend=b)
    back = sk.unpack_mask(words, [t.shape for t in flags], backend=b)
    return {"words": words, "flags": [t.to(torch.int32) for t in back]}


def apply(b):
    p = tensors(6)
    sk.mask_apply_(p, MASKS, backend=b)
    return {"params": p, "ones": sk.count_ones(MASKS, backend=b)}


def support(b):
    duals = tensors(7)
    masks = sk.live_mask(duals, 0.5, backend=b)
    index = sk.mask_index(masks, backend=b)
    found = sk.gather_entries(duals, index, backend=b)
    sk.scatter_entries_(duals, index, [2 * t for t in found], backend=b)
    return {"masks": masks, "index": index, "found": found, "duals": duals}


def select(b):
    scores = [t.round() for t in tensors(8)]  # with many ties
    return {"masks": sk.mask_topk(scores, 700, backend=b)}


def nm(b):
    return {"masks": sk.mask_nm([t[:4096].view(64, 64) for t in tensors(9)[1:]], 2, 4, backend=b)}


def directions(b, kind="rademacher"):
    p, total = tensors(10), torch.zeros((), dtype=torch.float64)
    sk.zo_combine_(p, [0.5, -0.25], seed=1, distribution=kind, mask=MASKS, backend=b)
    q = copies(p)
    sk.zo_combine_(q, [0.5], seed=2, distribution=kind, sumsq=total, backend=b)
    return {
        "params": p,
        "with sum": q,
        "sum": total,
        "norm2": sk.zo_norm2(q, [1.0, 0.5], seed=3, distribution=kind, backend=b),
        "gram": sk.zo_gram(q, 2, seed=3, distribution=kind, backend=b),
    }


#: ops, and the kernels among those tuned that they launch
CASES = {
    "norm": (norm, {"grad_norm"}),
    "perturb": (perturb, {"masked_perturb", "restore"}),
    "masked": (lambda b: perturb(b, MASKS), {"masked_perturb", "restore"}),
    "packed": (lambda b: perturb(b, MASKS, True), {"masked_perturb", "restore"}),
    "sgd": (sgd, {"restore_sgd"}),
    "adamw": (adamw, {"restore_adamw"}),
    "linbreg": (linbreg, {"linbreg_step"}),
    "adabreg": (adabreg, {"adabreg_step"}),
    "packing": (packing, {"mask_pack", "mask_unpack"}),
    "apply": (apply, {"mask_apply", "mask_count"}),
    "support": (support, {"live_mask", "mask_count", "mask_index", "move_entries"}),
    "select": (select, {"topk_histogram", "topk_write", "topk_ties"}),
    "nm": (nm, {"mask_nm"}),
    "directions": (directions, {"zo_combine", "zo_norm2", "zo_gram"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_every_block_gives_the_same_bits(monkeypatch, name, scale):
    run, kernels = CASES[name]
    seen = set()

    def pick(kernel, grid, device, args, meta, _run):
        if kernel not in _autotune.TUNED:
            return meta
        seen.add(kernel)
        tried = _autotune.candidates(meta)
        wanted = [c for c in tried if c.get("BLOCK", 0) == scale * meta.get("BLOCK", 0)]
        return meta | (wanted or tried)[0]

    monkeypatch.setattr(_autotune, "options", pick)
    compare(run)
    assert seen == {f"_{kernel}_kernel" for kernel in kernels}


def test_every_tuned_kernel_is_among_the_cases():
    assert {f"_{k}_kernel" for _, kernels in CASES.values() for k in kernels} == _autotune.TUNED


def test_candidates():
    own = {"BLOCK": 1024, "num_warps": 8}
    tried = _autotune.candidates({**own, "SIZE": TILE, "TYPE": "fp32"})
    assert tried[0] == own
    assert len(tried) == len({tuple(c.items()) for c in tried}) == 7
    assert {c["BLOCK"] for c in tried} == {512, 1024, 2048}
    assert {c["num_warps"] for c in tried} == {4, 8, 16}
    assert _autotune.candidates({"num_warps": 8}) == [{"num_warps": n} for n in (8, 4, 16)]
    row = {"BLOCK": 2048, "num_warps": 16, "SIZE": 65536, "SUMSQ": True}
    assert {c["BLOCK"] for c in _autotune.candidates(row)} == {2048}
    assert {c["BLOCK"] for c in _autotune.candidates({**own, "SIZE": 1024})} == {512, 1024}


@pytest.fixture
def fresh(monkeypatch):
    """No choices of other tests, and none left behind."""
    monkeypatch.setattr(_autotune, "_choices", {})
    monkeypatch.setattr(_autotune, "_stored", {})


class FakeTimer:
    """Runs what it is given twice; the last candidate is the fastest. Fails at the ``fail``-th."""

    def __init__(self, fail=None, error=RuntimeError):
        self.calls, self.fail, self.error = 0, fail, error

    def __call__(self, run, device):
        self.calls += 1
        if self.calls == self.fail:
            raise self.error("in the middle")
        run()
        run()
        return 1.0 / self.calls


def states():
    """Operands of a step in place, with a NaN's payload among them, some not aligned."""
    p, g = make([40, 2100], torch.float32, 11), make([40, 2100], torch.float32, 12)
    p[0].view(torch.int32)[3] = 0x7FC01234
    return [t[1:] for t in p], [t[1:] for t in g], [torch.zeros(t.numel() - 1) for t in p]


def test_a_step_is_taken_once_whatever_is_tried(monkeypatch, fresh):
    launched = []
    launch = _launch.launch
    monkeypatch.setattr(
        masked_perturb, "launch", lambda *a, **meta: launched.append(meta) or launch(*a, **meta)
    )

    def run(backend):
        p, g, backup = states()
        sk.masked_perturb_(p, g, torch.tensor(2.0), 0.5, None, backup, backend=backend)
        return {"params": p, "grads": g, "backup": backup}

    timer = FakeTimer()
    monkeypatch.setattr(_autotune, "_seconds", timer)
    with autotune():
        compare(run)
        assert timer.calls == 7
        compare(run)
    compare(run)  # the choice stays in force
    assert timer.calls == 7  # and nothing is measured twice, or outside the block
    (chosen,) = _autotune._choices.values()
    assert chosen == _autotune.candidates(launched[0])[-1]
    assert chosen != _autotune.candidates(launched[0])[0]


@pytest.mark.parametrize("name", ["linbreg", "adabreg", "sgd", "support", "directions"])
def test_results_are_the_same_while_measuring(monkeypatch, fresh, name):
    monkeypatch.setattr(_autotune, "_seconds", FakeTimer())
    with autotune():
        compare(CASES[name][0])
    assert _autotune._choices


@pytest.mark.parametrize("fail", [1, 3])
def test_an_error_in_the_middle_leaves_every_bit(monkeypatch, fresh, fail):
    p, g, backup = states()
    before = [copies(x) for x in (p, g, backup)]
    monkeypatch.setattr(_autotune, "_seconds", FakeTimer(fail))
    with autotune(), pytest.raises(RuntimeError, match="in the middle"):
        sk.masked_perturb_(p, g, torch.tensor(2.0), 0.5, None, backup, backend="triton")
    for now, then in zip((p, g, backup), before, strict=True):
        assert all(map(torch.equal, bits(now), bits(then)))
    assert _autotune._choices == {}
    assert not _autotune._on


def test_a_candidate_that_does_not_fit_is_left_out(monkeypatch, fresh):
    from triton.runtime.errors import OutOfResources

    def error(_):
        return OutOfResources(300000, 232448, "shared memory")

    monkeypatch.setattr(_autotune, "_seconds", FakeTimer(7, error))  # else the fastest
    with autotune():
        perturb("triton")
    tried = _autotune.candidates({"BLOCK": 2048, "num_warps": 8, "SIZE": TILE})
    chosen = {key[0]: choice for key, choice in _autotune._choices.items()}
    assert chosen == {"_masked_perturb_kernel": tried[5], "_restore_kernel": tried[6]}


def test_without_memory_for_copies_the_launcher_decides(monkeypatch, fresh):
    def none_left(args):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(_autotune, "copies_of", none_left)
    with autotune():
        compare(lambda b: perturb(b))
    assert _autotune._choices == {}


def test_copies_share_what_shared_memory_and_are_as_aligned():
    storage = torch.arange(40, dtype=torch.float32)
    one, other = [storage[1:5], storage[8:10]], [storage[1:9], storage[8:9]]
    with autotune():
        table = _launch.address_table(one)
        assert _launch.address_table(other) is table
        args, kept = _autotune.copies_of((table, None, 3, storage[1:3]))
    addresses, none, number, alone = args
    assert (none, number) == (None, 3)
    assert torch.equal(alone, storage[1:9])  # the largest of three views of that place
    assert sorted(c.numel() for c in kept) == [2, 8]
    copies_at = {c.data_ptr(): c for c in kept}
    first, second = (copies_at[a] for a in addresses.tolist())
    assert first.data_ptr() == alone.data_ptr()
    assert torch.equal(second, storage[8:10])
    for copy, original in ((first, one[0]), (second, one[1])):
        assert copy.data_ptr() % 16 == original.data_ptr() % 16
        assert copy.data_ptr() != original.data_ptr()


def test_tensors_are_not_kept_alive(fresh):
    tensor = torch.zeros(4)
    with autotune():
        table = _launch.address_table([tensor])
    (ref,) = _autotune._behind[table]
    del tensor
    gc.collect()
    assert ref() is None


def test_choices_are_kept_in_a_file(monkeypatch, fresh, tmp_path):
    file = tmp_path / "cache" / "choices.json"
    monkeypatch.setattr(_autotune, "_seconds", FakeTimer())
    with autotune(file):
        perturb("triton")
    stored = json.loads(file.read_text())
    assert sorted(map(str, stored.values())) == sorted(map(str, _autotune._choices.values()))
    assert all("interpreter" in key for key in stored)

    # another process reads them, and measures nothing
    monkeypatch.setattr(_autotune, "_choices", {})
    monkeypatch.setattr(_autotune, "_stored", {})
    monkeypatch.setattr(_autotune, "_seconds", FakeTimer(1))
    with autotune(file):
        perturb("triton")
    assert sorted(map(str, stored.values())) == sorted(map(str, _autotune._choices.values()))
    # what could not be a choice is measured again
    file.write_text(json.dumps({key: {"BLOCK": 3, "num_warps": 8} for key in stored}))
    monkeypatch.setattr(_autotune, "_choices", {})
    monkeypatch.setattr(_autotune, "_seconds", FakeTimer())
    with autotune(file):
        perturb("triton")
    assert json.loads(file.read_text()) == stored


def test_environment(monkeypatch, fresh, tmp_path):
    monkeypatch.setattr(_autotune, "_file", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for value, on in (("", False), ("0", False), ("1", True), ("file", True)):
        monkeypatch.setenv("SPARSE_KERNELS_TRITON_AUTOTUNE", value)
        assert _autotune._from_environment() is on
        assert _autotune._file == (_autotune.default_file() if value == "file" else None)
    assert _autotune.default_file() == tmp_path / "sparse_kernels" / "triton_autotune.json"
    monkeypatch.setenv("SPARSE_KERNELS_TRITON_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match="0, 1 or file"):
        _autotune._from_environment()


def test_time_is_the_median_of_launches():
    runs = []
    assert _autotune._seconds(lambda: runs.append(0), DEVICE) >= 0.0
    assert len(runs) == 1 + _autotune._REPEATS
