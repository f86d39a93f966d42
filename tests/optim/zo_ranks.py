"""What each process of the zero-order tests runs: scenarios over gloo, results in a file."""

import itertools
import os
from pathlib import Path

import torch
import torch.distributed as dist
from optim_cases import batch, cross_entropy, mlp
from sam_cases import make_params, random_masks
from sparse_optim import ZOSAM, MeZO
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = ("reference", "auto")
WORLD, STEPS, RHO, LR = 2, 3, 0.3, 0.1
SHAPES = ((9, 7), (33,), (40, 11), (3, 5))
ROWS = (4, 20, 0, 3)  # of each, held by rank 0; rank 1 has the others: both have an empty shard
UIDS = (5, 2**32 - 1, 0, 77)
DENSITIES = (None, 0.6, 0.3)  # of weight masks; below one half the backup is packed
SHARD_CASES = list(itertools.product((1, 3), ("normal", "rademacher", "sphere"), DENSITIES))
SIGNS, SIGN_SMOOTHING = 25, 2.0  # so large that curvature decides about some directions
FSDP_CASES = ("root", "layers", "kept", "resharded")


class Collectives(TorchDispatchMode):
    """Collectives called inside the block, with the numbers that a rank sends in each."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            sent = args[1] if func._opname.startswith("allgather") else args[0]
            sent = sent if isinstance(sent, list) else [sent]
            self.calls.append((func._opname, sum(t.numel() for t in sent)))
        return func(*args, **(kwargs or {}))


def data(rank, dtype=torch.float32):
    return batch(seed=20 + rank, dtype=dtype)


def weights_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def recording(loss, seen):
    """The closure, which also keeps what it returns."""

    def closure():
        value = loss()
        seen.append(value if value is None else value.detach().clone())
        return value

    return closure


def replicated(rank, backend, sync, m):
    """Every rank has data and, at first, a seed of its own; gradients are averaged."""
    model = mlp()
    ddp, (x, y) = DistributedDataParallel(model), data(rank)
    opt = ZOSAM(model.parameters(), SGD, RHO, m, 1e-2, seed=50 + rank, lr=LR, momentum=0.9,
                sync=sync, backend=backend)  # fmt: skip
    seen = {k: [] for k in ("seed", "perturbed", "w", "own", "losses", "keys", "probe", "train")}
    for _ in range(STEPS):
        own = []
        with Collectives() as probing:
            opt.probe(recording(lambda: cross_entropy(model(x), y), own))
        seen["perturbed"].append(weights_of(model))
        opt.zero_grad()
        with Collectives() as training:
            cross_entropy(ddp(x), y).backward()
        opt.step()
        seen["w"].append(weights_of(model))
        seen["own"].append(torch.stack(own).reshape(m, 2))
        seen["losses"].append(opt.last_probe.losses)
        seen["keys"].append(int(opt.last_probe.key))
        seen["seed"].append(opt.seed)
        seen["probe"].append(probing.calls)
        seen["train"].append(training.calls)
    return seen


def descent(rank, backend):
    """MeZO without any gradient to average."""
    model, (x, y), m = mlp(), data(rank), 2
    opt = MeZO(model.parameters(), LR, m, 1e-2, seed=50 + rank, backend=backend)
    seen = {k: [] for k in ("seed", "w", "own", "losses", "probe")}
    for _ in range(STEPS):
        own = []
        with Collectives() as probing:
            opt.step(recording(lambda: cross_entropy(model(x), y), own))
        seen["w"].append(weights_of(model))
        seen["own"].append(torch.stack(own).reshape(m, 2))
        seen["losses"].append(opt.last_probe.losses)
        seen["seed"].append(opt.seed)
        seen["probe"].append(probing.calls)
    return seen


def without_data(rank, backend):
    """Rank 1 has none in the second step; neither rank has any in the third."""
    model, (x, y), m = mlp(), data(rank), 2
    sam = ZOSAM(model.parameters(), SGD, RHO, m, 1e-2, seed=7, lr=LR, backend=backend)
    other = mlp()
    mezo = MeZO(other.parameters(), LR, m, 1e-2, seed=7, backend=backend)
    seen = {k: [] for k in ("w", "perturbed", "own", "losses", "nonfinite", "probe", "mezo")}
    seen["mezo"].append(weights_of(other))
    for step in range(3):
        own, blank = [], step == 2 or (step == 1 and rank == 1)

        def loss(of, blank=blank):
            return None if blank else cross_entropy(of(x), y)

        with Collectives() as probing:
            sam.probe(recording(lambda loss=loss: loss(model), own))
        seen["perturbed"].append(weights_of(model))
        sam.restore()
        mezo.step(lambda loss=loss: loss(other))
        seen["w"].append(weights_of(model))
        seen["own"].append(own)
        seen["losses"].append(sam.last_probe.losses)
        seen["nonfinite"].append((int(sam.nonfinite), int(mezo.nonfinite)))
        seen["probe"].append(probing.calls)
        seen["mezo"].append(weights_of(other))
    return seen


def signs(rank, backend):
    """Share of directions that agree with the mean gradient; rank 1 has another first seed."""
    model, (x, y) = mlp(dtype=torch.float64), data(rank, torch.float64)
    opt = MeZO(model.parameters(), seed=3 + rank, smoothing=SIGN_SMOOTHING, backend=backend)
    share = opt.sign_check(lambda: cross_entropy(model(x), y), SIGNS)
    blank = opt.sign_check(lambda: cross_entropy(model(x), y) if rank == 0 else None, SIGNS)
    return {"share": share, "blank": blank, "w": weights_of(model)}


# -- parameters in parts ---------------------------------------------------------------------


def part(tensors, rank):
    """The rows of this rank, and the index of their first element in the whole."""
    rows = [slice(0, k) if rank == 0 else slice(k, None) for k in ROWS]
    firsts = [0 if rank == 0 else k * t[0].numel() for k, t in zip(ROWS, tensors, strict=True)]
    return [t.detach()[r].clone() for t, r in zip(tensors, rows, strict=True)], firsts


def shard_run(tensors, backend, m, distribution, masks, **own):
    """Losses are given numbers; the weights at every point of two probes and after MeZO's step."""
    params = [nn.Parameter(t.clone()) for t in tensors]
    numbers = iter([0.7, 0.4, 0.2, 0.9, 0.55, 0.5] * 4)
    points = []

    def loss():
        points.append([p.detach().clone() for p in params])
        return next(numbers)

    named = {"seed": 11, "uids": UIDS, "distribution": distribution, "weight_mask": masks}
    named |= {"num_directions": m, "backend": backend, **own}
    opt = ZOSAM(params, SGD, RHO, lr=LR, **named)
    seen = {"active": [opt.num_active], "ascent": [], "keys": [], "perturbed": []}
    for _ in range(2):
        opt.probe(loss)
        seen["perturbed"].append([p.detach().clone() for p in params])
        seen["ascent"].append(opt.last_probe.ascent)
        seen["keys"].append(opt.last_probe.key)
        opt.restore()
    seen["restored"] = [p.detach().clone() for p in params]
    opt.set_weight_mask([p.detach() > 0 for p in params])
    seen["active"].append(opt.num_active)
    params = [nn.Parameter(t.clone()) for t in tensors]
    mezo = MeZO(params, LR, smoothing=1e-2, **named)
    mezo.step(loss)
    return {**seen, "points": points, "mezo": [p.detach().clone() for p in params]}


def whole(density):
    """Tensors and masks, not split."""
    tensors = [p.detach() for p in make_params(SHAPES)]
    return tensors, None if density is None else random_masks(tensors, density)


def sharded(rank, backend, m, distribution, density):
    tensors, masks = whole(density)
    mine, firsts = part(tensors, rank)
    kept = None if masks is None else part(masks, rank)[0]
    return shard_run(mine, backend, m, distribution, kept, firsts=firsts,
                     shard_group=dist.group.WORLD)  # fmt: skip


# -- fully_shard -----------------------------------------------------------------------------


def split_model(case):
    """An MLP whose rows do not divide by two; gathered weights are kept or freed as ``case`` says.

    root: the root owns all parameters and keeps what a forward gathered, as by default. layers:
    each layer owns its own. kept: so does each, and keeps it. resharded: nothing is kept.
    """
    from torch.distributed.fsdp import fully_shard

    model = mlp(dtype=torch.float64)
    after = {"kept": False, "resharded": True}.get(case)
    if case != "root":
        for layer in (model[0], model[2]) if case == "kept" else (model[0],):
            fully_shard(layer, reshard_after_forward=after)
    return fully_shard(model, reshard_after_forward=after)


def fully_sharded(rank, backend, case):
    """ZO-SAM, then MeZO: e, weights and lengths; forwards without backward come in between."""
    (x, y), seen = data(rank, torch.float64), {}
    model = split_model(case)
    params = list(model.parameters())

    def local():
        with torch.no_grad():
            return [p.to_local().clone() for p in params]

    def look():
        with torch.no_grad():
            return float(cross_entropy(model(x), y))

    def loss():
        return cross_entropy(model(x), y)

    opt = ZOSAM(params, SGD, RHO, 2, seed=9 + rank, lr=LR, momentum=0.9, replay_log=True,
                backend=backend)  # fmt: skip
    seen |= {k: [] for k in ("e", "w", "losses", "logged", "trained", "mezo")}
    seen["active"] = opt.num_active
    for step in range(STEPS):
        look()
        before = local()
        opt.probe(loss)
        seen["e"].append([a - b for a, b in zip(local(), before, strict=True)])
        again = opt.replay_log.perturbation(step, params, backend)
        seen["logged"].append([t.to_local() for t in again])
        opt.zero_grad()
        trained = loss()
        trained.backward()
        seen["trained"].append(trained.detach())
        opt.step()
        seen["w"].append(local())
        seen["losses"].append(opt.last_probe.losses)
    mezo = MeZO(params, LR, 2, 1e-2, seed=4, backend=backend)
    for _ in range(STEPS):
        look()
        mezo.step(loss)
        seen["mezo"].append(local())
    return seen | {"firsts": [opt._directions.firsts[p] for p in params]}


def refused(make):
    try:
        make()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def refusals(rank, backend):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))

    def placed(*placements):
        return nn.Parameter(distribute_tensor(torch.ones(4, 6), mesh, placements))

    def zosam(params, **own):
        return ZOSAM(params, SGD, seed=1, lr=LR, backend=backend, **own)

    rows, plain = placed(Shard(0)), nn.Parameter(torch.ones(3))
    mask = [torch.ones(4, 6, dtype=torch.bool)]
    half = [torch.zeros(4, 6, dtype=torch.bfloat16)]
    return {
        "local with a group": refused(
            lambda: zosam([plain], sync="local", shard_group=dist.group.WORLD)
        ),
        "local with DTensors": refused(lambda: zosam([rows], sync="local")),
        "weight mask": refused(lambda: zosam([rows]).set_weight_mask(mask)),
        "mask": refused(lambda: zosam([rows]).set_masks(mask)),
        "mezo mask": refused(lambda: MeZO([rows], weight_mask=mask, backend=backend)),
        "columns": refused(lambda: zosam([placed(Shard(1))])),
        "mixture": refused(lambda: zosam([rows, plain])),
        "mixture and group": refused(lambda: zosam([rows, plain], shard_group=dist.group.WORLD)),
        "coordinate": refused(
            lambda: zosam([rows], distribution="coordinate", num_directions=24, smoothing=0.1)
        ),
        "masters": refused(lambda: zosam([rows], live=half)),
        "sign check": refused(lambda: zosam([rows]).sign_check(lambda: rows.sum())),
    }


SCENARIOS = {
    "global": lambda rank, backend: replicated(rank, backend, "global", 1),
    "auto": lambda rank, backend: replicated(rank, backend, "auto", 3),
    "local": lambda rank, backend: replicated(rank, backend, "local", 1),
    "descent": descent,
    "without data": without_data,
    "signs": signs,
    **{("sharded", *case): lambda rank, backend, c=case: sharded(rank, backend, *c)
       for case in SHARD_CASES},
    **{("fsdp", case): lambda rank, backend, c=case: fully_sharded(rank, backend, c)
       for case in FSDP_CASES},
    "refusals": refusals,
}  # fmt: skip


def main(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    results = {b: {name: run(rank, b) for name, run in SCENARIOS.items()} for b in BACKENDS}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
