"""What each process of the distributed tests runs: scenarios over gloo, results in a file."""

import math
import os
from pathlib import Path

import torch
import torch.distributed as dist
from optim_cases import batch, cross_entropy, mlp
from sam_cases import draw, inject, injected_step, make_params, random_masks
from sparse_optim import SAM, SSAM, DynamicMask, FisherMask, RandomMask
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

WORLD, STEPS, RHO, LR = 2, 4, 0.3, 0.1
HALVES = ((0, 1), (2, 3))  # parameters that each rank holds in the sharded scenarios


def data(rank):
    return batch(seed=20 + rank, dtype=torch.float64)


def masks():
    return random_masks(list(mlp().parameters()), 0.6)


def weights_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def replicated(rank, backend, local_e):
    """Weights, w+ and mask of every step under data parallelism, pass 1 averaged or per rank."""
    model = mlp(dtype=torch.float64)
    ddp, (x, y) = DistributedDataParallel(model), data(rank)
    opt = SSAM(model.parameters(), SGD, rho=RHO, lr=LR, momentum=0.9, backend=backend)
    opt.set_masks(masks())
    seen = {"w": [], "perturbed": []}
    for _ in range(STEPS):
        if local_e:
            with ddp.no_sync():
                cross_entropy(ddp(x), y).backward()
        else:
            cross_entropy(ddp(x), y).backward()
        opt.first_step(zero_grad=True)
        seen["perturbed"].append(weights_of(model))
        cross_entropy(ddp(x), y).backward()
        opt.second_step(zero_grad=True)
        seen["w"].append(weights_of(model))
    return seen


def shared_masks(rank, backend):
    """Policies whose seeds and gradients differ between the ranks, with rank 0's masks for all."""
    seen = {"words": [], "own": []}
    for policy in (RandomMask(), DynamicMask(0.5, "random", "gradient")):
        params = make_params(((9, 7), (33,), (0,)))
        opt = SSAM(params, SGD, mask=policy, seed=rank, mask_group=dist.group.WORLD, rho=RHO,
                   lr=LR, backend=backend)  # fmt: skip
        seen["words"].append([w.clone() for w in opt.mask.words])
        for first, second in draw(params, 4, seed=40 + rank):
            opt.update_mask(*([0.0] if isinstance(policy, DynamicMask) else []))
            injected_step(opt, params, first, second)
            seen["words"].append([w.clone() for w in opt.mask.words])
    seen["own"] = RandomMask().compute(make_params(), 0.5, seed=rank).words
    return seen


def fisher(rank, backend):
    """Scores over the samples of all ranks, and the mask they give."""
    model, (x, y) = mlp(), batch(n=24)
    part = slice(rank * 12, rank * 12 + 12)
    policy = FisherMask(num_samples=12, group=dist.group.WORLD)
    given = (model, (x[part], y[part]), cross_entropy)
    scores = policy.scores(list(model.parameters()), *given, seed=0, update=0)
    opt = SSAM(model.parameters(), SGD, mask=policy, lr=LR, backend=backend)
    opt.update_mask(*given)
    return {"scores": scores, "words": opt.mask.words}


def sharded(rank, backend, **own):
    """Norms, w+ and w of the parameters of this rank; the norm is over both."""
    params = make_params(((9, 7), (33,), (40, 11), (5,)), torch.float32)
    exists = random_masks(params, 0.7)
    (first, second), *_ = draw(params, 1)
    mine = HALVES[rank]

    def part(values):
        return [values[i] for i in mine]

    cls = SSAM if "norm" in own else SAM
    opt = cls(part(params), SGD, rho=RHO, lr=LR, shard_group=dist.group.WORLD, backend=backend,
              weight_mask=part(exists), **own)  # fmt: skip
    if cls is SSAM:
        opt.set_masks(part(random_masks(params, 0.4, seed=6)))
    inject(part(params), part(first))
    opt.first_step(zero_grad=True)
    seen = {"norm": opt._norm, "perturbed": [p.detach().clone() for p in part(params)]}
    inject(part(params), part(second))
    opt.second_step()
    return {**seen, "w": [p.detach().clone() for p in part(params)]}


def sharded_without_gradients(rank, backend):
    """Rank 1 has none in the first step; in the second, rank 0 has a NaN that both must see."""
    params = make_params(((9, 7), (33,)))
    steps, mine = draw(params, 2), params[rank : rank + 1]
    opt = SAM(mine, SGD, rho=RHO, lr=LR, shard_group=dist.group.WORLD, backend=backend)
    norms, weights = [], []
    for step, (first, second) in enumerate(steps):
        first, second = first[rank : rank + 1], second[rank : rank + 1]
        if step == 0 and rank == 1:
            first = second = [None]
        if step == 1 and rank == 0:
            first[0][2, 3] = math.nan
        injected_step(opt, mine, first, second)
        norms.append(opt._norm)
        weights.append(mine[0].detach().clone())
    return {"norms": norms, "w": weights, "skipped": opt.skipped_steps}


def sharded_interval(rank, backend):
    """In the second step, which does not perturb, rank 1 has no gradient and rank 0 a NaN."""
    params = make_params(((9, 7), (33,)))
    (one, two), (_, three) = draw(params, 2)
    mine = params[rank : rank + 1]
    opt = SAM(mine, SGD, rho=RHO, lr=LR, interval=2, shard_group=dist.group.WORLD, backend=backend)
    injected_step(opt, mine, one[rank : rank + 1], two[rank : rank + 1])
    before = mine[0].detach().clone()
    three[0][2, 3] = math.nan
    inject(mine, [three[0] if rank == 0 else None])
    opt.step()
    return {"before": before, "after": mine[0].detach().clone(), "skipped": opt.skipped_steps}


def suppressed(rank, backend, local_e):
    """An input of rank 0 is infinite in the second of three steps; an exchange is due."""
    model = mlp(dtype=torch.float64)
    ddp, (x, y) = DistributedDataParallel(model), data(rank)
    policy = DynamicMask(update_every=1)
    opt = SSAM(model.parameters(), SGD, rho=RHO, lr=LR, momentum=0.9, mask=policy, seed=1,
               mask_group=dist.group.WORLD, backend=backend)  # fmt: skip
    seen = {"w": [], "words": [], "skipped": []}
    for step in range(3):
        spoiled = x.clone()
        if step == 1 and rank == 0:
            spoiled[3, 2] = math.inf
        if local_e:
            with ddp.no_sync():
                cross_entropy(ddp(spoiled), y).backward()
        else:
            cross_entropy(ddp(spoiled), y).backward()
        opt.first_step(zero_grad=True)
        cross_entropy(ddp(spoiled), y).backward()
        opt.second_step(zero_grad=True)
        seen["w"].append(weights_of(model))
        seen["words"].append([w.clone() for w in opt.mask.words])
        seen["skipped"].append(int(opt.skipped_steps))
    return seen


def suppressed_at_w(rank, backend):
    """Rank 0 alone has an infinite gradient at w; all gradients at w + e are finite."""
    model = mlp(dtype=torch.float64)
    ddp, (x, y) = DistributedDataParallel(model), data(rank)
    opt = SAM(model.parameters(), SGD, rho=RHO, lr=LR, replica_group=dist.group.WORLD,
              backend=backend)  # fmt: skip
    seen = {"w": [], "skipped": []}
    for step in range(3):
        with ddp.no_sync():
            cross_entropy(ddp(x), y).backward()
        if step == 1 and rank == 0:
            model[0].weight.grad[0, 0] = math.inf
        opt.first_step(zero_grad=True)
        cross_entropy(ddp(x), y).backward()
        opt.second_step(zero_grad=True)
        seen["w"].append(weights_of(model))
        seen["skipped"].append(int(opt.skipped_steps))
    return seen


SHARDED = {
    "plain": {},
    "adaptive": {"adaptive": True, "eta": 0.1},
    "dense": {"norm": "dense"},
    "masked": {"norm": "masked"},
}
SCENARIOS = {
    "averaged": lambda rank, backend: replicated(rank, backend, False),
    "per rank": lambda rank, backend: replicated(rank, backend, True),
    "shared masks": shared_masks,
    "fisher": fisher,
    **{f"sharded {k}": lambda rank, backend, o=o: sharded(rank, backend, **o)
       for k, o in SHARDED.items()},
    "sharded without gradients": sharded_without_gradients,
    "sharded interval": sharded_interval,
    "suppressed averaged": lambda rank, backend: suppressed(rank, backend, False),
    "suppressed at w": suppressed_at_w,
    "suppressed per rank": lambda rank, backend: suppressed(rank, backend, True),
}  # fmt: skip


def main(rank, backend, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    results = {name: run(rank, backend) for name, run in SCENARIOS.items()}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
