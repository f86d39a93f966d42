"""Models, optimizers and training loops shared by the tests of sparse training methods."""

import torch
from optim_cases import assert_same_bits, batch, bits, cross_entropy, mlp
from sparse_optim import (
    DSR,
    GMP,
    MEST,
    SAM,
    SET,
    SNIP,
    SSAM,
    ZOSAM,
    GraSP,
    LotteryTicket,
    RandomMask,
    RigL,
)
from torch import nn
from torch.optim import SGD, AdamW

from sparse_kernels import derive_key
from sparse_kernels.reference._keys import ordered_keys

INIT, GROW = 0x80000004, 0x80000005  # streams of the first mask and of growth


def sgd(model):
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def closure(model, opt, data):
    x, y = data

    def run():
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    return run


def plain_step(model, opt, data):
    opt.step()


def closure_step(model, opt, data):
    opt.step(closure(model, opt, data))


def probe_step(model, opt, data):
    x, y = data
    opt.step(closure(model, opt, data), loss_closure=lambda: cross_entropy(model(x), y))


#: how to make an optimizer, and how to take a step once the gradient at w is in ``.grad``
OPTIMIZERS = {
    "sgd": (lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01), plain_step),
    "sgd closure": (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), closure_step),
    "adamw": (lambda p: AdamW(p, lr=0.02, weight_decay=0.1), plain_step),
    "sam": (lambda p: SAM(p, SGD, rho=0.05, lr=0.1, momentum=0.9, weight_decay=0.01), closure_step),
    "asam": (
        lambda p: SAM(p, AdamW, rho=0.5, adaptive=True, eta=0.01, lr=0.02, weight_decay=0.1),
        closure_step,
    ),
    "ssam": (
        lambda p: SSAM(p, SGD, rho=0.1, sparsity=0.5, mask=RandomMask(), lr=0.1, momentum=0.9),
        closure_step,
    ),
    "zosam": (lambda p: ZOSAM(p, SGD, rho=0.05, seed=3, lr=0.1, momentum=0.9), probe_step),
}

#: every method with an update now and then; all but the static ones start with a mask
METHODS = {
    "snip": lambda m, o: SNIP(m, o, 0.5),
    "grasp": lambda m, o: GraSP(m, o, 0.5),
    "lottery": lambda m, o: LotteryTicket(m, o, 0.2, rewind_steps=2),
    "set": lambda m, o: SET(m, o, 0.5, update_every=7, seed=1),
    "dsr": lambda m, o: DSR(m, o, 0.5, first_dense=False, update_every=7, threshold=0.05, seed=1),
    "rigl": lambda m, o: RigL(m, o, 0.5, update_every=7, stop_at=90, seed=1),
    "mest": lambda m, o: MEST(m, o, 0.5, first_dense=False, update_every=7, seed=1),
    "gmp": lambda m, o: GMP(m, o, 0.5, update_every=7, stop_at=60),
}


def build(method, optimizer, seed=1):
    """Model, optimizer, its step, and the method."""
    model = mlp(seed)
    make, step = OPTIMIZERS[optimizer]
    opt = make(model.parameters())
    return model, opt, step, METHODS[method](model, opt)


def begin(sparse, data):
    """Prune what is pruned at the start."""
    if isinstance(sparse, SNIP):
        sparse.prune(cross_entropy, *data)
    elif isinstance(sparse, GraSP):
        sparse.prune(data)
    elif isinstance(sparse, LotteryTicket):
        sparse.step()
        sparse.step()
        sparse.prune()


def train(model, opt, step, sparse, steps, data=None, each=None):
    """Train; the losses at w."""
    data = batch() if data is None else data
    losses = []
    for _ in range(steps):
        losses.append(closure(model, opt, data)().detach())
        if not sparse.step():
            step(model, opt, data)
        if each is not None:
            each()
    return torch.stack(losses)


def random_scores(sparse, stream, update):
    """The numbers that random selections rank by, in the weights' shapes."""
    key = derive_key(sparse.seed, update, stream)
    signed = torch.tensor(key - 2**64 if key >= 2**63 else key)
    out, first = [], 0
    for p in sparse.weights.values():
        out.append(ordered_keys(p, "random", signed, first).reshape(p.shape))
        first += p.numel()
    return out


def masks_of(sparse):
    return dict(zip(sparse.weights, sparse.mask.to_bool(), strict=True))


def inject(sparse, seed, low=-3, high=4):
    """Integer weights (so that many tie) under the mask."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p, m in zip(sparse.weights.values(), sparse.mask.to_bool(), strict=True):
            p.copy_(torch.randint(low, high, p.shape, generator=generator) * m)


def injected_grads(sparse, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(-3, 4, p.shape, generator=generator).float() for p in sparse.weights.values()
    ]


def wide(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(20, 12), nn.Linear(12, 10))


def top(scores, k, among):
    """The k best of some indices: score descending, then index ascending."""
    return set(sorted(among, key=lambda i: (-scores[i], i))[:k])


def as_sets(sparse):
    """Live flat indices of every layer."""
    return [set(m.reshape(-1).nonzero().reshape(-1).tolist()) for m in sparse.mask.to_bool()]


def values(tensors):
    return [t.detach().reshape(-1).tolist() for t in tensors]


def prepared(sparse, opt, seed):
    """Integer weights, a state that is 1 on live weights; what they were."""
    inject(sparse, seed)
    for p, m in zip(sparse.weights.values(), sparse.mask.to_bool(), strict=True):
        opt.state[p]["momentum_buffer"] = m.float()
    return {n: p.detach().clone() for n, p in sparse.weights.items()}


def assert_values(sparse, opt, old, holders, state_kept=False):
    """Holders kept value and state; grown weights are +0.0, their state 0 unless kept."""
    for (name, p), live, hold in zip(sparse.weights.items(), as_sets(sparse), holders, strict=True):
        keep = torch.zeros(p.numel(), dtype=torch.bool)
        keep[sorted(hold)] = True
        keep = keep.reshape(p.shape)
        assert hold <= live
        assert_same_bits(p.detach(), torch.where(keep, old[name], 0.0))
        state = opt.state[p]["momentum_buffer"]
        assert (state[keep] == 1).all()
        if not state_kept:
            assert not bits(state)[~keep].any()


def assert_counts(sparse):
    assert sparse.layer_live == {n: int(m.sum()) for n, m in masks_of(sparse).items()}
