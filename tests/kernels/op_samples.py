"""One set of arguments per dispatcher op and option, for everything that calls the ops directly."""

from __future__ import annotations

import torch

from sparse_kernels import mask_ranks, pack_mask
from sparse_kernels.reference._keys import ordered_keys


def _lists(count, device, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    shapes = [(5,), (0,), (9, 7), ()]
    return [[torch.randn(s, generator=g).to(device, dtype) for s in shapes] for _ in range(count)]


def samples(op: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[tuple]:
    """Argument tuples of ``op`` in schema order: every optional list absent, and present."""
    a, b, c, d, e = _lists(5, device, dtype, 1)
    e = [t.abs() for t in e]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    duals, first, second = _lists(3, device, wide, 2)
    second = [t.abs() for t in second]
    masks = [m.to(device) for m in pack_mask([t.cpu() > 0 for t in a])]
    counts = [torch.ones_like(t, dtype=torch.int32) for t in a]
    key = torch.tensor(77, device=device)
    coef = torch.tensor([0.5, -1.0], dtype=wide, device=device)
    table = torch.tensor([4, 1], device=device)
    uids = [3, 1, 2, 0]
    scale = torch.full((4,), 0.5, dtype=wide, device=device)
    sumsq = torch.zeros((), dtype=torch.float64, device=device)
    plain = (key, None, 0, uids, [], "normal", 10, "portable", [])
    other = (key, table, 0, uids, [], "rademacher", 7, "portable", masks)
    shards = (key, table, 0, uids, [0, 3, 2**33 + 1, 128], "normal", 10, "fast", masks)
    norm = torch.tensor(2.0, dtype=wide, device=device)
    rows = torch.linspace(0.1, 1.0, 5, dtype=wide, device=device)
    bools = [t > 0 for t in a]
    gate = torch.zeros((), dtype=wide, device=device)
    ranks = mask_ranks([m.cpu() for m in masks])
    packed = [torch.zeros(sum(int(m.sum()) for m in bools), dtype=dtype, device=device)]
    ranks = [r.to(device) for r in ranks]
    tiles = [torch.zeros_like(r) for r in ranks]
    words = [m.clone() for m in masks]
    firsts, heights, widths = [0, 5, 5, 68], [1, 1, 9, 1], [5, 0, 7, 1]
    thresholds = torch.linspace(0.2, 1.7, 16, dtype=wide, device=device).reshape(4, 4)
    alive = [torch.zeros(n, dtype=torch.uint8, device=device) for n in (1, 0, 15, 1)]
    pool = torch.tensor([2], device=device)
    pools, ones = (
        torch.tensor([1, 2, 3, 4], device=device),
        torch.ones(3, dtype=torch.int64, device=device),
    )
    live = [b.reshape(-1).nonzero().reshape(-1).int() for b in bools]
    rows_of = [torch.tensor(i, dtype=torch.int32, device=device) for i in ([0], [], [8, 2], [0])]
    values, row_values = (
        [torch.full((n,), 2.0, dtype=dtype, device=device) for n in sizes]
        for sizes in ([x.numel() for x in live], (5, 0, 14, 1))
    )
    # the key of an entry without a bit, so that there is a tie to write
    keys = ordered_keys(a[2].cpu(), "value", None, 0)
    tied = keys[(a[2] <= 0).reshape(-1).cpu()][:1].expand(4).contiguous().to(device)
    changing = torch.tensor([0.2, 0.01, 0.1, 0.9], device=device)  # lam, decay, step, gain
    return {
        "grad_norm": [(a, [], [], 0.0, False), (a, masks, b, 0.5, True)],
        "masked_perturb_": [
            (a, b, norm, 0.5, [], [], [], False, 0.0, 1e-12),
            (a, b, norm, 0.5, masks, c, [], True, 0.1, 1e-3),
            (a, b, norm, 0.5, masks, packed, ranks, False, 0.0, 1e-12),
            (a, b, norm, 0.0, [], [], [], False, 0.0, 1e-12, norm),
        ],
        "restore_": [(a, [], b, []), (a, masks, b, []), (a, masks, packed, ranks)],
        "restore_sgd_": [
            (a, b, [], [], c, [], 0.1, 0.0, 0.0, False, 0.0, False, False, None, None),
            (a, b, d, masks, c, [], 0.1, 0.9, 0.1, False, 0.1, True, True, None, gate),
            (a, b, d, masks, packed, ranks, 0.1, 0.9, 0.0, True, 0.1, False, False, gate, gate),
            (a, b, [], [], c, [], 0.0, 0.0, 0.0, False, 0.0, False, False, None, None, gate),
        ],
        "restore_adamw_": [
            (a, b, d, e, [], c, [], scale, scale, 0.1, 0.9, 0.99, 1e-8, 0.0, True, False, None,
             None),
            (a, b, d, e, masks, packed, ranks, scale, scale, 0.1, 0.9, 0.99, 1e-8, 0.1, False,
             True, gate, gate),
            (a, b, d, e, [], c, [], scale, scale, 0.0, 0.9, 0.99, 1e-8, 0.1, True, False, None,
             None, gate),
        ],
        "mask_pack_": [(bools, masks)],
        "mask_unpack_": [(masks, bools)],
        "mask_count_": [(masks, tiles)],
        "mask_apply_": [(a, masks)],
        "topk_histogram": [
            (a, "value", None, firsts, [], False, pool, 21, 11),
            (a, "random", key, firsts, masks, True, pools, 0, 10),
        ],
        "topk_write_": [
            (a, "abs", None, firsts, [], False, pool, masks, False),
            (a, "random", key, firsts, masks, True, pools, words, True),
        ],
        "topk_ties_": [(a, "value", None, firsts, masks, True, tied, ones, ones, pools, words)],
        "mask_nm_": [
            (a, "abs", None, firsts, heights, widths, 2, 4, True, words),
            (a, "random", key, firsts, heights, widths, 1, 3, False, words),
        ],
        "live_mask_": [(duals, words, 0.2, False), (duals, words, 0.2, True)],
        "mask_index_": [(masks, ranks, [torch.full_like(x, -1) for x in live])],
        "gather_entries_": [
            (a, live, [1, 1, 1, 1], values),
            (a, rows_of, [5, 1, 7, 1], row_values),
        ],
        "scatter_entries_": [
            (a, live, [1, 1, 1, 1], values),
            (a, rows_of, [5, 1, 7, 1], row_values),
        ],
        "zo_combine_": [
            (a, [], coef, *plain, [], [], None, None, None),
            (a, b, coef, *other, c, [], scale, scale, sumsq),
            (a, [], coef, *shards, packed, ranks, None, None, sumsq),
            (a, packed, coef, *other, [], ranks, scale, None, None),
            (a, duals, coef, *plain, [], [], None, scale, None),
        ],
        "zo_norm2": [(a, coef, *plain), (a, coef, *other), (a, coef, *shards)],
        "zo_gram": [(a, 2, *plain), (a, 2, *other), (a, 2, *shards)],
        "zo_key_": [(key, torch.tensor(2**32 - 1, device=device), pool, 0x80000001)],
        "linbreg_step_": [
            (a, b, duals, [], [], 0.1, 0.2, 1.0, 0.0, "sgd", False, 0.0, False, False, True, 0.0,
             1.0),
            (a, b, [], first, [], 0.1, 0.2, 2.0, 0.9, "ema", False, 0.1, True, True, True, 0.0,
             1.0),
            (a, b, duals, [], masks, 0.1, 0.2, 2.0, 0.0, "sgd", False, 0.1, False, False, False,
             0.1, 1.0),
            (a, b, duals, first, masks, 0.1, 0.2, 2.0, 0.9, "sgd", True, 0.1, False, False, True,
             0.1, 3.0),
            (a, b, duals, [], [], 0.0, 0.0, 1.0, 0.0, "sgd", False, 0.0, False, False, True, 0.0,
             1.0, changing),
        ],
        "adabreg_step_": [
            (a, b, duals, first, second, [], [], 0.1, 0.2, 1.0, 0.9, 0.99, 1e-8, 0.0, False,
             False, True, 0.0, 1.0, 3, None, None),
            (a, b, duals, first, second, [], [], 0.1, 0.2, 1.0, 0.9, 0.99, 1e-8, 0.1, False,
             False, False, 0.1, 1.0, 3, None, None),
            (a, b, duals, first, second, counts, masks, 0.1, 0.2, 1.0, 0.9, 0.99, 1e-8, 0.1, True,
             True, True, 0.1, 2.0, 3, rows, rows),
            (a, b, duals, first, second, [], [], 0.0, 0.0, 1.0, 0.9, 0.99, 1e-8, 0.0, False,
             False, True, 0.0, 1.0, 1, None, None, changing),
        ],
        "prox_group_": [
            (a, duals, [], [5, 3, 7, 1], [1, 1, 1, 1], [5, 3, 7, 1], thresholds, 0.0, 1.0, False),
            (a, duals, alive, [5, 3, 7, 1], [1, 2, 2, 9], [5, 2, 3, 1], thresholds, 0.2, 1.5, True),
        ],
    }[op]  # fmt: skip


def tensors_in(arguments: tuple) -> list[torch.Tensor]:
    """All tensors of an argument tuple, lists flattened, in order."""
    out = []
    for value in arguments:
        out += value if isinstance(value, list) else [value]
    return [t for t in out if isinstance(t, torch.Tensor)]


def cloned(arguments: tuple) -> tuple:
    """The same arguments with every tensor copied."""
    return tuple(
        [t.clone() if isinstance(t, torch.Tensor) else t for t in value]
        if isinstance(value, list)
        else (value.clone() if isinstance(value, torch.Tensor) else value)
        for value in arguments
    )
