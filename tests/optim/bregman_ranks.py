"""What each process of the Bregman tests runs: scenarios over gloo, results in a file."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from optim_cases import batch, cross_entropy, sparse_model
from sparse_optim import (
    AdaBreg,
    LinBreg,
    active_hash,
    bregman_param_groups,
    check_active,
    reduce_gradients_,
    sparse_init_,
)
from zo_ranks import Collectives, refused

BACKENDS = ("reference", "auto")
WORLD, CYCLE = 2, 5
STEPS = 5 * CYCLE
CASES = {
    "l1": (LinBreg, {"lr": 0.1, "momentum": 0.9}, {"lam": 0.1}),
    "ada": (AdaBreg, {"lr": 0.03}, {"lam": 0.1}),
    "rows": (LinBreg, {"lr": 0.1}, {"lam": 0.02, "reg": "l1_l2", "groups": "rows"}),
    "blocks": (LinBreg, {"lr": 0.1}, {"lam": 0.02, "reg": "l1_l2", "groups": "blocks",
                                      "block": (3, 2)}),
}  # fmt: skip


def training(rank, backend, case):
    """The package's reduction beside a dense all-reduce of every gradient, step by step."""
    cls, options, own = CASES[case]
    models = [sparse_model(0.25), sparse_model(0.25)]
    for m in models if "groups" in own else []:  # whole groups are zero
        layout = {k: own[k] for k in ("groups", "block") if k in own}
        sparse_init_(
            m, 0.25, unit_floor=False, generator=torch.Generator().manual_seed(2), **layout
        )
    opts = [
        cls(bregman_param_groups(m, **own), coarse_steps=CYCLE - 1, backend=backend,
            compact=compact, **options)
        for m, compact in zip(models, (True, False), strict=True)
    ]  # fmt: skip
    x, y = batch(seed=20 + rank)
    seen = {k: [] for k in ("hash", "w", "dense", "calls", "active", "masked", "next")}
    for step in range(STEPS):
        for model, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            cross_entropy(model(x), y).backward()
        seen["next"].append(opts[0].next_is_coarse)
        with Collectives() as calls:
            reduce_gradients_(opts[0])
        for p in models[1].parameters():
            dist.all_reduce(p.grad)
            p.grad /= WORLD
        if step % 3 == 0:
            for opt in opts:
                opt.mask_grads_()
            both = zip(models[0].parameters(), models[1].parameters(), strict=True)
            seen["masked"].append(all(torch.equal(p.grad, q.grad) for p, q in both))
        seen["hash"].append(active_hash(opts[0]))
        for opt in opts:
            opt.step()
        seen["active"].append([None if n is None else int(n) for n in opts[0].active_counts()])
        seen["calls"].append(calls.calls)
        for key, model in (("w", models[0]), ("dense", models[1])):
            seen[key].append([p.detach().clone() for p in model.parameters()])
    return seen


def mismatch(rank, backend):
    """Rank 1 edits a dual: both ranks hear of it, at the next phase."""
    model = sparse_model(0.25)
    opt = LinBreg(bregman_param_groups(model, lam=0.1), lr=0.1, coarse_steps=1, backend=backend)
    opt.init_dual()
    check_active(opt)
    if rank == 1:
        opt.state[model[0].weight]["dual"].fill_(0.5)
        opt._leave_phase()  # the weights stay: only the duals have come apart
    x, y = batch()
    cross_entropy(model(x), y).backward()
    before = [p.detach().clone() for p in model.parameters()]
    said = refused(lambda: reduce_gradients_(opt))
    same = all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    return {"said": said, "same": same, "steps": opt.steps_taken}


def main(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    results = {}
    for backend in BACKENDS:
        results[backend] = {case: training(rank, backend, case) for case in CASES}
        results[backend]["mismatch"] = mismatch(rank, backend)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
