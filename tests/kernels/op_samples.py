"""One set of arguments per dispatcher op and option, for everything that calls the ops directly."""

from __future__ import annotations

import torch

from sparse_kernels import pack_mask


def _lists(count, device, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    shapes = [(5,), (0,), (9, 7), ()]
    return [[torch.randn(s, generator=g).to(device, dtype) for s in shapes] for _ in range(count)]


def samples(op: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[tuple]:
    """Argument tuples of ``op`` in schema order: every optional list absent, and present."""
    a, b, c = _lists(3, device, dtype, 1)
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
    plain = (key, None, 0, uids, "normal", 10, [])
    other = (key, table, 0, uids, "rademacher", 7, masks)
    norm = torch.tensor(2.0, dtype=wide, device=device)
    rows = torch.linspace(0.1, 1.0, 5, dtype=wide, device=device)
    bools = [t > 0 for t in a]
    return {
        "grad_norm": [(a, [], [], 0.0, False), (a, masks, b, 0.5, True)],
        "masked_perturb_": [
            (a, b, norm, 0.5, [], [], False, 0.0, 1e-12),
            (a, b, norm, 0.5, masks, c, True, 0.1, 1e-3),
        ],
        "restore_": [(a, b, []), (a, b, masks)],
        "mask_pack_": [(bools, masks)],
        "mask_unpack_": [(masks, bools)],
        "zo_combine_": [
            (a, [], coef, *plain, [], None, None, None),
            (a, b, coef, *other, c, scale, scale, sumsq),
        ],
        "zo_norm2": [(a, coef, *plain), (a, coef, *other)],
        "zo_gram": [(a, 2, *plain), (a, 2, *other)],
        "linbreg_step_": [
            (a, b, duals, [], [], 0.1, 0.2, 1.0, 0.0, "sgd", False, 0.0, False),
            (a, b, [], first, [], 0.1, 0.2, 2.0, 0.9, "ema", False, 0.1, True),
            (a, b, duals, first, masks, 0.1, 0.2, 2.0, 0.9, "sgd", True, 0.1, False),
        ],
        "adabreg_step_": [
            (a, b, duals, first, second, [], [], 0.1, 0.2, 1.0, 0.9, 0.99, 1e-8, 0.0, False, 3,
             None, None),
            (a, b, duals, first, second, counts, masks, 0.1, 0.2, 1.0, 0.9, 0.99, 1e-8, 0.1, True,
             3, rows, rows),
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
