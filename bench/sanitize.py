"""Every op once on small CUDA tensors, for compute-sanitizer: chunk edges, masked, misaligned."""

from __future__ import annotations

import torch
from torch import Tensor

import sparse_kernels as sk

SIZES = (0, 1, 7, 65535, 65536, 65537)
COLUMNS = (3, 1, 7, 255, 64, 65537)  # of the matrices that these sizes are read as
RANKS = ({"kind": "value"}, {"kind": "abs"}, {"kind": "random", "key": 2**64 - 3})


def sam(tensors: list[Tensor], grads: list[Tensor], masks: list[Tensor]) -> None:
    """The ascent step and what undoes it: with a whole backup, one under masks, a packed one."""
    whole = [torch.empty_like(t) for t in tensors]
    ranks = sk.mask_ranks(masks)
    packed = tensors[0].new_empty(sum(int(c) for c in sk.count_ones(masks)))
    steps = tensors[0].new_full((len(tensors),), 0.5)
    skips = (None, steps.new_zeros(()), steps.new_ones(()))
    for kept in (
        {"backup": whole},
        {"backup": whole, "masks": masks},
        {"backup": packed, "masks": masks, "ranks": ranks},
    ):
        norm = sk.grad_norm(grads, kept.get("masks"), weights=tensors, eta=0.1)
        for adaptive in (False, True):
            options = {"adaptive": adaptive, "eta": 0.1}
            sk.masked_perturb_(tensors, grads, norm, 0.1, kept.get("masks"), **options)
            sk.masked_perturb_(tensors, grads, norm, 0.1, **kept, **options)
            sk.restore_(tensors, **kept)
        first, second = ([torch.zeros_like(t) for t in tensors] for _ in range(2))
        for skip in skips:
            gates = {"lr": 0.1, "skip": skip, "inv_scale": steps[0], "weight_decay": 0.1}
            sk.restore_sgd_(tensors, grads, **kept, **gates)
            momentum = {"momentum_buffers": first, "momentum": 0.9, "nesterov": True}
            sk.restore_sgd_(tensors, grads, **kept, **gates, **momentum)
            moments = {"exp_avgs": first, "exp_avg_sqs": second}
            tables = {"step_sizes": steps, "bias2_sqrts": steps}
            sk.restore_adamw_(tensors, grads, **kept, **gates, **moments, **tables)


def selections(tensors: list[Tensor], grads: list[Tensor], masks: list[Tensor]) -> None:
    """Masks chosen from scores with ties: the k best, among all or some, and n of m."""
    total = sum(SIZES)
    live = [int(c) for c in sk.count_ones(masks)]
    scores = [(t * 4).round() / 4 for t in tensors]
    matrices = [s.view(-1, c) for s, c in zip(scores, COLUMNS, strict=True)]
    for rank in RANKS:
        for inverted in (False, True):
            chosen = {"among": masks, "inverted": inverted, **rank}
            sk.mask_topk(scores, total // 3, **chosen)
            out = [m.clone() for m in masks]
            sk.mask_topk(scores, [n // 2 for n in SIZES], out=out, **chosen)
        if rank["kind"] != "random":
            sk.kth_largest(scores, total // 3, **rank)
        sk.mask_topk(scores, total // 2, **rank)
        for axis in ("in", "out"):
            sk.mask_nm(matrices, 2, 4, axis, **rank)
            sk.mask_nm(matrices, 5, 40, axis, **rank)
    for regrow in (False, True):
        move = {"drop_scores": tensors, "grow_scores": grads, "regrow": regrow}
        sk.mask_dropgrow(masks, live, [n // 3 for n in live], **move)
        sk.mask_dropgrow(masks, sum(live), sum(live) // 3, **move)
    sk.mask_apply_(tensors, masks)


def steps(tensors: list[Tensor], grads: list[Tensor], mask: list[Tensor] | None) -> None:
    """Bregman steps and random directions."""
    state = [[torch.zeros_like(t, dtype=torch.float32) for t in tensors] for _ in range(4)]
    counts = [torch.zeros_like(t, dtype=torch.int32) for t in tensors]
    backup = [torch.empty_like(t) for t in tensors]
    sk.linbreg_step_(tensors, grads, state[0], 0.1, 0.5, 1.0, 0.9, state[1], active=mask)
    sk.adabreg_step_(
        tensors, grads, *state[:1], *state[2:], 0.1, 0.5, step=1, counts=counts, active=mask
    )
    sk.linbreg_step_(tensors, grads, state[0], 0.1, 0.5, dual_leak=0.1, fine_scale=2.0)
    sk.linbreg_step_(tensors, grads, state[0], 0.1, 0.5, readout=False, active=mask)
    sk.adabreg_step_(tensors, grads, *state[:1], *state[2:], 0.1, 0.5, step=2, readout=False)
    for height, most in ((1, 2**16), (1, 2**17), (4, 7)):
        tilings = [sk.Tiling(c, height, min(c, most)) for c in COLUMNS]
        alive = [t.new_empty(w.groups(t.numel()), dtype=torch.uint8)
                 for t, w in zip(tensors, tilings, strict=True)]  # fmt: skip
        sk.prox_group_(tensors, state[0], tilings, 0.01, 0.001, alive=alive)
    index = sk.mask_index(sk.live_mask(state[0], 0.01))
    for runs in (None, [1] * len(tensors)):
        sk.scatter_entries_(tensors, index, sk.gather_entries(tensors, index, runs), runs)
    shards = [5 + 131 * i for i in range(len(tensors))]
    masters = [t.float() for t in tensors]
    sumsq = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for distribution, math, firsts in (
        ("normal", "portable", None),
        ("normal", "portable", shards),
        ("normal", "fast", shards),
        ("rademacher", "portable", None),
        ("rademacher", "portable", shards),
    ):
        drawn = {"seed": 3, "distribution": distribution, "mask": mask, "firsts": firsts}
        drawn["rng_math"] = math
        sk.zo_combine_(tensors, [0.1, 0.2], **drawn, backup=backup, sumsq=sumsq)
        sk.zo_combine_(tensors, [0.1, 0.2], **drawn, src=masters, sumsq=sumsq)
        sk.zo_norm2(tensors, [0.1, 0.2], **drawn)
        sk.zo_gram(tensors, 2, **drawn)
        if mask is not None:
            ranks = sk.mask_ranks(mask)
            packed = tensors[0].new_empty(sum(int(c) for c in sk.count_ones(mask)))
            for summed in (None, sumsq):
                kept = {"ranks": ranks, "sumsq": summed}
                sk.zo_combine_(tensors, [0.1, 0.2], **drawn, backup=packed, **kept)
                sk.zo_combine_(tensors, [0.1, 0.2], **drawn, src=packed, **kept)
    key, counter, seed = torch.arange(3, device=tensors[0].device).unbind(0)
    sk.zo_key_(key, counter, seed)


def main(device: str = "cuda") -> None:
    base = [torch.randn(n + 1, device=device) for n in SIZES]
    # misaligned, aligned, and misaligned by half as many bytes
    for tensors in (
        [b[1:] for b in base],
        [b[1:].clone() for b in base],
        [b.bfloat16()[1:] for b in base],
    ):
        grads = [torch.randn_like(t) for t in tensors]
        masks = sk.pack_mask([g > 0 for g in grads])
        sk.unpack_mask(masks, [t.shape for t in tensors])
        sam(tensors, grads, masks)
        for mask in (None, masks):
            steps(tensors, grads, mask)
        selections(tensors, grads, masks)
    if device == "cuda":
        torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
