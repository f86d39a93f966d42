"""The CPU kernels on tensors of more than 2^31 elements: ``python past_int32.py CASE``.

The tensors are zeros without memory behind them, but for windows around element 2^31 and at both
ends. Nothing else can be written: a kernel that tries ends with a segmentation fault. What the
windows hold afterwards is compared with the same op on the windows as tensors of their own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

import torch
from torch import Tensor

from sparse_kernels import reference

PAGE = 4096  # elements of a window's part; whole pages of every dtype
EDGE = 2**31
NUMEL = EDGE + 5 * 65536 + 37
WINDOWS = ((0, PAGE), (EDGE - PAGE, EDGE + PAGE), (NUMEL // PAGE * PAGE - PAGE, NUMEL))
PROT_READ, PROT_WRITE, MAP_FIXED = 1, 2, 16
SINK = 1 << 24  # bytes
KEY = torch.tensor(0x0123456789ABCDEF)
ops = torch.ops.sparse_kernels
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_alive: list[object] = []


def mapped(at: int | None, size: int, access: int, flags: int, file: int = -1) -> int:
    address = libc.mmap(at, size, access, flags, file, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return address


def pages(itemsize: int, part: int = 1) -> list[tuple[int, int]]:
    """First byte and length of the windows' pages; a window's places shrink by ``part``."""
    spans = []
    for begin, end in WINDOWS:
        first = begin // part * itemsize // mmap.PAGESIZE * mmap.PAGESIZE
        size = (end + part - 1) // part * itemsize
        last = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        spans.append((first, last - first))
    return spans


def tensor_at(address: int, size: int, dtype: torch.dtype, numel: int) -> Tensor:
    buffer = (ctypes.c_char * size).from_address(address)
    _alive.append(buffer)
    return torch.frombuffer(buffer, dtype=dtype, count=numel)


def zeros(dtype: torch.dtype, numel: int = NUMEL, part: int = 1) -> Tensor:
    """Zeros that can be written inside the windows only."""
    size = -(-numel * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    address = mapped(None, size, PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for first, length in pages(dtype.itemsize, part):
        assert libc.mprotect(address + first, length, PROT_READ | PROT_WRITE) == 0
    return tensor_at(address, size, dtype, numel)


def sink(dtype: torch.dtype) -> Tensor:
    """Takes every write and keeps those in the windows; elsewhere few pages stand for all."""
    size = -(-NUMEL * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    anonymous, access = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, PROT_READ | PROT_WRITE
    address = mapped(None, size, access, anonymous)
    file = os.memfd_create("sink")
    os.ftruncate(file, SINK)
    for at in range(0, size, SINK):
        mapped(address + at, min(SINK, size - at), access, mmap.MAP_SHARED | MAP_FIXED, file)
    for first, length in pages(dtype.itemsize):
        mapped(address + first, length, access, anonymous | MAP_FIXED)
    return tensor_at(address, size, dtype, NUMEL)


def windows(x: Tensor) -> list[Tensor]:
    return [x[begin:end] for begin, end in WINDOWS]


def filled(dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers in the windows."""
    x, generator = zeros(dtype), torch.Generator().manual_seed(seed)
    for w in windows(x):
        w.copy_(torch.randn(w.numel(), generator=generator))
    return x


def own(x: Tensor) -> list[Tensor]:
    return [w.clone() for w in windows(x)]


def mask() -> Tensor:
    """Every second entry of the windows and nothing else."""
    words = zeros(torch.int32, -(-NUMEL // 32), 32)
    for begin, end in WINDOWS:
        words[begin // 32 : -(-end // 32)] = 0x55555555
    last = NUMEL % 32
    words[-1] &= (1 << last) - 1
    return words


def bits(words: Tensor) -> list[Tensor]:
    """The part of a mask in each window."""
    return [words[begin // 32 : -(-end // 32)].clone() for begin, end in WINDOWS]


def same(ours: Tensor, wanted: list[Tensor], what: str) -> None:
    for i, (a, b) in enumerate(zip(windows(ours), wanted, strict=True)):
        assert torch.equal(a, b), f"{what}, window {i}"


def perturb() -> None:
    """Saved into a packed backup, moved, and put back."""
    params, grads, words = filled(torch.float32, 0), filled(torch.float32, 1), mask()
    before, wanted = own(params), own(params)
    counts = torch.empty(-(-words.numel() // 256), dtype=torch.int64)
    ops.mask_count_([words], [counts])
    backup, ranks = torch.empty(int(counts.sum())), counts.cumsum(0) - counts
    norm = torch.tensor(3.0)
    ops.masked_perturb_([params], [grads], norm, 0.5, [words], [backup], [ranks], True, 0.01, 1e-3)
    ops.masked_perturb_(wanted, own(grads), norm, 0.5, bits(words), [], [], True, 0.01, 1e-3)
    same(params, wanted, "params")
    ops.restore_([params], [words], [backup], [ranks])
    same(params, before, "restored params")


def norms() -> None:
    grads, words = filled(torch.bfloat16, 2), mask()
    for masks, parts in (([], []), ([words], bits(words))):
        ours = ops.grad_norm([grads], masks, [], 0.0, True).item()
        wanted = ops.grad_norm(own(grads), parts, [], 0.0, True).item()
        # lanes and chunks meet other zeros, so the order of the additions is another one
        assert abs(ours - wanted) <= 1e-5 * wanted > 0


def bregman() -> None:
    words = mask()
    params, grads, duals, first, second = (filled(torch.float32, s) for s in range(5))
    for x in windows(second):
        x.abs_()
    state = params, duals, first, second
    p, d, a, u = ([w.clone() for w in windows(x)] for x in state)
    linbreg = (0.1, 0.2, 1.5, 0.9, "heavy_ball", True, 0.01, False, False, True, 0.0, 1.0)
    live = ops.linbreg_step_([params], [grads], [duals], [first], [words], *linbreg)
    parts = ops.linbreg_step_(p, own(grads), d, a, bits(words), *linbreg)
    assert live.item() == parts.sum().item() > 0
    adabreg = (0.1, 0.2, 1.5, 0.9, 0.99, 1e-4, 0.01, False, False, True, 0.0, 1.0, 3)
    lists = [params], [grads], [duals], [first], [second], [], [words]
    live = ops.adabreg_step_(*lists, *adabreg, None, None)
    parts = ops.adabreg_step_(p, own(grads), d, a, u, [], bits(words), *adabreg, None, None)
    assert live.item() == parts.sum().item() > 0
    for ours, wanted, what in zip(state, (p, d, a, u), ("params", "duals", "a", "u"), strict=True):
        same(ours, wanted, what)


def masks() -> None:
    """Packed and counted; applied where all but the windows is kept."""
    bools, words = zeros(torch.bool), torch.empty(-(-NUMEL // 32), dtype=torch.int32)
    for w in windows(bools):
        w[::2] = True
    ops.mask_pack_([bools], [words])
    assert torch.equal(words, mask())
    unpacked = sink(torch.bool)
    ops.mask_unpack_([words], [unpacked])
    same(unpacked, own(bools), "unpacked mask")
    words ^= -1
    words[-1] &= (1 << NUMEL % 32) - 1
    x = filled(torch.bfloat16, 3)
    wanted = own(x)
    ops.mask_apply_([x], [words])
    ops.mask_apply_(wanted, bits(words))
    same(x, wanted, "tensor")


def selection() -> None:
    scores, words = filled(torch.bfloat16, 4), torch.empty(-(-NUMEL // 32), dtype=torch.int32)
    for kind, key in (("value", None), ("random", KEY)):
        among = mask()
        firsts = [[0], [begin for begin, _ in WINDOWS]]
        prefix = torch.tensor([0])
        lists = [scores], own(scores)
        bins = [
            ops.topk_histogram(s, kind, key, f, m, False, prefix, 21, 11)
            for s, f, m in zip(lists, firsts, ([among], bits(among)), strict=True)
        ]
        assert torch.equal(*bins)
        threshold = torch.tensor([(int(bins[0][0].nonzero().max()) - 3) << 21])
        ties = ops.topk_write_([scores], kind, key, firsts[0], [among], False, threshold, [words],
                               False)  # fmt: skip
        parts = [torch.empty_like(b) for b in bits(among)]
        found = ops.topk_write_(lists[1], kind, key, firsts[1], bits(among), False, threshold,
                                parts, False)  # fmt: skip
        assert all(map(torch.equal, bits(words), parts))
        assert ties.sum() == found.sum()
        assert int(words.count_nonzero()) == sum(int(b.count_nonzero()) for b in parts) > 0


def patterns() -> None:
    """2 of 4: of zeros the first two."""
    scores, words = filled(torch.bfloat16, 5), torch.empty(-(-NUMEL // 32), dtype=torch.int32)
    ops.mask_nm_([scores], "abs", None, [], [1], [NUMEL], 2, 4, True, [words])
    wanted = [torch.empty_like(b) for b in bits(words)]
    parts = own(scores)
    cols = [p.numel() for p in parts]
    ops.mask_nm_(parts, "abs", None, [], [1] * len(parts), cols, 2, 4, True, wanted)
    assert all(map(torch.equal, bits(words), wanted))
    for begin, end in WINDOWS:
        words[begin // 32 : -(-end // 32)] = 0x33333333
    assert bool((words == 0x33333333).all())


def directions() -> None:
    x, words = filled(torch.float32, 6), mask()
    wanted, coef = own(x), torch.tensor([0.5, -0.25])
    firsts = [begin for begin, _ in WINDOWS]
    for distribution in ("normal", "rademacher"):
        rest = (distribution, 10, "portable")
        stream = KEY, None, 1, [7], [0], *rest, [words]
        shards = KEY, None, 1, [7] * len(firsts), firsts, *rest, bits(words)
        ops.zo_combine_([x], [], coef, *stream, [], [], None, None, None)
        ops.zo_combine_(wanted, [], coef, *shards, [], [], None, None, None)
        same(x, wanted, distribution)
        ours, parts = ops.zo_norm2([x], coef, *stream), ops.zo_norm2(wanted, coef, *shards)
        assert abs(ours - parts) <= 1e-5 * parts
        ours, parts = ops.zo_gram([x], 2, *stream), ops.zo_gram(wanted, 2, *shards)
        assert torch.allclose(ours, parts, rtol=1e-4, atol=1e-1)


def entries() -> None:
    """Runs of 37 elements, of which the last ones stand past 2^31; live duals."""
    run = 37
    numel = NUMEL // run * run
    tensor = filled(torch.bfloat16, 7)[:numel]
    index = torch.tensor([5, EDGE // run, (EDGE + 100) // run, numel // run - 1]).int()
    values = torch.empty(4 * run, dtype=torch.bfloat16)
    ops.gather_entries_([tensor], [index], [run], [values])
    wanted = torch.cat([tensor[int(i) * run : (int(i) + 1) * run] for i in index])
    assert torch.equal(values, wanted)
    ops.scatter_entries_([tensor], [index], [run], [-values])
    ops.gather_entries_([tensor], [index], [run], [values])
    assert torch.equal(values, -wanted)
    duals, words = filled(torch.float32, 8), torch.empty(-(-NUMEL // 32), dtype=torch.int32)
    ops.live_mask_([duals], [words], 0.5, False)
    parts = [torch.empty_like(b) for b in bits(words)]
    reference.live_mask_ref(own(duals), parts, 0.5, False)
    assert all(map(torch.equal, bits(words), parts))
    assert int(words.count_nonzero()) == sum(int(b.count_nonzero()) for b in parts)


def groups() -> None:
    """Groups of 37 entries; those that a window cuts are zero."""
    width = 37
    numel = NUMEL // width * width
    duals, params = filled(torch.float32, 9), sink(torch.bfloat16)
    spans = [(-(-begin // width) * width, end // width * width) for begin, end in WINDOWS]
    for (begin, end), (first, last) in zip(WINDOWS, spans, strict=True):
        duals[begin:first] = 0
        duals[last:end] = 0
    numbers = torch.full((1, 4), 3.0), 0.25, 1.5, False
    tiling = [width], [1], [width]
    found = ops.prox_group_([params[:numel]], [duals[:numel]], [], *tiling, *numbers)
    live = torch.zeros(2, dtype=torch.int64)
    for first, last in spans:
        wanted = torch.empty(last - first, dtype=torch.bfloat16)
        part = ops.prox_group_([wanted], [duals[first:last]], [], *tiling, *numbers)
        assert torch.equal(params[first:last], wanted)
        live += torch.cat(part[:2])
    assert torch.equal(torch.cat(found[:2]), live)
    assert 0 < live[1] < sum(last - first for first, last in spans) // width


CASES = (perturb, norms, bregman, masks, selection, patterns, directions, entries, groups)

if __name__ == "__main__":
    {case.__name__: case for case in CASES}[sys.argv[1]]()
